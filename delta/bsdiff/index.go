package bsdiff

import "math/bits"

// An index answers where the longest match of a string in a text is: a suffix
// array, and a table by the first two bytes that saves the first half of every
// binary search.
type index struct {
	text []byte
	sa   []int32
	// The suffixes that begin with the bytes a, b are sa[start[a<<8|b]:start[a<<8|b+1]].
	// The last suffix, a single byte c, counts as c, 0 and is the first of these.
	start []int32
	last  int
}

func newIndex(text []byte) *index {
	x := &index{text: text, sa: suffixArray(text)}
	if len(text) < 2 {
		return x
	}
	x.start = make([]int32, 1<<16+1)
	v := int(text[0])
	for _, c := range text[1:] {
		v = v<<8&0xff00 | int(c)
		x.start[v+1]++
	}
	x.last = int(text[len(text)-1]) << 8
	x.start[x.last+1]++
	for i := range 1 << 16 {
		x.start[i+1] += x.start[i]
	}
	return x
}

// longest returns a position and the length of a longest match of a prefix of p. Of
// several it returns the one that is next to want, within what a look at a few
// neighbours shows.
func (x *index) longest(p []byte, want int) (pos, n int) {
	if len(p) < 2 || len(x.text) < 2 {
		return 0, 0 // a match of one byte is of no use
	}
	v := int(p[0])<<8 | int(p[1])
	first, end := int(x.start[v]), int(x.start[v+1])
	if v == x.last {
		first++
	}
	if first >= end {
		return 0, 0
	}
	lo, hi := first, end
	// Invariant: suffixes before lo are below p and share l bytes with it, those from
	// hi on are above and share h bytes.
	l, h := 2, 2
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		k := min(l, h)
		s := x.text[x.sa[m]:]
		k += matchLen(s[k:], p[k:])
		if k == len(p) {
			return x.nearest(m, p, k, want), k
		}
		if k == len(s) || s[k] < p[k] {
			lo, l = m+1, k
		} else {
			hi, h = m, k
		}
	}
	best := lo - 1
	n = l
	if lo == first || h > l && hi < end {
		best, n = hi, h
	}
	return x.nearest(best, p, n, want), n
}

// nearest looks at the neighbours of sa[i] that match n bytes of p too and returns
// the position that is next to want: where old and new run in parallel, and
// repeated content offers a choice, that costs the least to say.
func (x *index) nearest(i int, p []byte, n, want int) int {
	const look = 16
	best := int(x.sa[i])
	if n > 4096 {
		return best
	}
	for j := i - 1; j >= 0 && j >= i-look; j-- {
		q := int(x.sa[j])
		if len(x.text)-q < n || matchLen(x.text[q:q+n], p[:n]) < n {
			break
		}
		if abs(q-want) < abs(best-want) {
			best = q
		}
	}
	for j := i + 1; j < len(x.sa) && j <= i+look; j++ {
		q := int(x.sa[j])
		if len(x.text)-q < n || matchLen(x.text[q:q+n], p[:n]) < n {
			break
		}
		if abs(q-want) < abs(best-want) {
			best = q
		}
	}
	return best
}

func abs(x int) int {
	if x < 0 {
		return -x
	}
	return x
}

// matchLen returns how many leading bytes of a and b are equal.
func matchLen(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if d := load64(a[i:]) ^ load64(b[i:]); d != 0 {
			return i + bits.TrailingZeros64(d)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

func load64(b []byte) uint64 {
	_ = b[7]
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}
