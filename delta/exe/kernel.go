package exe

import "encoding/binary"

// A Linux kernel (the ELF file within the compressed image) has tables of its own. Their
// sections say by their names what they are.

// A kernelTable has entries of some words; those in which are addresses relative to their
// own place.
type kernelTable struct {
	name  string
	words int
	which []int
}

func kernelTables() []kernelTable {
	return []kernelTable{
		{".orc_unwind_ip", 1, []int{0}},
		{".return_sites", 1, []int{0}},
		{".retpoline_sites", 1, []int{0}},
		{".call_sites", 1, []int{0}},
		{".ibt_endbr_seal", 1, []int{0}},
		{".smp_locks", 1, []int{0}},
		{"__ksymtab", 3, []int{0, 1, 2}},
		{"__ksymtab_gpl", 3, []int{0, 1, 2}},
		{"__ex_table", 3, []int{0, 1}},
		{"__bug_table", 3, []int{0, 1}},
		{"__jump_table", 4, []int{0, 1}},
		{".altinstructions", 3, []int{0, 1}},
		{".pci_fixup", 4, []int{3}},
	}
}

// kernel visits what only kernels have.
func (f *finder) kernel() {
	for _, t := range kernelTables() {
		s := f.section(t.name)
		if s == nil {
			continue
		}
		for entry := uint64(0); entry+4*uint64(t.words) <= s.size; entry += 4 * uint64(t.words) {
			for _, w := range t.which {
				at := entry + 4*uint64(w)
				p := site{off: uint32(s.off + at), kind: relative32, base: s.addr + at, index: true}
				if f.mapped(f.target(p)) {
					f.found(p)
				}
			}
		}
	}
	f.kernelSymbols()
	f.kernelRelocations()
	if s := f.section(".rodata"); s != nil {
		f.placeTables(s)
	}
}

// kernelRelocations visits the places that move when the kernel is loaded elsewhere. They
// are listed behind the ELF file, by the low half of their addresses:
//
//	0 │ places of 64 bits … │ 0 │ places relative to per-CPU data … │ 0 │ places of 32 bits …
func (f *finder) kernelRelocations() {
	le := binary.LittleEndian
	end := le.Uint64(f.b[40:]) + shdrSize*uint64(len(f.sections))
	for _, s := range f.sections {
		end = max(end, s.off+s.size)
	}
	// Read backwards, as the kernel does.
	kinds := []siteKind{absolute32, relative32, absolute64}
	for at := len(f.b) - 4; at >= 0 && uint64(at) >= end && len(kinds) > 0; at -= 4 {
		v := le.Uint32(f.b[at:])
		if v == 0 {
			kinds = kinds[1:]
			continue
		}
		entry := site{off: uint32(at), kind: absolute32}
		l, off, ok := f.offset(f.target(entry))
		if !ok || off-l.off+8 > l.fileSize || off+8 > uint64(len(f.b)) {
			continue
		}
		if kinds[0] != relative32 {
			if p := (site{off: uint32(off), kind: kinds[0]}); f.mapped(f.target(p)) {
				f.found(p)
			}
		}
		entry.place = true
		f.found(entry)
	}
}

// kernelSymbols visits the kernel's list of its own symbols (kallsyms), which has no section
// of its own. Each part begins at a multiple of 8:
//
//	u32 × n  addresses: of per-CPU data as they are, others as -1 - (address - base), descending
//	u64      base: the start of the code
//	u32      n
//	names    n times: length (1 byte, or 2 with 7 bits each), compressed name
//	u32 × n/256  where every 256th name is
//	u24 × n  big-endian: numbers of the symbols, sorted by name (from Linux 6.2 on, and in 6.1 of Debian)
func (f *finder) kernelSymbols() {
	s, code := f.section(".rodata"), f.section(".text")
	if s == nil || code == nil {
		return
	}
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size]
	// The low half of the base may look like one more word of the run.
	at := f.descending(b)
	end := align8(max(at-4, 0))
	if end+8 <= len(b) && le.Uint64(b[end:]) != code.addr {
		end += 8
	}
	if at == 0 || end+12 > len(b) || le.Uint64(b[end:]) != code.addr {
		return
	}
	n := int(le.Uint32(b[end+8:]) & 0x7fffffff)
	start := (end - 4*n) &^ 7
	if n > end/4 || start < 0 {
		return
	}
	names := make([]site, 0, n) // only name and nameLen are used
	p := end + 16
	for range n {
		if p+2 > len(b) {
			return
		}
		size := int(b[p])
		if p++; size&0x80 != 0 {
			size = size&0x7f | int(b[p])<<7
			p++
		}
		if size > len(b)-p {
			return
		}
		names = append(names, site{name: uint32(s.off) + uint32(p), nameLen: uint16(size)})
		p += size
	}
	for i, v := range names {
		w := int32(le.Uint32(b[start+4*i:]))
		if w < 0 {
			v.kind, v.base = distance32, code.addr-1
		} else {
			v.kind, v.base = relative32, 0
		}
		v.off = uint32(s.off) + uint32(start+4*i)
		if f.mapped(f.target(v)) {
			f.found(v)
		}
	}
	p = align8(align8(p) + (n+255)/256*4)
	if p+3*n > len(b) {
		return
	}
	for i := range n {
		v := site{off: uint32(s.off) + uint32(p+3*i), kind: index24, base: s.addr + uint64(start)}
		k := (f.target(v) - v.base) / 4
		if k >= uint64(n) {
			return
		}
		v.name, v.nameLen = names[k].name, names[k].nameLen
		f.found(v)
	}
}

func align8(n int) int { return (n + 7) &^ 7 }

// descending returns where a long run of negative, descending words ends, 0 if there is none.
func (f *finder) descending(b []byte) int {
	const least = 4096
	n, last := 0, int32(0)
	for i := 0; i+4 <= len(b); i += 4 {
		if i%sawStep == 0 {
			f.saw(sawStep)
		}
		switch w := int32(binary.LittleEndian.Uint32(b[i:])); {
		case w < 0 && (n == 0 || w <= last):
			n, last = n+1, w
		case n >= least:
			return i
		case w < 0:
			n, last = 1, w
		default:
			n = 0
		}
	}
	return 0
}
