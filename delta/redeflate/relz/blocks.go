package relz

import (
	"bytes"
	"encoding/binary"
	"io"
)

// A Learner learns from old streams that follow one another.
type Learner struct {
	w    io.Writer
	s    Stream
	h    *history
	in   *window
	done int64 // of s.Size
}

// NewLearner prepares to learn from streams that hold s.Size bytes together. w and moves are
// as for [Learn].
func NewLearner(w io.Writer, s Stream, moves []Move) (*Learner, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return &Learner{w: w, s: s, h: newHistory(s.Size, moves), in: newWindow(s.Dict, s.Size)}, nil
}

// Block reads the next stream.
func (l *Learner) Block(packed io.Reader, x86 bool) error {
	l.in.restart(l.s.Dict)
	d := newDecoder(packed, l.in)
	out := newContentWriter(l.w, Stream{X86: x86})
	token := func(pos int64, t Token) { l.h.token(l.done+pos, t) }
	indexed := int64(0)
	for {
		_, content, err := d.next(token)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if l.done+l.in.end > l.s.Size {
			return errLZMA
		}
		// What follows the end is not known yet.
		if n := l.in.end - anchorWidth - indexed; n > 0 {
			l.h.content(l.done+indexed, l.in.at(indexed), int(n))
			indexed += n
		}
		if err := out.write(content); err != nil {
			return err
		}
	}
	l.done += l.in.end
	l.h.flush(l.done)
	return out.flush()
}

// History returns what was learned; all streams must have been read.
func (l *Learner) History() (*History, error) {
	if l.done != l.s.Size {
		return nil, errLZMA
	}
	l.h.spare = l.in
	return &History{l.h}, nil
}

// A Describer takes streams apart that follow one another. Size of Stream bounds what is in each.
type Describer struct {
	Stream  Stream
	content []byte
	chunks  []chunk
	tokens  []Token
	blocks  int
	last    int // where the last one begins in content
	used    int
}

// Last returns what is in the stream that Block took apart last.
func (b *Describer) Last() []byte {
	p := b.content[b.last:]
	if b.Stream.X86 {
		p = bytes.Clone(p)
		f := newX86(false)
		f.run(p)
	}
	return p
}

// Block takes the stream at the start of packed apart and returns its length.
func (b *Describer) Block(packed []byte) (used int, err error) {
	if err := b.Stream.check(); err != nil {
		return 0, err
	}
	if b.blocks++; b.blocks > 1 {
		b.chunks = append(b.chunks, chunk{control: chunkEnd})
	}
	b.last = len(b.content)
	in := bytes.NewReader(packed)
	d := newDecoder(in, newWindow(b.Stream.Dict, b.Stream.Size))
	for {
		c, p, err := d.next(func(_ int64, t Token) { b.tokens = append(b.tokens, t) })
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		b.content = append(b.content, p...)
		b.chunks = append(b.chunks, c)
	}
	used = len(packed) - in.Len()
	b.used += used
	return used, nil
}

// Finish returns everything that was taken apart; Used is the length of all streams.
func (b *Describer) Finish(old *History) (*Described, error) {
	s := b.Stream
	flags := byte(b2u(s.X86)) * flagX86
	if old.moved() {
		flags |= flagMoves
	}
	if old.priorsOf().of(false) {
		flags |= flagPriors
	}
	if b.blocks > 1 {
		flags |= flagBlocks
	}
	if flags&(flagX86|flagBlocks) == flagX86|flagBlocks {
		return nil, errLZMA
	}
	headBits := headBitsFor(int64(len(b.content)))
	head := binary.AppendUvarint(nil, uint64(s.Dict))
	head = append(head, flags, byte(headBits))
	head = binary.AppendUvarint(head, uint64(len(b.chunks)))
	for _, c := range b.chunks {
		head = binary.AppendUvarint(append(head, c.control), uint64(c.size))
		if c.control >= chunkCompressed|chunkProperties {
			head = append(head, c.properties)
		}
	}
	var c coder
	c.encode(head)
	size := int64(len(b.content))
	k := &walk{w: newWindow(s.Dict, size), content: bytes.NewReader(b.content), end: size}
	k.g = newGuide(&c, k.w, old.history(), size, headBits)
	tokens := b.tokens
	for i, ch := range b.chunks {
		if i == 0 || ch.control == chunkEnd {
			k.block(b.chunks[i:])
			if ch.control == chunkEnd {
				continue
			}
		}
		err := k.load(ch.size, func() {})
		ok := false
		if err == nil {
			tokens, ok = k.describe(ch, tokens)
		}
		if !ok {
			return nil, errLZMA
		}
	}
	k.g.trained()
	out := &Described{Recipe: c.finish(), Plain: b.content, Used: b.used}
	if s.X86 {
		f := newX86(false)
		f.run(b.content)
	}
	return out, nil
}
