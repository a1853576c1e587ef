package relz

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// A guide guesses the next decision of the encoder that made a stream, and
// codes how it was. It looks at what the encoder of an old stream did at the
// place that corresponds, and at the matches that are there to be had.
//
// It runs on both sides, so everything in it is a function of the bytes of the
// stream, of the history, and of the decisions so far.
type guide struct {
	c   *coder
	w   *window
	old *history // may be nil
	end int64    // of the stream; Zstandard's: of the block

	zstd    bool
	longest int  // match
	fresh   bool // Zstandard: no token of this block is known yet

	at    int64 // where the next decision is made
	reps  [4]uint32
	hits  uint32 // were the last guesses right, the last one in bit 0
	shape uint32 // were the last tokens matches, the last one in bit 0

	// What the stream had where, by the hash of so many bytes.
	heads     [len(headWidths)][]uint32
	headShift uint
	base      uint32 // what stands in heads and is not greater is of another stream

	// Alignment: new place less old place.
	shift, other int64
	aligned      bool
	nextMove     int
	scanned      int64
	moved        []int32 // alignment of each movedBlock bytes of the old stream, noMove if not seen
	cur          cursor

	priors               *Priors // with which all of these begin, or nil
	same, kind           []prob
	kindUse              []uint16 // for each group of 8 of kind: the use of this guide in which it was set up
	use                  uint16
	repExtra, oldExtra   lengthBits
	isOld, which, isMost []prob
	shorter, explicit    lengthBits
	slots                []prob // 64
}

var headWidths = [...]int{2, 3, 4, 5, 6, 8, 12, 16, 24}

const (
	movedBlock = 128
	noMove     = -1 << 31
	scanAhead  = 24
	grades     = 13 // of grade

	sameProbs  = int(kinds) * grades * 8 * 4 * grades
	kindProbs  = 3 * int(kinds) * grades * grades * grades * 4 * 8
	guideProbs = sameProbs + kindProbs + kindProbs/8 + 64<<10 // the others are few
)

// grade puts a length into one of few classes.
func grade(n int) int {
	switch {
	case n < 8:
		return n
	case n < 16:
		return 8 + (n-8)/4
	case n < 64:
		return 10
	case n < maxLength:
		return 11
	}
	return 12
}

// headMemory is what the tables of matches take.
func headMemory(headBits int, size int64) int64 {
	return int64(len(headWidths)-1)*4<<fitHeads(headBits, size) + 4<<16
}

// headBitsFor chooses the size of the tables. Twice or four times as large, they make the recipes of kernel
// modules 0.4 % smaller.
func headBitsFor(size int64) int {
	return max(min(defaultHeadBits, bits.Len64(uint64(size))-2), minHeadBits)
}

// fitHeads makes the tables of small streams small.
func fitHeads(headBits int, size int64) int {
	return min(headBits, max(bits.Len64(uint64(size)), minHeadBits))
}

func newGuide(c *coder, w *window, old *history, end int64, headBits int) *guide {
	g := new(guide)
	g.reset(c, w, old, end, headBits, false)
	return g
}

// reset makes a guide that knows nothing yet, in the memory that g has. The large tables are not
// cleared for that: to do so takes longer than to describe a small stream.
func (g *guide) reset(c *coder, w *window, old *history, end int64, headBits int, zstd bool) {
	before := *g
	*g = guide{c: c, w: w, old: old, end: end, zstd: zstd, longest: maxLength, base: before.base + uint32(before.at), use: before.use + 1}
	if zstd {
		g.longest = zstdLongest
	}
	forget := int64(g.base)+end > 1<<32-1
	if forget {
		g.base = 0
	}
	headBits = fitHeads(headBits, end)
	g.headShift = uint(64 - headBits)
	for i := range g.heads {
		n := 1 << headBits
		if headWidths[i] == 2 {
			n = 1 << 16
		}
		if g.heads[i] = before.heads[i]; cap(g.heads[i]) < n {
			g.heads[i] = make([]uint32, n)
		} else if forget {
			clear(g.heads[i][:cap(g.heads[i])])
		}
		g.heads[i] = g.heads[i][:n]
	}
	if old != nil {
		g.moved = cleared(before.moved, int(old.size/movedBlock+1))
		for i := range g.moved {
			g.moved[i] = noMove
		}
	}
	g.same = newProbs(before.same, sameProbs)
	if g.kind, g.kindUse = before.kind, before.kindUse; g.kind == nil || g.use == 0 {
		g.kind, g.kindUse, g.use = make([]prob, kindProbs), make([]uint16, kindProbs/8), 1
	}
	g.isOld = newProbs(before.isOld, 3*grades*grades)
	g.which = newProbs(before.which, 8*8*grades)
	g.isMost = newProbs(before.isMost, 8*grades)
	g.repExtra.reset(before.repExtra, 3*grades, zstd)
	g.oldExtra.reset(before.oldExtra, 3*grades*grades, zstd)
	g.shorter.reset(before.shorter, grades, zstd)
	g.explicit.reset(before.explicit, grades, zstd)
	g.slots = newProbs(before.slots, 64)
	if old != nil && old.priors.of(zstd) {
		g.priors = old.priors
		g.recall()
	}
}

// cleared returns n zeros, in b if that is large enough.
func cleared[T any](b []T, n int) []T {
	if cap(b) < n {
		return make([]T, n)
	}
	b = b[:n]
	clear(b)
	return b
}

// newProbs returns n probabilities that have learned nothing, in p if that is large enough.
func newProbs(p []prob, n int) []prob {
	if cap(p) < n {
		p = make([]prob, n)
	}
	p = p[:n]
	setup(p)
	return p
}

// lengthBits codes small numbers by their number of bits, then the bits.
type lengthBits struct {
	p    []prob
	most uint // bits
	half int  // of the probabilities of a context
}

func (l *lengthBits) reset(before lengthBits, contexts int, zstd bool) {
	if l.most, l.half = 15, 16; zstd {
		l.most, l.half = 17, 18
	}
	l.p = newProbs(before.p, contexts*2*l.half)
}

func (l *lengthBits) code(c *coder, context int, v uint32) uint32 {
	p := l.p[context*2*l.half:][:2*l.half]
	n := uint(bits.Len32(v+1)) - 1
	k := uint(0)
	for k < l.most && c.bit(&p[k], b2u(k < n)) == 1 {
		k++
	}
	out := uint32(1)
	for i := k; i > 0; i-- {
		b := (v + 1) >> (i - 1) & 1
		if i == k {
			b = c.bit(&p[l.half+int(k)], b)
		} else {
			b = c.direct(b, 1)
		}
		out = out<<1 | b
	}
	return out - 1
}

// matchAt returns how long the match at a distance (less one) is, or 0 if that
// is out of reach.
func (g *guide) matchAt(dist int64) int {
	if dist < 0 || g.at-1-dist < max(g.w.start, g.w.floor) || dist >= int64(g.w.keep) {
		return 0
	}
	n := int(min(g.end-g.at, int64(g.longest)))
	a, b := g.w.at(g.at), g.w.at(g.at-1-dist)
	i := 0
	for i < n {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			i += bits.TrailingZeros64(x) / 8
			break
		}
		i += 8
	}
	return min(i, n)
}

// What the hashes of all widths are made of: the first bytes of a and b, which stand behind
// one another, without those that are shifted out. These are small enough to be inlined,
// which makes advance a quarter faster than one function for all hashes does.
const (
	headMul1 = 0x9e3779b97f4a7c15
	headMul2 = 0xc2b2ae3d27d4eb4f
	headMul3 = 0x165667b19e3779f9
)

func headHash8(a uint64, out uint) uint64 { return a << out * headMul1 }

func headHash16(a, b uint64, out uint) uint64 {
	return a*headMul1 ^ bits.RotateLeft64(b<<out*headMul2, 31)
}

// headWords returns the bytes that hashes are made of.
func headWords(p []byte) (a, b, c uint64) {
	p = p[:24:24]
	return binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(p[16:])
}

// lastPlaces returns the last places at which the bytes of p stood, by width, plus one and base; not
// greater than base where they did not.
func (g *guide) lastPlaces(p []byte) [len(headWidths)]uint32 {
	a, b, c := headWords(p)
	t, s := &g.heads, g.headShift&63
	return [...]uint32{
		t[0][a&0xffff],
		t[1][headHash8(a, 40)>>s],
		t[2][headHash8(a, 32)>>s],
		t[3][headHash8(a, 24)>>s],
		t[4][headHash8(a, 16)>>s],
		t[5][headHash8(a, 0)>>s],
		t[6][headHash16(a, b, 32)*headMul3>>s],
		t[7][headHash16(a, b, 0)*headMul3>>s],
		t[8][(headHash16(a, b, 0)+c*headMul3)*headMul3>>s],
	}
}

// advance moves to the next decision, n bytes on.
func (g *guide) advance(n int) {
	to := g.at + int64(n)
	p := g.w.at(g.at)
	pos := g.base + uint32(g.at)
	t, s := &g.heads, g.headShift&63
	for i := range n {
		a, b, c := headWords(p[i:])
		pos++
		t[0][a&0xffff] = pos
		t[1][headHash8(a, 40)>>s] = pos
		t[2][headHash8(a, 32)>>s] = pos
		t[3][headHash8(a, 24)>>s] = pos
		t[4][headHash8(a, 16)>>s] = pos
		t[5][headHash8(a, 0)>>s] = pos
		t[6][headHash16(a, b, 32)*headMul3>>s] = pos
		t[7][headHash16(a, b, 0)*headMul3>>s] = pos
		t[8][(headHash16(a, b, 0)+c*headMul3)*headMul3>>s] = pos
	}
	if g.aligned {
		for q := g.at - g.shift; q < to-g.shift; q += movedBlock {
			if b := q / movedBlock; q >= 0 && b < int64(len(g.moved)) {
				g.moved[b] = int32(g.shift)
			}
		}
	}
	g.at = to
}

// align looks for places of the old stream that read like what is ahead.
func (g *guide) align() {
	if m := g.old.moves; m != nil {
		for g.nextMove < len(m) && m[g.nextMove].New <= g.at {
			g.shift, g.aligned = m[g.nextMove].New-m[g.nextMove].Old, true
			g.nextMove++
		}
		return
	}
	stop := min(g.at+scanAhead, g.end)
	if g.scanned < g.at {
		g.scanned = g.at
	}
	p := g.w.at(g.scanned)
	for i := 0; g.scanned < stop; i++ {
		if hash, ok := anchorHash(p[i:]); ok {
			if q := g.old.find(hash); q >= 0 {
				shift := g.scanned - q
				if !g.aligned || shift != g.shift {
					if !g.aligned || shift == g.other {
						g.shift, g.aligned = shift, true
					}
					g.other = shift
				} else {
					g.other = shift
				}
			}
		}
		g.scanned++
	}
}

// oldDistance translates a distance at an old place into the one that leads to
// the corresponding new place, or -1.
func (g *guide) oldDistance(q int64, dist uint32) int64 {
	from := q - 1 - int64(dist)
	if from < 0 {
		return -1
	}
	shift := g.moved[from/movedBlock]
	if shift == noMove {
		return -1
	}
	return g.at - 1 - (from + int64(shift))
}

// candidate is a match that can be had.
type candidate struct {
	dist int64 // less one
	n    int
}

// candidates returns matches by rising distance and length, none without use.
func (g *guide) candidates(hint int64, out []candidate) []candidate {
	add := func(dist int64) {
		for _, c := range out {
			if c.dist == dist {
				return
			}
		}
		if n := g.matchAt(dist); n >= minLength {
			out = append(out, candidate{dist, n})
		}
	}
	if hint >= 0 {
		add(hint)
	}
	for _, h := range g.lastPlaces(g.w.at(g.at)) {
		if h > g.base {
			add(g.at - int64(h-g.base))
		}
	}
	slices.SortFunc(out, func(a, b candidate) int { return int(a.dist - b.dist) })
	n, best := 0, 1
	for _, c := range out {
		if c.n > best {
			out[n] = c
			n++
			best = c.n
		}
	}
	return out[:n]
}

// next codes the next decision; when decoding, t is ignored. limit is how many
// bytes it may stand for. It returns false if the decision is impossible.
func (g *guide) next(t Token, limit int) (Token, bool) {
	c := g.c
	sync, guess, hint := 0, Token{}, int64(-1)
	guessLen, reach := 0, 0
	if g.old != nil {
		g.align()
		if g.aligned {
			q := g.at - g.shift
			if o := &g.cur; g.old.seek(o, q) {
				sync = 1
				guess = Token{Kind: o.kind}
				guessLen = int(o.length)
				if o.kind == Literal {
					guessLen = 1
				} else if o.start != q {
					sync = 2
					guessLen -= int(q - o.start)
				}
				switch {
				case o.kind == Literal:
				case o.kind == Match:
					hint = g.oldDistance(q, o.dist)
				case sync == 2:
				case o.kind <= Rep0:
					hint = int64(g.reps[0])
				default:
					hint = int64(g.reps[o.kind-Rep0])
				}
			}
		}
	}
	r0 := g.matchAt(int64(g.reps[0]))
	valid := 0
	if sync > 0 && guess.Kind == Literal {
		valid = 1
	} else if sync > 0 && hint >= 0 {
		reach = g.matchAt(hint)
		switch {
		case reach < min(guessLen, 2):
		case reach == guessLen:
			valid = 1
		case reach < guessLen:
			valid = 2
		default:
			valid = 3
		}
	}
	if sync == 1 {
		context := (((int(guess.Kind)*grades+grade(guessLen))*8+int(g.hits&7))*4+valid)*grades + grade(r0)
		g.hits <<= 1
		possible := guessLen <= limit && (guess.Kind == Literal || hint >= 0) && (!g.zstd || g.zstdMay(guess.Kind))
		is := t.Kind == guess.Kind && int(t.Len) == guessLen && (t.Kind == Literal || int64(t.Dist) == hint) && possible
		if possible && c.bit(&g.same[context], b2u(is)) == 1 {
			g.hits |= 1
			t = Token{guess.Kind, uint32(guessLen), uint32(max(hint, 0))}
			return g.took(t)
		}
	} else {
		g.hits <<= 1
	}

	var space [len(headWidths) + 1]candidate
	list := g.candidates(hint, space[:0])
	best := 1
	if len(list) > 0 {
		best = list[len(list)-1].n
	}
	longest := r0
	for _, d := range g.reps[1:] {
		longest = max(longest, g.matchAt(int64(d)))
	}
	context := ((((sync*int(kinds)+int(guess.Kind))*grades+grade(r0))*grades+grade(best))*grades+grade(longest))*4 + int(g.shape&3)
	kind := g.kind[context*8:][:8]
	if g.kindUse[context] != g.use {
		g.kindUse[context] = g.use
		if g.priors == nil || copy(kind, g.priors.group(context)) == 0 {
			setup(kind)
		}
	}
	t.Kind = Kind(tree(c, kind, uint32(t.Kind), 3))
	switch {
	case t.Kind >= kinds:
		return t, false
	case t.Kind == Literal:
		t.Len, t.Dist = 1, 0
	case t.Kind == Short:
		t.Len, t.Dist = 1, g.reps[0]
	case t.Kind >= Rep0:
		t.Dist = g.reps[t.Kind-Rep0]
		n := g.matchAt(int64(t.Dist))
		less := g.repExtra.code(c, grade(n)*3+sync, uint32(n-int(t.Len)))
		t.Len = g.length(int64(n) - int64(less))
	default:
		var ok bool
		if t, ok = g.match(t, list, hint, valid, reach, sync, best); !ok {
			return t, false
		}
	}
	if int64(t.Len) > int64(limit) || int64(t.Len) > int64(g.longest) || t.Len < minLength && t.Kind != Literal && t.Kind != Short {
		return t, false
	}
	return g.took(t)
}

// length is a length that follows from that of a match. An LZMA chunk that resets the state also forgets the last distances,
// which a guide does not know: then what it says of a repeated match is wrong, and the difference one of
// 16 bits.
func (g *guide) length(n int64) uint32 {
	if g.zstd {
		return uint32(n)
	}
	return uint32(uint16(n))
}

// match codes distance and length of a match that was not guessed.
func (g *guide) match(t Token, list []candidate, hint int64, valid, reach, sync, best int) (Token, bool) {
	c := g.c
	if hint >= 0 && valid > 0 {
		context := (grade(reach)*3+sync)*grades + grade(best)
		if c.bit(&g.isOld[context], b2u(int64(t.Dist) == hint)) == 1 {
			less := g.oldExtra.code(c, context, uint32(reach-int(t.Len)))
			t.Dist, t.Len = uint32(hint), g.length(int64(reach)-int64(less))
			return t, true
		}
	}
	// The longest are the likeliest.
	for i := len(list) - 1; i >= 0; i-- {
		rank := len(list) - 1 - i
		m := list[i]
		if c.bit(&g.which[(min(rank, 7)*8+min(len(list)-1, 7))*grades+grade(best)], b2u(int64(t.Dist) == m.dist)) == 0 {
			continue
		}
		t.Dist = uint32(m.dist)
		if c.bit(&g.isMost[min(rank, 7)*grades+grade(m.n)], b2u(int(t.Len) == m.n)) == 1 {
			t.Len = uint32(m.n)
			return t, true
		}
		less := g.shorter.code(c, grade(m.n), uint32(m.n-1-int(t.Len)))
		t.Len = g.length(int64(m.n) - 1 - int64(less))
		return t, true
	}
	n := tree(c, g.slots, uint32(bits.Len32(t.Dist)), 6)
	if n > 32 {
		return t, false
	}
	d := uint32(0)
	if n > 0 {
		d = 1<<(n-1) | c.direct(t.Dist&(1<<(n-1)-1), uint(n-1))
	}
	t.Dist = d
	reach = g.matchAt(int64(d))
	less := g.explicit.code(c, grade(reach), uint32(reach-int(t.Len)))
	t.Len = g.length(int64(reach) - int64(less))
	return t, true
}

// took notes a decision.
func (g *guide) took(t Token) (Token, bool) {
	if g.zstd {
		if !g.zstdMay(t.Kind) {
			return t, false
		}
		g.zstdRepeat(t)
	} else {
		g.repeat(t)
	}
	g.shape <<= 1
	if t.Kind != Literal {
		g.shape |= 1
	}
	g.advance(int(t.Len))
	return t, true
}

// repeat brings the last distances up to date.
func (g *guide) repeat(t Token) {
	r := &g.reps
	switch t.Kind {
	case Match:
		*r = [4]uint32{t.Dist, r[0], r[1], r[2]}
	case Rep1:
		r[0], r[1] = r[1], r[0]
	case Rep2:
		r[0], r[1], r[2] = r[2], r[0], r[1]
	case Rep3:
		r[0], r[1], r[2], r[3] = r[3], r[0], r[1], r[2]
	}
}
