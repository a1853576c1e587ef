package relz

import (
	"io"
	"slices"
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

// block begins a stream, whose chunks, but for the end of the one before, are at the start of chunks.
func (k *walk) block(chunks []chunk) {
	end := k.g.at
	for i, c := range chunks {
		if i > 0 && c.control == chunkEnd {
			break
		}
		end += int64(c.size)
	}
	k.w.floor = k.g.at
	k.g.end, k.g.reps = end, [4]uint32{}
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
	tokens = slices.Grow(tokens, int(ch.size)/tokenLength)
	for stop := k.g.at + int64(ch.size); k.g.at < stop; {
		t, ok := k.g.next(Token{}, int(stop-k.g.at))
		if !ok || k.g.c.over() {
			return tokens, false
		}
		tokens = append(tokens, t)
	}
	return tokens, true
}

// A chunkCoder makes chunks of decisions. It runs beside the walk, which it
// follows by a chunk or two: to guess and to code take about the same time.
type chunkCoder struct {
	w     io.Writer
	m     model
	c     coder
	fresh bool
	out   []byte

	make    func(piece) error
	end     func() error // called when a stream is complete, or nil
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
	floor  int    // where its stream begins in buf, or 0
	pos    int64  // in the stream
}

const rebuildAhead = 2

// tokenLength is how many bytes a token stands for at least, as a rule: a kernel's stand for 11.
const tokenLength = 12

func (r *chunkCoder) reset(w io.Writer, end func() error) {
	if r.spare == nil {
		r.spare = make(chan []Token, rebuildAhead+1)
	}
	for len(r.spare) < cap(r.spare) { // a walk that failed kept one
		r.spare <- nil
	}
	r.w, r.end, r.fresh, r.err = w, end, true, nil
	r.make = r.chunk
	r.failed.Store(false)
	r.work, r.done = make(chan piece, rebuildAhead), make(chan struct{})
}

// run makes chunks until close(work).
func (r *chunkCoder) run() {
	defer close(r.done)
	for p := range r.work {
		if r.err == nil {
			if r.err = r.make(p); r.err != nil {
				r.failed.Store(true)
			}
		}
		r.pending.Done()
		r.spare <- p.tokens[:0]
	}
}

// send gives a chunk to run.
func (r *chunkCoder) send(p piece) {
	r.pending.Add(1)
	r.work <- p
}

// chunk writes a chunk.
func (r *chunkCoder) chunk(p piece) error {
	if p.control == chunkEnd {
		r.fresh = true
		return r.finish()
	}
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
		if at > p.floor {
			previous = p.buf[at-1]
			if from := int64(at) - 1 - int64(r.m.reps[0]); from >= int64(p.floor) {
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

// finish writes the end of a stream.
func (r *chunkCoder) finish() error {
	_, err := r.w.Write([]byte{chunkEnd})
	if err == nil && r.end != nil {
		err = r.end()
	}
	return err
}
