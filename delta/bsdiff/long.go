package bsdiff

import (
	"context"
	"math/bits"
	"slices"
)

// Sources beyond the window are too much for one suffix array. They are matched in
// two steps:
//
//  1. Long equal stretches, wherever they are, by the sums of the sources' blocks
//     and a rolling sum over the new file (as rsync does it, in memory of a few
//     bytes per block). What changed between versions of a disk image or a
//     database lies between such stretches.
//  2. The gaps between them, against the source text around the ends of the
//     stretches: gaps are collected until that text fills a window, which is
//     then indexed as a whole.
const (
	blockSize  = 1 << 10 // least block whose sum is kept
	maxBlocks  = 1 << 22 // blocks grow with the sources beyond this
	granule    = 16 << 10
	gapPiece   = 8 << 20 // a longer gap is matched in pieces
	groupBytes = 32 << 20
	maxAround  = 256 << 10 // source text taken on each side of a gap's ends
)

// longDiff is Diff for sources that exceed the window.
func longDiff(ctx context.Context, new []byte, t *text, window int) ([]region, error) {
	long, err := stretches(ctx, new, t)
	if err != nil {
		return nil, err
	}
	m := gapMatcher{ctx: ctx, new: new, text: t, window: window}
	at, diagonal := 0, 0 // end of the last stretch, and its source position
	for i := 0; i <= len(long); i++ {
		next := region{new: len(new), old: t.size}
		if i < len(long) {
			next = long[i]
		}
		m.gap(at, next.new, diagonal, next.old, i > 0, i < len(long))
		if i < len(long) {
			m.out = append(m.out, next)
			at, diagonal = next.new+next.n, next.old+next.n
		}
		if m.pending >= groupBytes {
			if err := m.flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := m.flush(); err != nil {
		return nil, err
	}
	slices.SortFunc(m.out, func(a, b region) int { return a.new - b.new })
	return m.out, nil
}

// A text is the address space of several sources.
type text struct {
	parts  [][]byte
	starts []int
	size   int
}

func newText(parts [][]byte) *text {
	t := &text{parts: parts}
	for _, p := range parts {
		t.starts = append(t.starts, t.size)
		t.size += len(p)
	}
	return t
}

// part returns the part that holds the byte at pos.
func (t *text) part(pos int) int {
	i, found := slices.BinarySearch(t.starts, pos)
	if !found {
		i--
	}
	for len(t.parts[i]) == 0 { // parts without bytes start at the same position
		i++
	}
	return i
}

// from returns the text at pos up to the end of its part; nil outside.
func (t *text) from(pos int) []byte {
	if pos < 0 || pos >= t.size {
		return nil
	}
	i := t.part(pos)
	return t.parts[i][pos-t.starts[i]:]
}

// appendTo appends the text of [from, to).
func (t *text) appendTo(b []byte, from, to int) []byte {
	for from < to {
		p := t.from(from)
		p = p[:min(len(p), to-from)]
		b = append(b, p...)
		from += len(p)
	}
	return b
}

// match returns how many bytes from pos on equal p.
func (t *text) match(pos int, p []byte) int {
	n := 0
	for len(p) > n {
		o := t.from(pos + n)
		m := matchLen(o, p[n:])
		n += m
		if m == 0 || m < len(o) {
			break
		}
	}
	return n
}

// matchBack returns how many bytes before pos equal the end of p.
func (t *text) matchBack(pos int, p []byte) int {
	n := 0
	for n < len(p) && n < pos {
		if t.from(pos - n - 1)[0] != p[len(p)-1-n] {
			break
		}
		n++
	}
	return n
}

const sumPrime = 0x9e3779b97f4a7c15

// stretches finds equal stretches of new and text of about two blocks and more.
func stretches(ctx context.Context, new []byte, t *text) ([]region, error) {
	size := blockSize
	for t.size/size > maxBlocks {
		size *= 2
	}
	if len(new) < size {
		return nil, nil
	}
	table := newBlockTable(t, size)
	power := uint64(1) // of sumPrime, for the byte that leaves the block
	for range size {
		power *= sumPrime
	}
	var out []region
	end := 0 // of the last stretch
	for at := 0; at+size <= len(new); {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		sum := blockSum(new[at : at+size])
		// Roll until a block of the text is found, or it is time to look at ctx.
		stop := min(at+16<<20, len(new)-size)
		pos, ok := table.find(t, sum, new[at:at+size])
		for !ok && at < stop {
			sum = sum*sumPrime + uint64(new[at+size]) - uint64(new[at])*power
			at++
			pos, ok = table.find(t, sum, new[at:at+size])
		}
		if !ok {
			at++
			continue
		}
		back := t.matchBack(pos, new[end:at])
		r := region{new: at - back, old: pos - back}
		r.n = back + size + t.match(pos+size, new[at+size:])
		out = append(out, r)
		end = r.new + r.n
		at = end
		// Changes within a parallel run: go on at once on the same diagonal.
		for skip := 1; skip <= 64 && end+skip < len(new); skip++ {
			n := t.match(r.old+r.n+skip, new[end+skip:])
			if n >= size {
				out = append(out, region{new: end + skip, old: r.old + r.n + skip, n: n})
				at = end + skip + n
				r = out[len(out)-1]
				end, skip = at, 0
			}
		}
	}
	return out, nil
}

func blockSum(b []byte) uint64 {
	sum := uint64(0)
	for _, c := range b {
		sum = sum*sumPrime + uint64(c)
	}
	return sum
}

// A blockTable finds the first block of a text by its sum.
type blockTable struct {
	size  int
	shift int
	slots []blockSlot
	seen  []uint64 // bits of sums that there are: most lookups end here
}

type blockSlot struct {
	tag   uint32
	block uint32 // number + 1
}

func newBlockTable(t *text, size int) *blockTable {
	n := t.size/size + len(t.parts)
	b := &blockTable{size: size, shift: 64 - bits.Len(uint(n*2))}
	b.slots = make([]blockSlot, 1<<(64-b.shift))
	b.seen = make([]uint64, max(1, len(b.slots)*8/64))
	for pos := 0; pos+size <= t.size; pos += size {
		p := t.from(pos)
		if len(p) < size {
			continue // across a border
		}
		sum := mix(blockSum(p[:size]))
		b.seen[sum>>6%uint64(len(b.seen))] |= 1 << (sum & 63)
		for i := sum >> b.shift; ; i = (i + 1) % uint64(len(b.slots)) {
			s := &b.slots[i]
			if s.block == 0 {
				*s = blockSlot{uint32(sum), uint32(pos/size) + 1}
				break
			}
			if s.tag == uint32(sum) {
				break // the first of equal blocks
			}
		}
	}
	return b
}

// mix spreads a sum over all bits.
func mix(x uint64) uint64 {
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	return x ^ x>>32
}

// find returns the position of the block that equals p, whose sum is given.
func (b *blockTable) find(t *text, sum uint64, p []byte) (int, bool) {
	sum = mix(sum)
	if b.seen[sum>>6%uint64(len(b.seen))]&(1<<(sum&63)) == 0 {
		return 0, false
	}
	for i := sum >> b.shift; ; i = (i + 1) % uint64(len(b.slots)) {
		s := b.slots[i]
		if s.block == 0 {
			return 0, false
		}
		if s.tag == uint32(sum) {
			pos := int(s.block-1) * b.size
			return pos, t.match(pos, p) == len(p)
		}
	}
}

// A gapMatcher matches what lies between long stretches.
type gapMatcher struct {
	ctx     context.Context
	new     []byte
	text    *text
	window  int
	out     []region
	gaps    []gap
	pending int // bytes of the gaps
	pages   map[int]bool
}

// A gap is a piece of the new file, and where the source would go on for it.
type gap struct {
	from, to int
	old      int
}

// gap adds the gap [from, to) between source positions before and after.
func (m *gapMatcher) gap(from, to, before, after int, hasBefore, hasAfter bool) {
	if n := to - from; hasBefore && hasAfter && before+n == after && n <= 64 {
		m.out = append(m.out, region{from, before, n}) // a few changed bytes
		return
	}
	total := to - from
	around := min(maxAround, m.window/64)
	for at := from; at < to; {
		n := min(to-at, gapPiece)
		old := before + (at - from)
		if !hasBefore && !hasAfter {
			// Nothing is known: what lies at the same fraction of the text.
			old = int(float64(at) / float64(len(m.new)) * float64(m.text.size))
			m.add(old-m.window/8, old+n+m.window/8)
		} else {
			if hasBefore {
				m.add(old-around, old+n+around)
			} else {
				old = after - (to - at)
			}
			if hasAfter {
				m.add(after-(to-at)-around, after-(to-at)+n+around)
			}
			if total <= gapPiece && hasBefore && hasAfter && after-before > 0 && after-before <= 4*total+around {
				m.add(before, after)
			}
		}
		m.gaps = append(m.gaps, gap{at, at + n, min(max(old, 0), m.text.size)})
		m.pending += n
		at += n
		if len(m.pages)*granule >= m.window/2 {
			// The error, if any, is that of the context: the caller's flush returns it.
			m.flush()
		}
	}
}

// add takes source text into the next window.
func (m *gapMatcher) add(from, to int) {
	if m.pages == nil {
		m.pages = map[int]bool{}
	}
	for p := max(from, 0) / granule; p*granule < min(to, m.text.size) && len(m.pages)*granule < m.window; p++ {
		m.pages[p] = true
	}
}

// flush matches the gaps collected so far.
func (m *gapMatcher) flush() error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	var pages []int
	for p := range m.pages {
		pages = append(pages, p)
	}
	slices.Sort(pages)
	var local []byte
	var starts, olds []int // of each page in local and in the text
	for _, p := range pages {
		starts = append(starts, len(local))
		olds = append(olds, p*granule)
		local = m.text.appendTo(local, p*granule, min((p+1)*granule, m.text.size))
	}
	x := newIndex(local)
	for _, g := range m.gaps {
		// Where the source goes on, in local terms.
		at := 0
		if i, ok := slices.BinarySearch(olds, g.old/granule*granule); ok {
			at = starts[i] + g.old%granule
		}
		regions, err := match(m.ctx, x, m.new[g.from:g.to], min(at, len(local)))
		if err != nil {
			return err
		}
		for _, r := range regions {
			r.new += g.from
			for r.n > 0 { // split where pages are no neighbours
				i, found := slices.BinarySearch(starts, r.old)
				if !found {
					i--
				}
				j := i
				for j+1 < len(olds) && olds[j+1] == olds[j]+granule {
					j++
				}
				end := len(local)
				if j+1 < len(starts) {
					end = starts[j+1]
				}
				n := min(r.n, end-r.old)
				m.out = append(m.out, region{r.new, olds[i] + r.old - starts[i], n})
				r.new, r.old, r.n = r.new+n, r.old+n, r.n-n
			}
		}
	}
	m.gaps, m.pages, m.pending = nil, nil, 0
	return nil
}
