package exe

import (
	"encoding/binary"
	"slices"
)

// A site is a place in a file that holds an address.
type site struct {
	off  uint32
	kind siteKind
	base uint64 // address that a relative site counts from

	// What Mask makes of it:
	index   bool   // an entry of a table of code addresses
	place   bool   // an entry of a list of places that hold addresses
	name    uint32 // where in the file the name of the target is, 0 if that is not known
	nameLen uint16

	low uint16 // page21: the rest of the address, which another instruction adds; half…: the other half
}

func (s site) size() int {
	switch s.kind {
	case absolute64:
		return 8
	case index24, symbol24:
		return 3
	case stub96:
		return 12
	}
	return 4
}

type siteKind uint8

const (
	absolute64 siteKind = iota // 8 bytes, an address
	absolute32                 // 4 bytes, the low half of an address whose high half is its sign
	relative32                 // 4 bytes, an address minus base
	distance32                 // 4 bytes, base minus an address
	index32                    // 4 bytes, the number of a symbol in the table at base
	index24                    // 3 bytes, big-endian, the number of a word in the table at base
	symbol24                   // 3 bytes, the number of a symbol of 16 bytes in the table at base
	stub96                     // three instructions that add parts of a distance, see arm.go

	// Fields of a word, see arm64.go.
	branch26
	branch19
	branch14
	literal19
	near21
	page21
	low12

	// The same, see arm.go.
	call25
	branch24
	place31
	halfLow // followed by its upper half
	halfHigh
	halfLowWord
	halfHighWord
)

// target returns the address that a site holds.
func (im *image) target(s site) uint64 {
	if s.kind.word() {
		return wordTarget(s, binary.LittleEndian.Uint32(im.b[s.off:]))
	}
	switch s.kind {
	case absolute64:
		return binary.LittleEndian.Uint64(im.b[s.off:])
	case index24:
		b := im.b[s.off:]
		return s.base + 4*(uint64(b[0])<<16|uint64(b[1])<<8|uint64(b[2]))
	case symbol24:
		b := im.b[s.off:]
		return s.base + symbolSize32*(uint64(b[2])<<16|uint64(b[1])<<8|uint64(b[0]))
	case stub96:
		return s.base + stubDistance(im.b[s.off:])
	case absolute32:
		return uint64(int64(int32(binary.LittleEndian.Uint32(im.b[s.off:]))))
	case distance32:
		return s.base - uint64(int64(int32(binary.LittleEndian.Uint32(im.b[s.off:]))))
	case index32:
		return s.base + symbolSize*uint64(binary.LittleEndian.Uint32(im.b[s.off:]))
	}
	return s.base + uint64(int64(int32(binary.LittleEndian.Uint32(im.b[s.off:]))))
}

// A finder looks for sites and gives each to visit, which may change it: what was visited
// is not looked at again.
type finder struct {
	*image
	visit  func(site)
	shed   func()
	seen   int      // bytes since shed was called
	taken  []uint64 // one bit for every byte of the file
	tables []uint64 // addresses that code takes and that are not of code
	got    *section // .got, or nil
	fixed  bool     // the program is always mapped at the same place
}

// sites visits all that can be recognised. No two that are visited overlap.
// From time to time it calls shed.
func (im *image) sites(shed func(), visit func(site)) {
	f := &finder{image: im, visit: visit, shed: shed, taken: make([]uint64, len(im.b)/64+1), got: im.section(".got"),
		fixed: binary.LittleEndian.Uint16(im.b[16:]) == typeExec}
	for i := range im.sections {
		s := &im.sections[i]
		switch {
		case s.typ == shtProgbits && s.executable && im.machine == machineARM64:
			f.codeARM64(s)
		case s.typ == shtProgbits && s.executable && im.machine == machineARM:
			f.codeARM(s)
		case s.typ == shtProgbits && s.executable:
			f.code(s)
		case s.typ == im.relocations && s.addr != 0:
			f.relocated(s)
		case s.typ == shtDynsym || s.typ == shtSymtab:
			f.symbols(s)
		case s.typ == shtARMExidx && im.machine == machineARM:
			f.unwindIndex(s)
		}
	}
	f.jumpTables()
	if s := im.section(".eh_frame"); s != nil {
		f.frames(s)
	}
	if s := im.section(".eh_frame_hdr"); s != nil {
		f.frameIndex(s)
	}
	switch {
	case f.layout == layout64 && f.section("__ksymtab") != nil:
		f.kernel()
	case f.fixed && f.layout == layout64:
		for i := range im.sections {
			if s := &im.sections[i]; s.typ == shtProgbits && !s.executable && s.addr != 0 {
				f.pointers(s)
			}
		}
	}
}

// pointers takes words of data that are addresses: programs that are always mapped at the same place have
// no relocations that would say where these are. (Of 64 bits: too many small numbers look like addresses of 32.
// Two versions of a Go program: 326,725 bytes → 279,426; with words of 32 bits, for ARM, 296,458 → 373,516. A kernel
// says where its addresses are: P3 7,030,017, with this 7,106,687.)
func (f *finder) pointers(s *section) {
	p := site{kind: f.pointer}
	n := uint64(p.size())
	for off := (s.off + n - 1) &^ (n - 1); off+n <= s.off+s.size; off += n {
		if v := f.word(f.b[off:]); v != 0 && f.mapped(v) {
			p.off = uint32(off)
			f.found(p)
		}
		f.saw(int(n))
	}
}

const (
	shedEvery = 1 << 20
	siteSeen  = 64 // bytes that are touched for a site, roughly
	sawStep   = 64 << 10
)

// saw counts what was looked at.
func (f *finder) saw(n int) {
	if f.seen += n; f.seen >= shedEvery {
		f.seen = 0
		f.shed()
	}
}

// found visits a site, unless it overlaps one that was visited.
func (f *finder) found(s site) {
	end := s.off + uint32(s.size())
	if uint64(end) > uint64(len(f.b)) {
		return
	}
	for i := s.off; i < end; i++ {
		if f.taken[i/64]&(1<<(i%64)) != 0 {
			return
		}
	}
	for i := s.off; i < end; i++ {
		f.taken[i/64] |= 1 << (i % 64)
	}
	f.visit(s)
	f.saw(siteSeen)
}

// code finds calls, jumps and references relative to the instruction pointer by
// their patterns. No instruction is decoded: what looks like one of these and
// leads to a place where it may lead hardly ever is something else, and a mistake costs
// bytes, no more.
func (f *finder) code(s *section) {
	b := f.b[s.off : s.off+s.size]
	rel := func(i int) (site, uint64) {
		at := site{off: uint32(s.off) + uint32(i), kind: relative32, base: s.addr + uint64(i) + 4}
		return at, f.target(at)
	}
	for i, last := 0, 0; i+6 <= len(b); i++ {
		if i-last >= sawStep {
			f.saw(i - last)
			last = i
		}
		switch c := b[i]; {
		case c == 0xe8 || c == 0xe9: // call, jmp
			if at, t := rel(i + 1); f.isCode(t) {
				f.found(at)
				i += 4
			}
		case c == 0x0f && b[i+1]&0xf0 == 0x80: // jcc
			if at, t := rel(i + 2); f.isCode(t) {
				f.found(at)
				i += 5
			}
		case c&0xc7 == 0x05 && i > 0: // a memory operand [rip+disp32]
			at, t := rel(i + 1)
			lea := b[i-1] == 0x8d
			if f.mapped(t) && (lea || !f.isCode(t)) {
				f.found(at)
				if lea && !f.isCode(t) {
					f.tables = append(f.tables, t)
				}
				i += 4
			}
		}
	}
}

// jumpTables finds tables of code addresses, relative to the table, where code takes the
// address of one.
func (f *finder) jumpTables() {
	tables := f.tables
	slices.Sort(tables)
	tables = slices.Compact(tables)
	for i, base := range tables {
		l, off, ok := f.offset(base)
		if !ok || base%4 != 0 || base-l.addr >= l.fileSize {
			continue
		}
		end := min(l.off+l.fileSize, uint64(len(f.b)))
		if i+1 < len(tables) {
			end = min(end, off+tables[i+1]-base)
		}
		n := uint64(0)
		entry := func() site { return site{off: uint32(off + 4*n), kind: relative32, base: base} }
		for off+4*n+4 <= end && f.isCode(f.target(entry())) {
			n++
		}
		if n >= 2 {
			for ; n > 0; off, n = off+4, n-1 {
				f.found(site{off: uint32(off), kind: relative32, base: base})
			}
		}
	}
}

// A relocation is an entry of a table of them.
type relocation struct {
	place, symbol uint64
	kind          uint32
}

func (im *image) relocation(e []byte) relocation {
	if im.layout == layout32 {
		info := im.word(e[4:])
		return relocation{im.word(e), info >> 8, uint32(info & 0xff)}
	}
	info := im.word(e[8:])
	return relocation{im.word(e), info >> 32, uint32(info)}
}

// relocated takes relocations: their places, their addends if these are addresses, and
// the pointers themselves.
func (f *finder) relocated(s *section) {
	relative, irelative := uint32(8), uint32(37)
	if f.machine == machineARM64 {
		relative, irelative = 1027, 1032
	}
	var table *section
	if uint64(s.link) < uint64(len(f.sections)) && f.sections[s.link].typ == shtDynsym {
		table = &f.sections[s.link]
	}
	for off := s.off; off+f.layout.relocation <= s.off+s.size; off += f.layout.relocation {
		r := f.relocation(f.b[off:])
		l, at, ok := f.offset(r.place)
		if !ok {
			continue
		}
		number, addend := site{off: uint32(off) + 12, kind: index32}, true
		if f.layout == layout32 {
			number, addend = site{off: uint32(off) + 5, kind: symbol24}, false
		}
		f.found(site{off: uint32(off), kind: f.pointer})
		if r.symbol != 0 && table != nil && (r.symbol+1)*f.symbol <= table.size {
			number.base = table.addr
			f.found(number)
		}
		if addend && (r.kind == relative || r.kind == irelative) && f.mapped(f.word(f.b[off+16:])) {
			f.found(site{off: uint32(off) + 16, kind: absolute64})
		}
		p := site{off: uint32(at), kind: f.pointer}
		if n := uint64(p.size()); r.place-l.addr+n <= l.fileSize && at+n <= uint64(len(f.b)) {
			if v := f.word(f.b[at:]); v != 0 && f.mapped(v) {
				f.found(p)
			}
		}
	}
}

// symbols takes the values of symbols, and where their names are.
func (f *finder) symbols(s *section) {
	var names *section
	if uint64(s.link) < uint64(len(f.sections)) && f.sections[s.link].addr != 0 {
		names = &f.sections[s.link]
	}
	part, value := uint64(6), uint64(8) // where the number of its section is, and its value
	if f.layout == layout32 {
		part, value = 14, 4
	}
	for off := s.off; off+f.symbol <= s.off+s.size; off += f.symbol {
		e := f.b[off:]
		if names != nil && uint64(binary.LittleEndian.Uint32(e)) < names.size {
			f.found(site{off: uint32(off), kind: relative32, base: names.addr})
		}
		if binary.LittleEndian.Uint16(e[part:]) != 0 && f.mapped(f.word(e[value:])) {
			f.found(site{off: uint32(off + value), kind: f.pointer})
		}
	}
}
