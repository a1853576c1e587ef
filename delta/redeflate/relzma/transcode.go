package relzma

import (
	"io"
	"sync"
	"sync/atomic"
)

// lookAhead bytes are in the window beyond the current chunk if the stream has
// them: more than a match or a hash needs.
const lookAhead = maxLength + 64

// A walk goes through a stream chunk by chunk, in both directions: when a
// recipe is made the decisions are known and written to c, on the device they
// are read from it.
type walk struct {
	w       *window
	g       *guide
	content io.Reader
	end     int64
}

func newWalk(c *coder, content io.Reader, w *window, size int64, old *history, headBits int) *walk {
	return &walk{w: w, g: newGuide(c, w, old, size, headBits), content: content, end: size}
}

// load brings what is needed for a chunk of n bytes into the window. It calls
// before if that moves what is there.
func (k *walk) load(n int, before func()) error {
	need := int(min(k.g.at+int64(n)+lookAhead, k.end) - k.w.end)
	if need <= 0 {
		return nil
	}
	if !k.w.room(need) {
		before()
		if !k.w.slide(k.g.at, need) {
			return errLZMA
		}
	}
	return k.w.read(k.content, need)
}

// describe writes the decisions of a chunk.
func (k *walk) describe(ch chunk, tokens []Token) ([]Token, bool) {
	if ch.raw() {
		k.g.advance(ch.size)
		return tokens[ch.size:], true
	}
	stop := k.g.at + int64(ch.size)
	for k.g.at < stop {
		if _, ok := k.g.next(tokens[0], int(stop-k.g.at)); !ok {
			return nil, false
		}
		tokens = tokens[1:]
	}
	return tokens, true
}

// decide reads the decisions of a chunk.
func (k *walk) decide(ch chunk, tokens []Token) ([]Token, bool) {
	if ch.raw() {
		k.g.advance(ch.size)
		return tokens, true
	}
	for stop := k.g.at + int64(ch.size); k.g.at < stop; {
		t, ok := k.g.next(Token{}, int(stop-k.g.at))
		if !ok || k.g.c.over() {
			return tokens, false
		}
		tokens = append(tokens, t)
	}
	return tokens, true
}

// A rebuilder makes chunks of decisions. It runs beside the walk, which it
// follows by a chunk or two: to guess and to code take about the same time.
type rebuilder struct {
	w     io.Writer
	m     model
	c     coder
	fresh bool
	out   []byte

	work    chan piece
	spare   chan []Token
	pending sync.WaitGroup // pieces that may look into the window
	failed  atomic.Bool
	err     error // to be read when done is closed
	done    chan struct{}
}

// A piece is a chunk with its decisions, and where it lies.
type piece struct {
	chunk
	tokens []Token
	buf    []byte // of the window
	at     int    // in buf
	pos    int64  // in the stream
}

const rebuildAhead = 2

func newRebuilder(w io.Writer) *rebuilder {
	r := &rebuilder{
		w: w, fresh: true, work: make(chan piece, rebuildAhead),
		spare: make(chan []Token, rebuildAhead+1), done: make(chan struct{}),
	}
	for range cap(r.spare) {
		r.spare <- nil
	}
	return r
}

// run makes chunks until close(work).
func (r *rebuilder) run() {
	defer close(r.done)
	for p := range r.work {
		if r.err == nil {
			if r.err = r.chunk(p); r.err != nil {
				r.failed.Store(true)
			}
		}
		r.pending.Done()
		r.spare <- p.tokens[:0]
	}
}

// send gives a chunk to run.
func (r *rebuilder) send(p piece) {
	r.pending.Add(1)
	r.work <- p
}

// chunk writes a chunk.
func (r *rebuilder) chunk(p piece) error {
	if p.raw() {
		r.out = append(p.appendTo(r.out[:0]), p.buf[p.at:p.at+p.size]...)
		_, err := r.w.Write(r.out)
		return err
	}
	if !r.m.begin(p.chunk, r.fresh) {
		return errLZMA
	}
	r.fresh = false
	r.c.encode(r.out[:0])
	at := p.at
	for _, t := range p.tokens {
		previous, matched := byte(0), byte(0)
		if at > 0 {
			previous = p.buf[at-1]
			if from := at - 1 - int(r.m.reps[0]); from >= 0 {
				matched = p.buf[from]
			}
		}
		code(&r.c, &r.m, t, uint32(p.pos)+uint32(at-p.at), previous, matched, p.buf[at])
		at += int(t.Len)
		if len(r.c.out) > maxPacked {
			return errLZMA
		}
	}
	r.out = r.c.finish()
	if p.packed = len(r.out); p.packed > maxPacked {
		return errLZMA
	}
	if _, err := r.w.Write(p.appendTo(nil)); err != nil {
		return err
	}
	_, err := r.w.Write(r.out)
	return err
}
