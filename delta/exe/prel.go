package exe

import "encoding/binary"

// Tables of the kernel that its linker script puts into .rodata, without a section of their
// own: jump labels (two places of code and a key), static calls (a place of code and a key),
// trace points. Their words are relative to their own place. A long enough row of entries
// that lead where such entries lead is one.
const leastEntries = 16

// placeTables visits them.
func (f *finder) placeTables(s *section) {
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size]
	word := func(i int) site {
		return site{off: uint32(s.off) + uint32(i), kind: relative32, base: s.addr + uint64(i), index: true}
	}
	leads := func(i int) bool { // to somewhere else
		v := int32(le.Uint32(b[i:]))
		return (v >= 4096 || v <= -4096) && f.mapped(f.target(word(i)))
	}
	code := func(i int) bool { return leads(i) && f.isCode(f.target(word(i))) }
	key := func(i int) bool { return f.mapped(s.addr + uint64(i) + le.Uint64(b[i:])) }
	row := func(i, size int, is func(int) bool) int {
		n := 0
		for j := i; j+size <= len(b) && is(j); j += size {
			n++
		}
		return n
	}
	for i, last := 0, 0; i+4 <= len(b); {
		if i-last >= sawStep {
			f.saw(i - last)
			last = i
		}
		if n := row(i, 16, func(i int) bool { return code(i) && code(i+4) && key(i+8) }); n >= leastEntries {
			for ; n > 0; i, n = i+16, n-1 {
				f.found(word(i))
				f.found(word(i + 4))
				// The upper half of the key's distance is its sign.
				if v := int64(le.Uint64(b[i+8:])); v == int64(int32(v)) {
					f.found(word(i + 8))
				}
			}
		} else if n := row(i, 4, leads); n >= 2*leastEntries {
			for ; n > 0; i, n = i+4, n-1 {
				f.found(word(i))
			}
		} else {
			i += 4 * max(n, 1)
		}
	}
}
