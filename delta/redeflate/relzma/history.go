package relzma

import (
	"encoding/binary"
	"math/bits"
)

// A history remembers the decisions in an old stream by where they were made,
// and finds places in it that read like a place in the new one.
type history struct {
	size int64
	// For each match, and each run of literals, kind<<9 | length; for each match
	// with a distance of its own, that. For each block of historyBlock bytes, the first token that
	// begins in it or behind it, and where.
	tokens []uint16
	dists  []uint32
	blocks []blockStart

	anchors []anchor
	shift   uint

	spare *window // for the next one to use
}

type blockStart struct {
	token, dist uint32
	start       uint32
}

// An anchor is a place at which the next anchorWidth bytes have the hash.
type anchor struct {
	hash uint32
	pos  uint32 // plus one
}

const (
	historyBlock = 128
	maxRun       = 1<<9 - 1
	anchorWidth  = 16
	anchorSample = 64
	maxHistory   = 1 << 31

	// A history that has more than one token in tokenBytes bytes, or more than
	// one distance in distBytes, stops remembering: that bounds its memory. A
	// kernel has one in 11 and one in 37.
	tokenBytes = 8
	distBytes  = 16
	slack      = 64 << 10
)

// historyMemory is what a history of size bytes takes, with what a guide keeps
// for it.
func historyMemory(size int64) int64 {
	return 2*(size/tokenBytes+slack) + 4*(size/distBytes+slack) + 12*(size/historyBlock+1) +
		8<<anchorBits(size) + 4*(size/movedBlock+1)
}

func anchorBits(size int64) int { return bits.Len64(uint64(size / anchorSample)) }

func newHistory(size int64) *history {
	h := &history{size: size}
	slots := anchorBits(size)
	h.anchors = make([]anchor, 1<<slots)
	// As much as is ever needed, so that nothing is moved while it grows.
	h.tokens = make([]uint16, 0, size/tokenBytes+slack)
	h.dists = make([]uint32, 0, size/distBytes+slack)
	h.blocks = make([]blockStart, 0, size/historyBlock+1)
	h.shift = uint(64 - slots)
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
	if len(h.tokens) == cap(h.tokens) || len(h.dists) == cap(h.dists) {
		return
	}
	for int64(len(h.blocks))*historyBlock <= pos {
		h.blocks = append(h.blocks, blockStart{uint32(len(h.tokens)), uint32(len(h.dists)), uint32(pos)})
	}
	if t.Kind == Literal && len(h.tokens) > 0 {
		if last := &h.tokens[len(h.tokens)-1]; Kind(*last>>9) == Literal && *last < maxRun {
			*last++
			return
		}
	}
	h.tokens = append(h.tokens, uint16(t.Kind)<<9|t.Len)
	if t.Kind == Match {
		h.dists = append(h.dists, t.Dist)
	}
}

// content takes the places at p[:n] into the index; p goes on behind n.
func (h *history) content(pos int64, p []byte, n int) {
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

// A cursor is a token of a history.
type cursor struct {
	start       int64
	token, dist int
}

// seek moves c to the token that covers pos and returns it.
func (h *history) seek(c *cursor, pos int64) (t Token, ok bool) {
	if pos < 0 || pos >= h.size {
		return t, false
	}
	if pos < c.start || pos-c.start > 4*historyBlock {
		b := min(int(pos/historyBlock), len(h.blocks)-1)
		for b > 0 && int64(h.blocks[b].start) > pos {
			b--
		}
		if b < 0 {
			return t, false
		}
		s := h.blocks[b]
		*c = cursor{int64(s.start), int(s.token), int(s.dist)}
	}
	for c.token < len(h.tokens) {
		v := h.tokens[c.token]
		t.Kind, t.Len = Kind(v>>9), v&0x1ff
		if pos < c.start+int64(t.Len) {
			if t.Kind == Match {
				t.Dist = h.dists[c.dist]
			}
			return t, pos >= c.start
		}
		c.start += int64(t.Len)
		c.token++
		if t.Kind == Match {
			c.dist++
		}
	}
	return t, false
}
