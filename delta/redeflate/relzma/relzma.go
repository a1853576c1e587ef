package relzma

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// ErrRecipe says that a recipe cannot have been written by Describe.
var ErrRecipe = errors.New("damaged recipe of LZMA decisions")

// A Stream says what must be known of an LZMA2 stream from outside of it.
type Stream struct {
	Dict int   // size of the dictionary
	X86  bool  // content went through the x86 filter
	Size int64 // of the content, or an upper bound
}

// A Move says that Length bytes at Old in the old content are, or nearly are, those at New
// in the new one.
type Move struct{ Old, New, Length int64 }

// A History is what an old stream's encoder decided.
type History struct{ h *history }

const (
	// MaxDict bounds the dictionary of streams that are dealt with.
	MaxDict = 64 << 20
	minDict = 4 << 10
	// defaultHeadBits is the size of the tables of matches: 8 of them with
	// 2^19 entries of 4 bytes.
	defaultHeadBits = 19
	maxHeadBits     = 22
	maxSize         = maxHistory - 1
)

func (s Stream) check() error {
	if s.Dict < minDict || s.Dict > MaxDict || s.Size < 0 || s.Size > maxSize {
		return errLZMA
	}
	return nil
}

// Expand writes the content of the stream at the start of packed.
func Expand(w io.Writer, packed io.Reader, s Stream) error {
	if err := s.check(); err != nil {
		return err
	}
	out := newContentWriter(w, s)
	d := newDecoder(packed, newWindow(s.Dict, s.Size))
	for {
		_, content, err := d.next(nil)
		if err == io.EOF {
			return out.flush()
		}
		if err != nil {
			return err
		}
		if err := out.write(content); err != nil {
			return err
		}
	}
}

// A contentWriter writes what a stream holds, through its filter.
type contentWriter struct {
	w      io.Writer // nil: nowhere
	filter *filterWriter
}

func newContentWriter(w io.Writer, s Stream) contentWriter {
	if w != nil && s.X86 {
		return contentWriter{w, &filterWriter{w: w, f: newX86(false)}}
	}
	return contentWriter{w, nil}
}

func (c contentWriter) write(p []byte) (err error) {
	switch {
	case c.filter != nil:
		_, err = c.filter.Write(p)
	case c.w != nil:
		_, err = c.w.Write(p)
	}
	return err
}

func (c contentWriter) flush() error {
	if c.filter == nil {
		return nil
	}
	return c.filter.flush()
}

// Learn reads an old stream, of which s.Size must be right, and writes its content to w, unless
// that is nil. Without moves it is found out where the content is in the new
// stream, which takes more memory and is less exact.
func Learn(w io.Writer, packed io.Reader, s Stream, moves []Move) (*History, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	h := newHistory(s.Size, moves)
	in := newWindow(s.Dict, s.Size)
	d := newDecoder(packed, in)
	out := newContentWriter(w, s)
	indexed := int64(0)
	for {
		_, content, err := d.next(h.token)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		// What follows the end is not known yet.
		if n := in.end - anchorWidth - indexed; n > 0 {
			h.content(indexed, in.at(indexed), int(n))
			indexed += n
		}
		if err := out.write(content); err != nil {
			return nil, err
		}
	}
	if in.end != s.Size {
		return nil, errLZMA
	}
	h.flush(s.Size)
	h.spare = in
	return &History{h}, out.flush()
}

// Described is a stream taken apart.
type Described struct {
	Plain  []byte
	Recipe []byte
	Used   int // bytes of the stream
}

// Describe takes the stream at the start of packed apart. old may be nil, but
// then the recipe is a third of the stream, and more.
func Describe(packed []byte, s Stream, old *History) (*Described, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	in := bytes.NewReader(packed)
	d := newDecoder(in, newWindow(s.Dict, s.Size))
	var content []byte
	var chunks []chunk
	var tokens []Token
	for {
		c, p, err := d.next(func(_ int64, t Token) { tokens = append(tokens, t) })
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		content = append(content, p...)
		chunks = append(chunks, c)
	}
	d = nil
	out := &Described{Used: len(packed) - in.Len()}

	b := binary.AppendUvarint(nil, uint64(s.Dict))
	flags := byte(b2u(s.X86)) * flagX86
	if old.moved() {
		flags |= flagMoves
	}
	b = append(b, flags, defaultHeadBits)
	b = binary.AppendUvarint(b, uint64(len(chunks)))
	for _, c := range chunks {
		b = binary.AppendUvarint(append(b, c.control), uint64(c.size))
		if c.control >= chunkCompressed|chunkProperties {
			b = append(b, c.properties)
		}
	}
	var c coder
	c.encode(b)
	k := newWalk(&c, bytes.NewReader(content), newWindow(s.Dict, int64(len(content))), int64(len(content)), old.history(), defaultHeadBits)
	for _, ch := range chunks {
		err := k.load(ch.size, func() {})
		ok := false
		if err == nil {
			tokens, ok = k.describe(ch, tokens)
		}
		if !ok {
			return nil, errLZMA
		}
	}
	out.Recipe = c.finish()
	out.Plain = content
	if s.X86 {
		f := newX86(false)
		f.run(content)
	}
	return out, nil
}

func (h *History) history() *history {
	if h == nil {
		return nil
	}
	return h.h
}

func (h *History) moved() bool { return h != nil && h.h.moves != nil }

// window returns a window, made of the one that Learn used if it is large enough.
func (h *History) window(dict int, size int64) *window {
	if h == nil || h.h.spare == nil {
		return newWindow(dict, size)
	}
	w := h.h.spare
	h.h.spare = nil
	n := windowSize(dict, size)
	if n > cap(w.buf) {
		return newWindow(dict, size)
	}
	*w = window{buf: w.buf[:n], keep: dict}
	clear(w.buf)
	return w
}

// Rebuild writes the stream that recipe describes, reading size bytes of plain.
func Rebuild(w io.Writer, plain io.Reader, size int64, recipe []byte, old *History) error {
	s, err := parse(recipe)
	if err != nil {
		return err
	}
	s.Size = size
	if err := s.check(); err != nil || s.moves != old.moved() {
		return ErrRecipe
	}
	total := int64(0)
	for _, c := range s.chunks {
		total += int64(c.size)
	}
	var c coder
	if total != size || !c.decode(s.decisions) {
		return ErrRecipe
	}
	content := io.LimitReader(plain, size)
	if s.X86 {
		content = newFilterReader(content, true)
	}
	k := newWalk(&c, content, old.window(s.Dict, size), size, old.history(), s.headBits)
	r := newRebuilder(w)
	go r.run()
	err = k.rebuild(s.chunks, r)
	close(r.work)
	<-r.done
	if err == nil {
		err = r.err
	}
	if err == errLZMA {
		err = ErrRecipe
	}
	if err == nil {
		_, err = w.Write([]byte{chunkEnd})
	}
	return err
}

// rebuild gives all chunks to r.
func (k *walk) rebuild(chunks []chunk, r *rebuilder) error {
	for _, ch := range chunks {
		if err := k.load(ch.size, r.pending.Wait); err != nil {
			return err
		}
		p := piece{chunk: ch, buf: k.w.buf, at: int(k.g.at - k.w.start), pos: k.g.at}
		var ok bool
		if p.tokens, ok = k.decide(ch, <-r.spare); !ok {
			return errLZMA
		}
		if r.failed.Load() {
			return nil // the reason is in r.err
		}
		r.send(p)
	}
	return nil
}

// A parsed recipe.
type parsed struct {
	Stream
	moves     bool // the history follows moves
	headBits  int
	chunks    []chunk
	decisions []byte
}

const (
	flagX86   = 1
	flagMoves = 2
)

// parse takes a recipe apart.
func parse(b []byte) (p parsed, err error) {
	ok := true
	number := func(limit uint64) int {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > limit {
			ok = false
			return 0
		}
		b = b[n:]
		return int(v)
	}
	next := func() byte {
		if len(b) == 0 {
			ok = false
			return 0
		}
		v := b[0]
		b = b[1:]
		return v
	}
	p.Dict = number(MaxDict)
	flags := next()
	p.X86, p.moves = flags&flagX86 != 0, flags&flagMoves != 0
	p.headBits = int(next())
	n := number(uint64(len(b)))
	for i := 0; i < n && ok; i++ {
		c := chunk{control: next()}
		c.size = number(maxChunk)
		switch {
		case c.control == chunkRaw || c.control == chunkRawReset:
			ok = ok && c.size <= 1<<16
		case c.control < chunkCompressed || c.control&0x1f != 0:
			ok = false
		case c.control >= chunkCompressed|chunkProperties:
			c.properties = next()
		}
		ok = ok && c.size > 0
		p.chunks = append(p.chunks, c)
	}
	if !ok || flags > flagX86|flagMoves || p.headBits < 8 || p.headBits > maxHeadBits || p.Dict < minDict {
		return p, ErrRecipe
	}
	p.decisions = b
	return p, nil
}

// Memory returns an upper bound of what Rebuild allocates for size bytes of
// plain, and Learn of old before it; old.Size 0 is none.
func Memory(recipe []byte, size int64, stream Stream) (int64, error) {
	s, err := parse(recipe)
	if err != nil {
		return 0, err
	}
	need := int64(windowSize(s.Dict, size)) + headMemory(s.headBits, size) + int64(guideProbs)*2
	need += 3*maxPacked + int64(len(s.chunks))*32 + (rebuildAhead+1)*maxChunk + 256<<10
	if old := stream; old.Size > 0 {
		if w := windowSize(old.Dict, old.Size); w > windowSize(s.Dict, size) {
			need += int64(w)
		}
		need += historyMemory(old.Size, s.moves)
	}
	return need, nil
}
