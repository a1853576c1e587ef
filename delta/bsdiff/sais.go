package bsdiff

// Suffix sorting in linear time: induced sorting (SA-IS), after Nong, Zhang and
// Chan, "Two Efficient Algorithms for Linear Time Suffix Array Construction"
// (2011), with the marks kept in the sign bit as in Yuta Mori's sais-lite, so that
// no array of types is needed. Working memory besides the array itself is the
// buckets: the reduced problem and its text live in the unused part of the array.
//
// A suffix is S-type if it is smaller than the suffix that begins one byte later,
// otherwise L-type; an S-type suffix behind an L-type one is an LMS suffix. The
// end of the text is smaller than every byte.

// letter is what a text can consist of: bytes, or the names of a reduced problem.
type letter interface{ ~uint8 | ~int32 }

// suffixArray returns the start positions of all suffixes of text in ascending
// order. len(text) must be below 1<<31-1.
func suffixArray(text []byte) []int32 {
	sa := make([]int32, len(text))
	if len(text) > 1 {
		sortSuffixes(text, sa, len(text), 256)
	}
	return sa
}

// sortSuffixes fills sa[:n] for a text of n > 1 letters below k. What sa has beyond n
// is free to use.
func sortSuffixes[T letter](text []T, sa []int32, n, k int) {
	counts := make([]int32, k)
	for _, c := range text {
		counts[c]++
	}
	bucket := make([]int32, k)

	// 1. Sort the LMS substrings: put the LMS positions at the ends of their
	// buckets in any order, and induce.
	clear(sa[:n])
	bucketEnds(counts, bucket)
	eachLMS(text, func(i int) {
		c := text[i]
		bucket[c]--
		sa[bucket[c]] = int32(i)
	})
	induce(text, sa[:n], counts, bucket)

	// 2. Name them: equal substrings get equal names. The sorted LMS positions move to
	// sa[:m]; names are kept by position in sa[m:], which has room because two LMS
	// positions are never neighbours.
	m := 0
	for i := range n {
		p := int(sa[i])
		if isLMS(text, p) {
			sa[m] = int32(p)
			m++
		}
	}
	names := sa[m : m+n/2+1] // the last letter is no LMS position: m <= (n-1)/2
	clear(names)
	end := n
	eachLMS(text, func(i int) { // from right to left
		names[i>>1] = int32(end - i)
		end = i
	})
	name := int32(0)
	prev, prevLen := 0, -1
	for _, p32 := range sa[:m] {
		p := int(p32)
		l := int(names[p>>1])
		// One letter more than the distance to the next LMS position would be compared in
		// theory; equal distances and equal letters up to there imply it, except at
		// the end of the text, whose substring is unlike any other.
		same := l == prevLen && p+l < n && prev+l < n
		if same {
			for j := 0; j <= l; j++ {
				if text[p+j] != text[prev+j] {
					same = false
					break
				}
			}
		}
		if !same {
			name++
			prev, prevLen = p, l
		}
		names[p>>1] = name
	}

	// 3. Sort the LMS suffixes: by their names if these are unique, else by the suffix
	// array of the text of names, which is built at the end of sa.
	if int(name) < m {
		reduced := sa[len(sa)-m:]
		j := m - 1
		for i := len(names) - 1; i >= 0; i-- {
			if names[i] != 0 {
				reduced[j] = names[i] - 1
				j--
			}
		}
		sortSuffixes(reduced, sa[:len(sa)-m], m, int(name))
		j = m - 1
		eachLMS(text, func(i int) {
			reduced[j] = int32(i)
			j--
		})
		for i := range m {
			sa[i] = reduced[sa[i]]
		}
	}

	// 4. Induce everything from the sorted LMS suffixes.
	clear(sa[m:n])
	bucketEnds(counts, bucket)
	for i := m - 1; i >= 0; i-- {
		p := sa[i]
		sa[i] = 0
		c := text[p]
		bucket[c]--
		sa[bucket[c]] = p
	}
	induce(text, sa[:n], counts, bucket)
}

// eachLMS calls f with every LMS position, from right to left.
func eachLMS[T letter](text []T, f func(int)) {
	s := false
	next := text[len(text)-1]
	for i := len(text) - 2; i >= 0; i-- {
		c := text[i]
		if c < next || c == next && s {
			s = true
		} else if s {
			f(i + 1)
			s = false
		}
		next = c
	}
}

// isLMS reports whether p is an LMS position.
func isLMS[T letter](text []T, p int) bool {
	if p <= 0 || text[p-1] <= text[p] {
		return false
	}
	c := text[p]
	for _, d := range text[p+1:] {
		if d != c {
			return c < d
		}
	}
	return false
}

func bucketStarts(counts, bucket []int32) {
	sum := int32(0)
	for i, c := range counts {
		bucket[i] = sum
		sum += c
	}
}

func bucketEnds(counts, bucket []int32) {
	sum := int32(0)
	for i, c := range counts {
		sum += c
		bucket[i] = sum
	}
}

// induce sorts all suffixes from LMS suffixes that stand at the ends of their
// buckets in order (zero: no entry). A complemented entry is one that induces
// nothing in the pass under way.
func induce[T letter](text []T, sa, counts, bucket []int32) {
	n := len(text)
	// L-type suffixes, from left to right, to the starts of the buckets. The last
	// suffix is induced by the end of the text.
	bucketStarts(counts, bucket)
	c1 := text[n-1]
	b := bucket[c1]
	put := int32(n - 1)
	if text[n-2] < c1 {
		put = ^put
	}
	sa[b] = put
	b++
	for i := range sa {
		j := sa[i]
		sa[i] = ^j
		if j <= 0 {
			continue
		}
		j--
		c0 := text[j]
		if c0 != c1 {
			bucket[c1] = b
			c1 = c0
			b = bucket[c1]
		}
		if j > 0 && text[j-1] < c1 {
			j = ^j
		}
		sa[b] = j
		b++
	}
	// S-type suffixes, from right to left, to the ends of the buckets.
	bucketEnds(counts, bucket)
	c1 = 0
	b = bucket[c1]
	for i := n - 1; i >= 0; i-- {
		j := sa[i]
		if j <= 0 {
			sa[i] = ^j
			continue
		}
		j--
		c0 := text[j]
		if c0 != c1 {
			bucket[c1] = b
			c1 = c0
			b = bucket[c1]
		}
		if j == 0 || text[j-1] > c1 {
			j = ^j
		}
		b--
		sa[b] = j
	}
}
