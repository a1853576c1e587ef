package bsdiff

import (
	"container/heap"
	"encoding/binary"
	"io"
	"math"
	"math/bits"
	"slices"
)

// BSDIFF40 consists of bzip2 streams. The standard library reads bzip2 and does
// not write it, and the Go modules that do are not maintained; what the format needs
// is little, because the suffix array is here already:
//
//	stream  "BZh9", blocks, 48-bit end mark, CRC of the block CRCs
//	block   48-bit mark, CRC, 24-bit row of the text among its sorted rotations,
//	        bytes used, Huffman tables, a table's number for every 50 symbols, symbols
//
// A block's bytes pass through run lengths (four equal bytes and a count), the
// Burrows-Wheeler transform, move-to-front and binary run lengths of its zeros.
const (
	bzBlock     = 900000 - 20 // bytes after the first run lengths
	bzGroup     = 50          // symbols that share a table choice
	bzMaxLength = 17          // of a Huffman code
	bzRounds    = 4           // of fitting tables to groups
)

// A bzip2Writer compresses what is written to it. Close ends the stream.
type bzip2Writer struct {
	w     io.Writer
	bits  bitWriter
	block []byte // after the first run lengths
	crc   uint32 // of the block's bytes
	all   uint32 // of the blocks before
	last  byte   // run under way
	run   int
	table [256]uint32
	err   error
}

func newBzip2Writer(w io.Writer) *bzip2Writer {
	z := &bzip2Writer{w: w, crc: math.MaxUint32}
	for i := range z.table {
		c := uint32(i) << 24
		for range 8 {
			c = c<<1 ^ (c >> 31 * 0x04c11db7)
		}
		z.table[i] = c
	}
	z.bits.out = append(z.bits.out, "BZh9"...)
	return z
}

func (z *bzip2Writer) Write(p []byte) (int, error) {
	for _, c := range p {
		if z.run > 0 && (c != z.last || z.run == 255) {
			z.endRun()
		}
		z.last = c
		z.run++
		z.crc = z.crc<<8 ^ z.table[byte(z.crc>>24)^c]
	}
	if z.err != nil {
		return 0, z.err
	}
	return len(p), nil
}

// endRun moves the run to the block, and the block out when it is full.
func (z *bzip2Writer) endRun() {
	for range min(z.run, 4) {
		z.block = append(z.block, z.last)
	}
	if z.run >= 4 {
		z.block = append(z.block, byte(z.run-4))
	}
	z.run = 0
	if len(z.block) >= bzBlock-5 {
		z.endBlock()
	}
}

func (z *bzip2Writer) Close() error {
	if z.run > 0 {
		z.endRun()
	}
	if len(z.block) > 0 {
		z.endBlock()
	}
	z.bits.write(0x177245385090, 48)
	z.bits.write(uint64(z.all), 32)
	z.bits.flush()
	z.flush()
	return z.err
}

func (z *bzip2Writer) flush() {
	if z.err == nil {
		_, z.err = z.w.Write(z.bits.out)
	}
	z.bits.out = z.bits.out[:0]
}

func (z *bzip2Writer) endBlock() {
	crc := ^z.crc
	z.all = bits.RotateLeft32(z.all, 1) ^ crc
	last, row := rotations(z.block)
	z.bits.write(0x314159265359, 48)
	z.bits.write(uint64(crc), 32)
	z.bits.write(0, 1) // not "randomised"
	z.bits.write(uint64(row), 24)
	z.symbols(last)
	z.block = z.block[:0]
	z.crc = math.MaxUint32
	z.flush()
}

// rotations sorts the rotations of text. It returns the last column, and the row
// that holds the text itself.
func rotations(text []byte) (last []byte, row int) {
	// The suffixes of the doubled text that begin in its first half.
	n := len(text)
	sa := suffixArray(append(append(make([]byte, 0, 2*n), text...), text...))
	last = make([]byte, 0, n)
	for _, i := range sa {
		switch {
		case i == 0:
			row = len(last)
			last = append(last, text[n-1])
		case int(i) < n:
			last = append(last, text[i-1])
		}
	}
	return last, row
}

// symbols writes a block's tables and symbols.
func (z *bzip2Writer) symbols(text []byte) {
	// Which bytes are used: 16 bits for ranges of 16, then 16 bits for each of these.
	var used [16]uint16
	for _, c := range text {
		used[c>>4] |= 0x8000 >> (c & 15)
	}
	var front []byte // bytes in the order of last use
	ranges := uint64(0)
	for i, u := range used {
		if u != 0 {
			ranges |= 0x8000 >> i
		}
	}
	z.bits.write(ranges, 16)
	for i, u := range used {
		if u != 0 {
			z.bits.write(uint64(u), 16)
		}
		for j := range 16 {
			if u&(0x8000>>j) != 0 {
				front = append(front, byte(i<<4|j))
			}
		}
	}
	kinds := len(front) + 2
	syms := moveToFront(text, front)

	tables, choice := fitTables(syms, kinds)
	z.bits.write(uint64(len(tables)), 3)
	z.bits.write(uint64(len(choice)), 15)
	recent := []int{0, 1, 2, 3, 4, 5}
	for _, c := range choice {
		j := slices.Index(recent, int(c))
		copy(recent[1:j+1], recent[:j])
		recent[0] = int(c)
		z.bits.write(1<<(j+1)-2, j+1) // j ones and a zero
	}
	codes := make([][]uint32, len(tables))
	for i, lengths := range tables {
		codes[i] = canonical(lengths)
		cur := lengths[0]
		z.bits.write(uint64(cur), 5)
		for _, l := range lengths {
			for ; cur < l; cur++ {
				z.bits.write(0b10, 2)
			}
			for ; cur > l; cur-- {
				z.bits.write(0b11, 2)
			}
			z.bits.write(0, 1)
		}
	}
	for i, s := range syms {
		t := choice[i/bzGroup]
		z.bits.write(uint64(codes[t][s]), int(tables[t][s]))
	}
}

// moveToFront replaces bytes by how many other ones were used since, and runs of
// zeros by their length in the digits 0 (worth 1, 2, 4, …) and 1 (worth twice
// that). It uses up front.
func moveToFront(text, front []byte) []uint16 {
	var syms []uint16
	zeros := 0
	end := func() {
		for ; zeros > 0; zeros = (zeros - 1) >> 1 {
			syms = append(syms, uint16((zeros-1)&1))
		}
	}
	eob := uint16(len(front) + 1)
	for _, c := range text {
		if front[0] == c {
			zeros++
			continue
		}
		end()
		j := slices.Index(front, c)
		copy(front[1:j+1], front[:j])
		front[0] = c
		syms = append(syms, uint16(j+1))
	}
	end()
	return append(syms, eob)
}

// fitTables makes code lengths, and chooses one for every group of symbols: tables
// begin as ranges of the alphabet and are then fitted to the groups that liked
// them best, a few times over.
func fitTables(syms []uint16, kinds int) (tables [][]uint8, choice []uint8) {
	n := 6
	for i, limit := range []int{200, 600, 1200, 2400} {
		if len(syms) < limit {
			n = i + 2
			break
		}
	}
	freq := make([]int, kinds)
	for _, s := range syms {
		freq[s]++
	}
	left, from := len(syms), 0
	for t := range n {
		to, sum := from, 0
		for to < kinds && (sum < left/(n-t) || to == from) {
			sum += freq[to]
			to++
		}
		lengths := make([]uint8, kinds)
		for i := range lengths {
			lengths[i] = 15
			if i >= from && i < to {
				lengths[i] = 0
			}
		}
		tables = append(tables, lengths)
		left -= sum
		from = to
	}
	choice = make([]uint8, (len(syms)+bzGroup-1)/bzGroup)
	for range bzRounds {
		freqs := make([][]int, n)
		for t := range freqs {
			freqs[t] = make([]int, kinds)
		}
		for g := range choice {
			group := syms[g*bzGroup : min((g+1)*bzGroup, len(syms))]
			best := math.MaxInt
			for t, lengths := range tables {
				cost := 0
				for _, s := range group {
					cost += int(lengths[s])
				}
				if cost < best {
					best = cost
					choice[g] = uint8(t)
				}
			}
			for _, s := range group {
				freqs[choice[g]][s]++
			}
		}
		for t := range tables {
			tables[t] = huffman(freqs[t])
		}
	}
	return tables, choice
}

// huffman returns code lengths of at most bzMaxLength; every symbol gets one.
func huffman(freq []int) []uint8 {
	for shift := 0; ; shift++ {
		var h nodeHeap
		for i, f := range freq {
			h = append(h, &node{weight: f>>shift + 1, symbol: i})
		}
		heap.Init(&h)
		for len(h) > 1 {
			a := heap.Pop(&h).(*node)
			b := heap.Pop(&h).(*node)
			heap.Push(&h, &node{weight: a.weight + b.weight, depth: max(a.depth, b.depth) + 1, symbol: -1, a: a, b: b})
		}
		if h[0].depth > bzMaxLength {
			continue // flatter weights, shorter codes
		}
		lengths := make([]uint8, len(freq))
		var walk func(*node, uint8)
		walk = func(n *node, l uint8) {
			if n.symbol >= 0 {
				lengths[n.symbol] = l
				return
			}
			walk(n.a, l+1)
			walk(n.b, l+1)
		}
		walk(h[0], 0)
		return lengths
	}
}

type node struct {
	weight, depth, symbol int
	a, b                  *node
}

type nodeHeap []*node

func (h nodeHeap) Len() int      { return len(h) }
func (h nodeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *nodeHeap) Push(x any)   { *h = append(*h, x.(*node)) }
func (h *nodeHeap) Pop() any {
	n := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return n
}
func (h nodeHeap) Less(i, j int) bool {
	if h[i].weight != h[j].weight {
		return h[i].weight < h[j].weight
	}
	return h[i].depth < h[j].depth
}

// canonical returns the codes of code lengths: shorter codes first, then in the
// order of symbols.
func canonical(lengths []uint8) []uint32 {
	codes := make([]uint32, len(lengths))
	code := uint32(0)
	for l := uint8(1); l <= bzMaxLength; l++ {
		for i, m := range lengths {
			if m == l {
				codes[i] = code
				code++
			}
		}
		code <<= 1
	}
	return codes
}

// A bitWriter collects bits, highest first.
type bitWriter struct {
	out []byte
	acc uint64
	n   int // bits in acc, below 8 between calls
}

func (b *bitWriter) write(v uint64, n int) {
	b.acc = b.acc<<n | v
	b.n += n
	for b.n >= 8 {
		b.n -= 8
		b.out = append(b.out, byte(b.acc>>b.n))
	}
}

func (b *bitWriter) flush() {
	if b.n > 0 {
		b.write(0, 8-b.n)
	}
}

// offtout is the integer of BSDIFF40: 64 bits, little-endian, sign and magnitude.
func putOfftout(b []byte, v int64) {
	u := uint64(v)
	if v < 0 {
		u = uint64(-v) | 1<<63
	}
	binary.LittleEndian.PutUint64(b, u)
}

func getOfftout(b []byte) int64 {
	u := binary.LittleEndian.Uint64(b)
	if v := int64(u &^ (1 << 63)); u>>63 == 0 {
		return v
	} else {
		return -v
	}
}
