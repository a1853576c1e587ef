package redeflate

import "math/bits"

// A coder builds Huffman codes as the deflate of gzip and zlib does. Many codes
// are optimal for the same frequencies; which one comes out is decided by the
// order in which a binary heap gives out nodes of equal weight, by the depth of
// the subtree as a second key, and by how lengths beyond the limit are cut. The
// heap below therefore has to move its elements in exactly this way.
type coder struct {
	weight [2*litCodes + 1]uint32
	depth  [2*litCodes + 1]uint8
	parent [2*litCodes + 1]uint16
	length [2*litCodes + 1]uint8
	heap   [2*litCodes + 1]uint16 // heap[1:n+1]; heap[0] is not used
	n      int
	order  [2*litCodes + 1]uint16 // nodes by falling weight, filled from its end
}

// before reports whether node a leaves the heap before node b.
func (c *coder) before(a, b uint16) bool {
	return c.weight[a] < c.weight[b] || c.weight[a] == c.weight[b] && c.depth[a] <= c.depth[b]
}

// sift moves the element at slot k down to where it belongs.
func (c *coder) sift(k int) {
	v := c.heap[k]
	for child := 2 * k; child <= c.n; child *= 2 {
		if child < c.n && c.before(c.heap[child+1], c.heap[child]) {
			child++
		}
		if c.before(v, c.heap[child]) {
			break
		}
		c.heap[k] = c.heap[child]
		k = child
	}
	c.heap[k] = v
}

// build sets lengths, of at most limit bits, for frequencies, and returns the
// number of codes to send: one more than the last one in use. At least two codes
// get a length, because PKZIP wanted it so.
func (c *coder) build(freq []uint32, lengths []uint8, limit int) int {
	last := -1
	c.n = 0
	for i, f := range freq {
		lengths[i] = 0
		if f != 0 {
			c.n++
			c.heap[c.n] = uint16(i)
			c.weight[i], c.depth[i] = f, 0
			last = i
		}
	}
	for c.n < 2 {
		forced := 0
		if last < 2 {
			last++
			forced = last
		}
		c.n++
		c.heap[c.n] = uint16(forced)
		c.weight[forced], c.depth[forced] = 1, 0
	}
	for k := c.n / 2; k >= 1; k-- {
		c.sift(k)
	}

	leaves := len(freq)
	node, top := leaves, len(c.order)
	for c.n >= 2 {
		a := c.heap[1]
		c.heap[1] = c.heap[c.n]
		c.n--
		c.sift(1)
		b := c.heap[1]
		top -= 2
		c.order[top+1], c.order[top] = a, b
		c.weight[node] = c.weight[a] + c.weight[b]
		c.depth[node] = max(c.depth[a], c.depth[b]) + 1
		c.parent[a], c.parent[b] = uint16(node), uint16(node)
		c.heap[1] = uint16(node)
		node++
		c.sift(1)
	}
	top--
	c.order[top] = c.heap[1]
	c.measure(top, leaves, limit)
	for _, i := range c.order[top:] {
		if int(i) < leaves {
			lengths[i] = c.length[i]
		}
	}
	return last + 1
}

// measure sets the lengths of the nodes in order[top:], the root first, and
// cuts those beyond limit: one leaf that is not too deep moves down and takes
// an overflowing one as its brother, until all fit.
func (c *coder) measure(top, leaves, limit int) {
	var count [maxBits + 1]int
	overflow := 0
	c.length[c.order[top]] = 0
	for _, n := range c.order[top+1:] {
		l := int(c.length[c.parent[n]]) + 1
		if l > limit {
			l = limit
			overflow++
		}
		c.length[n] = uint8(l)
		if int(n) < leaves {
			count[l]++
		}
	}
	if overflow == 0 {
		return
	}
	for ; overflow > 0; overflow -= 2 {
		l := limit - 1
		for count[l] == 0 {
			l--
		}
		count[l]--
		count[l+1] += 2
		count[limit]--
	}
	h := len(c.order)
	for l := limit; l > 0; l-- {
		for k := count[l]; k > 0; {
			h--
			if n := c.order[h]; int(n) < leaves {
				c.length[n] = uint8(l)
				k--
			}
		}
	}
}

// assign gives out the canonical codes for lengths (RFC 1951, 3.2.2), bit
// reversed as they are written. Lengths need not form a complete code.
func assign(lengths []uint8, codes []uint16) {
	var count, next [maxBits + 2]uint16
	for _, l := range lengths {
		count[l]++
	}
	count[0] = 0
	code := uint16(0)
	for l := 1; l <= maxBits; l++ {
		code = (code + count[l-1]) << 1
		next[l] = code
	}
	for i, l := range lengths {
		if l != 0 {
			codes[i] = bits.Reverse16(next[l]) >> (16 - l)
			next[l]++
		}
	}
}

// A lengthRun is one symbol of the code that transmits code lengths.
type lengthRun struct {
	symbol uint8 // 0-15: a length; 16: the one before 3-6 times; 17, 18: zeros
	extra  uint8
}

// appendRuns describes lengths by runs, in the greedy way of gzip and zlib:
// a run never crosses from the literal code into the distance code.
func appendRuns(runs []lengthRun, lengths []uint8) []lengthRun {
	previous := -1
	for i := 0; i < len(lengths); {
		l := int(lengths[i])
		limit := 138
		if l != 0 {
			limit = 6
			if l != previous {
				limit = 7
			}
		}
		n := 1
		for n < limit && i+n < len(lengths) && int(lengths[i+n]) == l {
			n++
		}
		i += n
		switch {
		case l == 0 && n >= 11:
			runs = append(runs, lengthRun{18, uint8(n - 11)})
		case l == 0 && n >= 3:
			runs = append(runs, lengthRun{17, uint8(n - 3)})
		case l != 0 && l == previous && n >= 3:
			runs = append(runs, lengthRun{16, uint8(n - 3)})
		case l != 0 && l != previous && n >= 4:
			runs = append(runs, lengthRun{uint8(l), 0}, lengthRun{16, uint8(n - 4)})
		default:
			for ; n > 0; n-- {
				runs = append(runs, lengthRun{uint8(l), 0})
			}
		}
		previous = l
	}
	return runs
}
