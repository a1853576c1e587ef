package relz

import (
	"encoding/binary"
	"math/bits"
)

// What RFC 8878 calls FSE and Huffman coding, in both directions. Given the tables,
// there is one way to write symbols: the reference encoder's
// (lib/common/fse.h and lib/compress/huf_compress.c of github.com/facebook/zstd).

// A backReader reads bits from the end of p to its start.
type backReader struct {
	p   []byte
	pos int // bits that are left; less than 0: more was read than there is
}

// newBackReader begins behind the bit that marks the end.
func newBackReader(p []byte) (r backReader, ok bool) {
	if len(p) == 0 || p[len(p)-1] == 0 {
		return r, false
	}
	return backReader{p, (len(p)-1)*8 + bits.Len8(p[len(p)-1]) - 1}, true
}

// peek returns the next n ≤ 32 bits; behind the last one there are zeros.
func (r *backReader) peek(n uint) uint32 {
	if r.pos < int(n) {
		if r.pos <= 0 {
			return 0
		}
		return uint32(load64(r.p, 0)&(1<<r.pos-1)) << (int(n) - r.pos)
	}
	at := r.pos - int(n)
	return uint32(load64(r.p, at>>3) >> (at & 7) & (1<<n - 1))
}

func (r *backReader) read(n uint) uint32 {
	v := r.peek(n)
	r.pos -= int(n)
	return v
}

// load64 reads up to 8 bytes at an offset.
func load64(p []byte, at int) uint64 {
	if len(p)-at >= 8 {
		return binary.LittleEndian.Uint64(p[at:])
	}
	v := uint64(0)
	for i, b := range p[at:] {
		v |= uint64(b) << (8 * i)
	}
	return v
}

// A bitWriter appends bits, the lowest first.
type bitWriter struct {
	out []byte
	v   uint64
	n   uint
}

// add appends the lowest n ≤ 32 bits of v.
func (w *bitWriter) add(v uint32, n uint) {
	w.v |= uint64(v) & (1<<n - 1) << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.out = append(w.out, byte(w.v))
		w.v >>= 8
	}
}

// close appends the bit that marks the end.
func (w *bitWriter) close() []byte {
	w.add(1, 1)
	if w.n > 0 {
		w.out = append(w.out, byte(w.v))
	}
	w.v, w.n = 0, 0
	return w.out
}

// fseTable is a table of finite state entropy: how often each symbol is expected.
type fseTable struct {
	log    uint
	norm   []int16 // of 1<<log; -1: less than one
	decode []fseEntry
	state  []uint16 // for encoding: the next states by symbol
	trans  []fseTransform
}

type fseEntry struct {
	symbol byte
	bits   byte
	base   uint16
}

type fseTransform struct {
	deltaBits  uint32
	deltaState int32
}

// readNorm reads the description of a table and returns its length.
func readNorm(p []byte, maxSymbol int, maxLog uint) (norm []int16, log uint, used int, ok bool) {
	pos := 0
	peek := func(n int) int {
		if pos>>3 >= len(p) {
			return 0
		}
		return int(load64(p, pos>>3) >> (pos & 7) & (1<<n - 1))
	}
	log = uint(peek(4)) + 5
	pos += 4
	if log > maxLog {
		return nil, 0, 0, false
	}
	remaining, threshold, n := 1<<log+1, 1<<log, int(log)+1
	for remaining > 1 && len(norm) <= maxSymbol {
		most := 2*threshold - 1 - remaining
		v := peek(n)
		if v&(threshold-1) < most {
			v &= threshold - 1
			pos += n - 1
		} else {
			if v >= threshold {
				v -= most
			}
			pos += n
		}
		v--
		if norm = append(norm, int16(v)); v < 0 {
			remaining--
		} else {
			remaining -= v
		}
		for remaining < threshold && threshold > 1 {
			n--
			threshold >>= 1
		}
		for zeros := v == 0; zeros; {
			k := peek(2)
			pos += 2
			norm = append(norm, make([]int16, k)...)
			zeros = k == 3 && len(norm) <= maxSymbol
		}
	}
	used = (pos + 7) / 8
	return norm, log, used, remaining == 1 && len(norm) <= maxSymbol+1 && used <= len(p)
}

// newFSE makes a table. norm must sum up to 1<<log.
func newFSE(norm []int16, log uint) *fseTable {
	t := &fseTable{log: log, norm: norm, decode: make([]fseEntry, 1<<log), state: make([]uint16, 1<<log), trans: make([]fseTransform, len(norm))}
	size := 1 << log
	high := size - 1
	for s, n := range norm {
		if n == -1 {
			t.decode[high].symbol = byte(s)
			high--
		}
	}
	pos, step, mask := 0, size>>1+size>>3+3, size-1
	for s, n := range norm {
		for range max(n, 0) {
			t.decode[pos].symbol = byte(s)
			for pos = (pos + step) & mask; pos > high; pos = (pos + step) & mask {
			}
		}
	}
	// Each symbol's states in the order of the table.
	first, next := make([]int, len(norm)), make([]uint16, len(norm))
	total := 0
	for s, n := range norm {
		first[s] = total
		switch {
		case n == 0:
			t.trans[s].deltaBits = uint32((log+1)<<16) - 1<<log
		case n == 1 || n == -1:
			t.trans[s] = fseTransform{uint32(log<<16) - 1<<log, int32(total - 1)}
			next[s] = 1
			total++
		default:
			most := log - uint(bits.Len16(uint16(n-1))-1)
			t.trans[s] = fseTransform{uint32(most<<16) - uint32(n)<<most, int32(total - int(n))}
			next[s] = uint16(n)
			total += int(n)
		}
	}
	for i := range t.decode {
		e := &t.decode[i]
		t.state[first[e.symbol]] = uint16(size + i)
		first[e.symbol]++
		v := next[e.symbol]
		next[e.symbol]++
		e.bits = byte(log) - byte(bits.Len16(v)-1)
		e.base = v<<e.bits - uint16(size)
	}
	return t
}

// oneFSE is the table of a symbol that is always the same.
func oneFSE(symbol byte) *fseTable {
	norm := make([]int16, int(symbol)+1)
	norm[symbol] = 1
	return &fseTable{norm: norm, decode: []fseEntry{{symbol: symbol}}, state: []uint16{0}, trans: make([]fseTransform, len(norm))}
}

// has reports whether a symbol can be encoded.
func (t *fseTable) has(symbol byte) bool { return int(symbol) < len(t.norm) && t.norm[symbol] != 0 }

// begin returns the state that stands for a symbol, the last one: with it no bits are lost.
func (t *fseTable) begin(symbol byte) uint32 {
	if t.log == 0 {
		return 0
	}
	d := t.trans[symbol]
	n := (d.deltaBits + 1<<15) >> 16
	v := n<<16 - d.deltaBits
	return uint32(t.state[int32(v>>n)+d.deltaState])
}

// encode goes to the state of the symbol before.
func (t *fseTable) encode(w *bitWriter, state uint32, symbol byte) uint32 {
	if t.log == 0 {
		return 0
	}
	d := t.trans[symbol]
	n := (state + d.deltaBits) >> 16
	w.add(state, uint(n))
	return uint32(t.state[int32(state>>n)+d.deltaState])
}

// hufTable is a Huffman table for literals.
type hufTable struct {
	log    uint
	decode []hufEntry // 1<<log
	code   [256]uint16
	bits   [256]byte // 0: the symbol cannot be encoded
}

type hufEntry struct{ symbol, bits byte }

const maxHufLog = 11

// readHuf reads the description of a table and returns its length.
func readHuf(p []byte) (t *hufTable, used int, ok bool) {
	if len(p) == 0 {
		return nil, 0, false
	}
	var weights []byte
	n := int(p[0])
	if n >= 128 {
		n -= 127
		used = 1 + (n+1)/2
		if used > len(p) {
			return nil, 0, false
		}
		for i := range n {
			b := p[1+i/2]
			if i&1 == 0 {
				b >>= 4
			}
			weights = append(weights, b&15)
		}
	} else {
		used = 1 + n
		if used > len(p) {
			return nil, 0, false
		}
		if weights, ok = readWeights(p[1:used]); !ok {
			return nil, 0, false
		}
	}
	t, ok = newHuf(weights)
	return t, used, ok
}

// readWeights reads weights that are coded by two states of a table in turn.
func readWeights(p []byte) (weights []byte, ok bool) {
	norm, log, used, ok := readNorm(p, 255, 6)
	if !ok {
		return nil, false
	}
	t := newFSE(norm, log)
	r, ok := newBackReader(p[used:])
	if !ok {
		return nil, false
	}
	var state [2]uint32
	state[0], state[1] = r.read(log), r.read(log)
	if r.pos < 0 {
		return nil, false
	}
	for i := 0; len(weights) < 255; i ^= 1 {
		e := t.decode[state[i]]
		weights = append(weights, e.symbol)
		state[i] = uint32(e.base) + r.read(uint(e.bits))
		if r.pos < 0 {
			return append(weights, t.decode[state[i^1]].symbol), true
		}
	}
	return nil, false
}

// newHuf makes a table of all weights but the last, which follows from the others.
func newHuf(weights []byte) (t *hufTable, ok bool) {
	total := 0
	for _, w := range weights {
		if w > maxHufLog {
			return nil, false
		}
		total += 1 << w >> 1
	}
	if total == 0 || len(weights) > 255 {
		return nil, false
	}
	log := uint(bits.Len(uint(total)))
	rest := 1<<log - total
	if log > maxHufLog || rest&(rest-1) != 0 {
		return nil, false
	}
	weights = append(weights, byte(bits.Len(uint(rest))))
	t = &hufTable{log: log, decode: make([]hufEntry, 1<<log)}
	at := 0
	for w := 1; w <= int(log); w++ {
		n := log + 1 - uint(w)
		for s, v := range weights {
			if int(v) != w {
				continue
			}
			t.code[s], t.bits[s] = uint16(at>>(log-n)), byte(n)
			for range 1 << (w - 1) {
				t.decode[at] = hufEntry{byte(s), byte(n)}
				at++
			}
		}
	}
	return t, true
}

// read decodes n literals.
func (t *hufTable) read(out, p []byte, n int) ([]byte, bool) {
	r, ok := newBackReader(p)
	if !ok {
		return out, false
	}
	for range n {
		e := t.decode[r.peek(t.log)]
		out = append(out, e.symbol)
		r.pos -= int(e.bits)
	}
	return out, r.pos == 0
}

// write encodes literals.
func (t *hufTable) write(out, literals []byte) ([]byte, bool) {
	w := bitWriter{out: out}
	for i := len(literals) - 1; i >= 0; i-- {
		b := literals[i]
		if t.bits[b] == 0 {
			return out, false
		}
		w.add(uint32(t.code[b]), uint(t.bits[b]))
	}
	return w.close(), true
}
