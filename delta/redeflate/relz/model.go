package relz

// A Token is one decision of an LZMA encoder.
type Token struct {
	Kind Kind
	Len  uint32 // bytes that it stands for
	Dist uint32 // distance less one; of a repeated match the repeated distance
}

// Kind is the kind of a Token.
type Kind uint8

const (
	Literal Kind = iota
	Match        // a match with its distance
	Short        // one byte at the last distance
	Rep0         // a match at the last distance
	Rep1         // at the one before, and so on
	Rep2
	Rep3
	kinds
)

// The numbers of LZMA as its specification (in the LZMA SDK) has them.
const (
	states    = 12
	maxLength = 273
	minLength = 2
	posSlots  = 64
	alignBits = 4
	probInit  = 1 << 10
	probBits  = 11
	moveBits  = 5
	litSize   = 0x300
)

type prob = uint16

func setup(p []prob) {
	for i := range p {
		p[i] = probInit
	}
}

// lengthModel holds the probabilities of lengths.
type lengthModel struct {
	choice, choice2 prob
	low, mid        [16][8]prob
	high            [256]prob
}

func (l *lengthModel) reset() {
	l.choice, l.choice2 = probInit, probInit
	for i := range l.low {
		setup(l.low[i][:])
		setup(l.mid[i][:])
	}
	setup(l.high[:])
}

// model holds what the LZMA coder has learned, and where it is.
type model struct {
	lc, lp, pb uint

	state int
	reps  [4]uint32

	isMatch, isRep0Long        [states][16]prob
	isRep, isRep0, isRep1, is2 [states]prob
	slots                      [4][posSlots]prob
	special                    [14][64]prob
	align                      [1 << alignBits]prob
	literal                    []prob
	matchLen, repLen           lengthModel
}

// setProperties takes the byte that holds lc, lp and pb.
func (m *model) setProperties(b byte) bool {
	if b >= 9*5*5 {
		return false
	}
	m.lc, m.lp, m.pb = uint(b%9), uint(b/9%5), uint(b/45)
	return m.lc+m.lp <= 4
}

func (m *model) reset() {
	m.state, m.reps = 0, [4]uint32{}
	for i := range states {
		setup(m.isMatch[i][:])
		setup(m.isRep0Long[i][:])
	}
	setup(m.isRep[:])
	setup(m.isRep0[:])
	setup(m.isRep1[:])
	setup(m.is2[:])
	for i := range m.slots {
		setup(m.slots[i][:])
	}
	for i := range m.special {
		setup(m.special[i][:])
	}
	setup(m.align[:])
	if n := litSize << (m.lc + m.lp); len(m.literal) != n {
		m.literal = make([]prob, n)
	}
	setup(m.literal)
	m.matchLen.reset()
	m.repLen.reset()
}

// tree codes n bits, the highest first, each in the context of those before.
func tree(c *coder, p []prob, v uint32, n uint) uint32 {
	m := uint32(1)
	for i := n; i > 0; i-- {
		m = m<<1 | c.bit(&p[m], v>>(i-1)&1)
	}
	return m - 1<<n
}

// reverseTree is tree with the lowest bit first.
func reverseTree(c *coder, p []prob, v uint32, n uint) uint32 {
	m, out := uint32(1), uint32(0)
	for i := uint(0); i < n; i++ {
		b := c.bit(&p[m], v>>i&1)
		m = m<<1 | b
		out |= b << i
	}
	return out
}

func length(c *coder, l *lengthModel, n, posState uint32) uint32 {
	n -= minLength
	if c.bit(&l.choice, b2u(n >= 8)) == 0 {
		return minLength + tree(c, l.low[posState][:], n, 3)
	}
	if c.bit(&l.choice2, b2u(n >= 16)) == 0 {
		return minLength + 8 + tree(c, l.mid[posState][:], n-8, 3)
	}
	return minLength + 16 + tree(c, l.high[:], n-16, 8)
}

func b2u(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// slotOf returns the slot of a distance (less one): its two highest bits and
// their place.
func slotOf(d uint32) uint32 {
	if d < 4 {
		return d
	}
	n := uint32(0)
	for v := d; v > 3; v >>= 1 {
		n++
	}
	return 2*(n+1) + d>>n&1
}

func distance(c *coder, m *model, d, length uint32) uint32 {
	slot := tree(c, m.slots[min(length-minLength, 3)][:], slotOf(d), 6)
	if slot < 4 {
		return slot
	}
	n := uint(slot>>1 - 1)
	high := (2 | slot&1) << n
	low := d & (1<<n - 1)
	if slot < 14 {
		return high + reverseTree(c, m.special[slot][:], low, n)
	}
	high += c.direct(low>>alignBits, n-alignBits) << alignBits
	return high + reverseTree(c, m.align[:], low&(1<<alignBits-1), alignBits)
}

// literalByte codes one byte; matched is the byte at the last distance, which
// is looked at after a match only.
func literalByte(c *coder, m *model, pos uint32, previous, matched, b byte) byte {
	at := (pos&(1<<m.lp-1))<<m.lc + uint32(previous)>>(8-m.lc)
	p := m.literal[litSize*at:][:litSize]
	if m.state < 7 {
		return byte(tree(c, p, uint32(b), 8))
	}
	s, offset, mb := uint32(1), uint32(0x100), uint32(matched)
	for i := 7; i >= 0; i-- {
		mb <<= 1
		want := mb & offset
		bit := c.bit(&p[offset+want+s], uint32(b)>>i&1)
		s = s<<1 | bit
		if bit == 1 {
			offset &= want
		} else {
			offset &^= want
		}
	}
	return byte(s)
}

// code codes one token at pos, whose bytes for a literal are given: the byte
// before, the one at the last distance, and the byte itself.
func code(c *coder, m *model, t Token, pos uint32, previous, matched, b byte) (Token, byte) {
	posState := pos & (1<<m.pb - 1)
	if c.bit(&m.isMatch[m.state][posState], b2u(t.Kind != Literal)) == 0 {
		b = literalByte(c, m, pos, previous, matched, b)
		switch {
		case m.state < 4:
			m.state = 0
		case m.state < 10:
			m.state -= 3
		default:
			m.state -= 6
		}
		return Token{Literal, 1, 0}, b
	}
	next := func(literalBefore, matchBefore int) {
		if m.state < 7 {
			m.state = literalBefore
		} else {
			m.state = matchBefore
		}
	}
	if c.bit(&m.isRep[m.state], b2u(t.Kind != Match)) == 0 {
		n := length(c, &m.matchLen, uint32(t.Len), posState)
		d := distance(c, m, t.Dist, n)
		m.reps = [4]uint32{d, m.reps[0], m.reps[1], m.reps[2]}
		next(7, 10)
		return Token{Match, uint32(n), d}, 0
	}
	if c.bit(&m.isRep0[m.state], b2u(t.Kind > Rep0)) == 0 {
		if c.bit(&m.isRep0Long[m.state][posState], b2u(t.Kind == Rep0)) == 0 {
			next(9, 11)
			return Token{Short, 1, m.reps[0]}, 0
		}
		t.Kind = Rep0
	} else {
		r := &m.reps
		if c.bit(&m.isRep1[m.state], b2u(t.Kind > Rep1)) == 0 {
			t.Kind = Rep1
			r[0], r[1] = r[1], r[0]
		} else if c.bit(&m.is2[m.state], b2u(t.Kind > Rep2)) == 0 {
			t.Kind = Rep2
			r[0], r[1], r[2] = r[2], r[0], r[1]
		} else {
			t.Kind = Rep3
			r[0], r[1], r[2], r[3] = r[3], r[0], r[1], r[2]
		}
	}
	n := length(c, &m.repLen, uint32(t.Len), posState)
	next(8, 11)
	return Token{t.Kind, uint32(n), m.reps[0]}, 0
}
