package relz

import (
	"encoding/binary"
	"errors"
	"io"
)

// ErrRecipe says that a recipe cannot have been written by Describe.
var ErrRecipe = errors.New("damaged recipe of an encoder's decisions")

// A Stream says what must be known of an LZMA2 stream from outside of it. Several that follow one another,
// as the blocks of an xz file do, are one here: they have the same dictionary and no filter.
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
	minHeadBits     = 8
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
	l, err := NewLearner(w, s, moves)
	if err != nil {
		return nil, err
	}
	if err := l.Block(packed, s.X86); err != nil {
		return nil, err
	}
	return l.History()
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
	d := Describer{Stream: s}
	if _, err := d.Block(packed); err != nil {
		return nil, err
	}
	return d.Finish(old)
}

func (h *History) history() *history {
	if h == nil {
		return nil
	}
	return h.h
}

func (h *History) moved() bool { return h != nil && h.h.moves != nil }

// Rebuild writes the stream that recipe describes, reading size bytes of plain.
func Rebuild(w io.Writer, plain io.Reader, size int64, recipe []byte, old *History) error {
	return new(Workspace).Rebuild(w, plain, size, recipe, old, nil)
}

// A parsed recipe.
type parsed struct {
	Stream
	moves     bool // the history follows moves
	blocks    bool // there are several streams
	priors    bool
	headBits  int
	chunks    []chunk
	decisions []byte
}

const (
	flagX86    = 1
	flagMoves  = 2
	flagBlocks = 4
	flagPriors = 8
	flagsKnown = 15
)

// maxParts bounds the chunks or blocks of a recipe, so that little memory is taken before it is known how much the
// recipe wants.
const maxParts = 1 << 18

// A recipeReader takes a recipe apart from front to back. Once something is missing or too large it is bad, and returns zeros.
type recipeReader struct {
	b   []byte // what is left
	bad bool
}

func (r *recipeReader) require(is bool) { r.bad = r.bad || !is }

// number reads an uvarint that is at most limit.
func (r *recipeReader) number(limit uint64) int {
	v, n := binary.Uvarint(r.b)
	if r.require(n > 0 && v <= limit); r.bad {
		return 0
	}
	r.b = r.b[n:]
	return int(v)
}

func (r *recipeReader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *recipeReader) bytes(n int) []byte {
	if r.require(n <= len(r.b)); r.bad {
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

// parse takes a recipe apart.
func parse(b []byte) (p parsed, err error) {
	in := recipeReader{b: b}
	p.Dict = in.number(MaxDict)
	flags := in.byte()
	p.X86, p.moves, p.blocks = flags&flagX86 != 0, flags&flagMoves != 0, flags&flagBlocks != 0
	p.priors = flags&flagPriors != 0
	p.headBits = int(in.byte())
	n := in.number(maxParts)
	for i := 0; i < n && !in.bad; i++ {
		c := chunk{control: in.byte()}
		c.size = in.number(maxChunk)
		switch {
		case c.control == chunkEnd && flags&flagBlocks != 0 && c.size == 0 && i > 0:
			p.chunks = append(p.chunks, c)
			continue
		case c.control == chunkRaw || c.control == chunkRawReset:
			in.require(c.size <= 1<<16)
		case c.control < chunkCompressed || c.control&0x1f != 0:
			in.bad = true
		case c.control >= chunkCompressed|chunkProperties:
			c.properties = in.byte()
		}
		in.require(c.size > 0)
		p.chunks = append(p.chunks, c)
	}
	if in.bad || flags > flagsKnown || flags&(flagX86|flagBlocks) == flagX86|flagBlocks || p.headBits < minHeadBits || p.headBits > maxHeadBits || p.Dict < minDict {
		return p, ErrRecipe
	}
	p.decisions = in.b
	return p, nil
}

// Describes returns what a recipe says of its streams: how much is inside of each.
func Describes(recipe []byte) (s Stream, blocks []int64, err error) {
	p, err := parse(recipe)
	if err != nil {
		return s, nil, err
	}
	n := int64(0)
	for _, c := range p.chunks {
		if n += int64(c.size); c.control == chunkEnd {
			blocks = append(blocks, n)
			p.Size, n = p.Size+n, 0
		}
	}
	p.Size += n
	return p.Stream, append(blocks, n), nil
}

// SetMoves gives h other moves: those given to Learn may have been an empty list that was not nil.
func (h *History) SetMoves(moves []Move) {
	if h.h.moves != nil && moves != nil {
		h.h.moves = moves
	}
}

// Memory returns an upper bound of what Rebuild allocates for size bytes of
// plain, and Learn of old before it; old.Size 0 is none.
func Memory(recipe []byte, size int64, stream Stream) (int64, error) {
	s, err := parse(recipe)
	if err != nil {
		return 0, err
	}
	need := int64(windowSize(s.Dict, size)) + headMemory(s.headBits, size) + int64(guideProbs)*2
	need += 3*maxPacked + int64(len(s.chunks))*32 + (rebuildAhead+1)*min(maxChunk, size) + 256<<10
	if old := stream; old.Size > 0 {
		if w := windowSize(old.Dict, old.Size); w > windowSize(s.Dict, size) {
			need += int64(w)
		}
		need += historyMemory(old.Size, s.moves)
	}
	return need, nil
}
