package relz

import (
	"encoding/binary"
	"math/bits"
)

// A history remembers the decisions in an old stream by where they were made,
// and finds places in it that read like a place in the new one.
type history struct {
	size int64
	// For each match, and each run of literals:
	//
	//	byte     kind<<5 | length, shortLength and more as uvarint of the rest
	//	uvarint  distance, of a match with one of its own
	//
	// A kernel has one such token in 11 bytes and a distance in 37.
	tokens []byte
	run    int64 // literals that are not in tokens yet
	full   bool  // tokens is as long as it may be: nothing is remembered any more
	// For each block of historyBlock bytes, the first token that begins in it or behind it.
	blocks []blockStart

	moves   []Move // where the content is in the new stream; if nil that is found out by
	anchors []anchor
	shift   uint

	spare *window // for the next one to use

	priors *Priors // or nil
	train  bool
}

type blockStart struct{ token, start uint32 }

// An anchor is a place at which the next anchorWidth bytes have the hash.
type anchor struct {
	hash uint32
	pos  uint32 // plus one
}

const (
	historyBlock = 512
	shortLength  = 31
	anchorWidth  = 16
	anchorSample = 32
	maxHistory   = 1 << 31

	// Tokens take at most one byte for so many of the stream. A kernel's take one for 6.
	tokenBytes = 5
	longToken  = 16 // the most that one takes, with the run before it
	slack      = 64 << 10
)

// historyMemory is what a history of size bytes takes, with what a guide keeps
// for it.
func historyMemory(size int64, moves bool) int64 {
	need := size/tokenBytes + slack + 8*(size/historyBlock+1) + 4*(size/movedBlock+1)
	if !moves {
		need += 8 << anchorBits(size)
	}
	return need
}

func anchorBits(size int64) int { return bits.Len64(uint64(size / anchorSample)) }

func newHistory(size int64, moves []Move) *history {
	h := &history{size: size, moves: moves}
	if moves == nil {
		slots := anchorBits(size)
		h.anchors = make([]anchor, 1<<slots)
		h.shift = uint(64 - slots)
	}
	// As much as is ever needed, so that nothing is moved while it grows. What is not
	// used is never touched.
	h.tokens = make([]byte, 0, size/tokenBytes+slack)
	h.blocks = make([]blockStart, 0, size/historyBlock+1)
	return h
}

// anchorHash returns a hash of the bytes at p and whether they are an anchor.
func anchorHash(p []byte) (uint64, bool) {
	a := binary.LittleEndian.Uint64(p) * 0x9e3779b97f4a7c15
	b := binary.LittleEndian.Uint64(p[8:]) * 0xc2b2ae3d27d4eb4f
	h := (a ^ bits.RotateLeft64(b, 31)) * 0x165667b19e3779f9
	return h, h>>20&(anchorSample-1) == 0
}

// token appends a decision.
func (h *history) token(pos int64, t Token) {
	if t.Kind == Literal {
		h.run += int64(t.Len)
		return
	}
	h.flush(pos)
	h.append(pos, t.Kind, int64(t.Len))
	if t.Kind == Match && !h.full {
		h.tokens = binary.AppendUvarint(h.tokens, uint64(t.Dist))
	}
}

// flush appends the literals that end at pos.
func (h *history) flush(pos int64) {
	if h.run > 0 {
		h.append(pos-h.run, Literal, h.run)
		h.run = 0
	}
}

func (h *history) append(pos int64, k Kind, n int64) {
	if h.full = h.full || len(h.tokens)+longToken > cap(h.tokens); h.full {
		return
	}
	for int64(len(h.blocks))*historyBlock <= pos {
		h.blocks = append(h.blocks, blockStart{uint32(len(h.tokens)), uint32(pos)})
	}
	h.tokens = append(h.tokens, byte(k)<<5|byte(min(n, shortLength)))
	if n >= shortLength {
		h.tokens = binary.AppendUvarint(h.tokens, uint64(n-shortLength))
	}
}

// content takes the places at p[:n] into the index; p goes on behind n.
func (h *history) content(pos int64, p []byte, n int) {
	if h.moves != nil {
		return
	}
	for i := range n {
		if hash, ok := anchorHash(p[i:]); ok {
			h.anchors[hash>>h.shift] = anchor{uint32(hash), uint32(pos+int64(i)) + 1}
		}
	}
}

// find returns the old place whose bytes are like those with this hash, or -1.
func (h *history) find(hash uint64) int64 {
	if a := h.anchors[hash>>h.shift]; a.hash == uint32(hash) && a.pos > 0 {
		return int64(a.pos) - 1
	}
	return -1
}

// A cursor is a token of a history: where it begins in the stream and in tokens, where
// the next one does, and what it is.
type cursor struct {
	start    int64
	at, next int
	kind     Kind
	length   int64
	dist     uint32
}

// read decodes the token that begins at c.at.
func (h *history) read(c *cursor) bool {
	if c.at >= len(h.tokens) {
		return false
	}
	v := h.tokens[c.at]
	c.next = c.at + 1
	c.kind, c.length = Kind(v>>5), int64(v&shortLength)
	if c.length == shortLength {
		n, k := binary.Uvarint(h.tokens[c.next:])
		c.length, c.next = c.length+int64(n), c.next+k
	}
	if c.kind == Match {
		d, k := binary.Uvarint(h.tokens[c.next:])
		c.dist, c.next = uint32(d), c.next+k
	}
	return true
}

// seek moves c to the token that covers pos.
func (h *history) seek(c *cursor, pos int64) bool {
	if pos < 0 || pos >= h.size {
		return false
	}
	if pos < c.start || pos-c.start > 2*historyBlock || c.next == 0 {
		b := min(int(pos/historyBlock), len(h.blocks)-1)
		for b > 0 && int64(h.blocks[b].start) > pos {
			b--
		}
		if b < 0 {
			return false
		}
		s := h.blocks[b]
		*c = cursor{start: int64(s.start), at: int(s.token)}
		if !h.read(c) {
			return false
		}
	}
	for pos >= c.start+c.length {
		c.start += c.length
		if c.at = c.next; !h.read(c) {
			*c = cursor{}
			return false
		}
	}
	return pos >= c.start
}
