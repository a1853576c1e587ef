package exe

import "encoding/binary"

// 32-bit ARM: programs in Thumb-2 (Debian's armhf), whose instructions are one or two halfwords, or of words
// (armel, Raspberry Pi OS), or of both; and what a linker adds.
//
//	call25     BL, BLX, B.W     S:J1:J2:imm10:imm11 in two halfwords, halfwords
//	branch24   B, BL            imm24 of a word, words
//	place31    .ARM.exidx       31 bits, relative to their own place
//	stub96     .plt             ADD ip, pc, …; ADD ip, ip, …; LDR pc, [ip, …]!
//
// A distance to data does not fit into an instruction: it stands in a word behind the function,
// from which one instruction loads it and another one adds the program counter. The
// distance counts from the latter, so both have to be found.
const (
	machineARM  = 40
	shtARMExidx = 0x70000001

	callFields = 0x2fff07ff
	modeBlock  = 1024 // bytes that are of one instruction set
	addWithin  = 256  // bytes between the load of a distance and its use
)

// callTarget returns where the call in the halfwords w leads, the first in the low half.
func callTarget(base uint64, w uint32) uint64 {
	s := w >> 10 & 1
	i1, i2 := ^(w>>29^s)&1, ^(w>>27^s)&1
	d := signed(s<<24|i1<<23|i2<<22|w&0x3ff<<12|w>>16&0x7ff<<1, 25)
	if w>>28&1 == 0 { // BLX: to an instruction of a word
		base &^= 3
	}
	return base + d
}

func setCall(w uint32, t, base uint64) uint32 {
	if w>>28&1 == 0 {
		base &^= 3
	}
	d := uint32(t - base)
	s := d >> 24 & 1
	j1, j2 := ^(d>>23^s)&1, ^(d>>22^s)&1
	return w&^uint32(callFields) | s<<10 | d>>12&0x3ff | j1<<29 | j2<<27 | d>>1&0x7ff<<16
}

// stubDistance returns the sum of the parts, 8, 8 and 12 bits from above.
func stubDistance(b []byte) uint64 {
	le := binary.LittleEndian
	return uint64(le.Uint32(b)&0xff)<<20 + uint64(le.Uint32(b[4:])&0xff)<<12 + uint64(le.Uint32(b[8:])&0xfff)
}

func setStub(b []byte, d uint64) {
	le := binary.LittleEndian
	le.PutUint32(b, le.Uint32(b)&^0xff|uint32(d>>20&0xff))
	le.PutUint32(b[4:], le.Uint32(b[4:])&^0xff|uint32(d>>12&0xff))
	le.PutUint32(b[8:], le.Uint32(b[8:])&^0xfff|uint32(d&0xfff))
}

func isStub(b []byte) bool {
	le := binary.LittleEndian
	return len(b) >= 12 && le.Uint32(b)&^0xff == 0xe28fc600 && le.Uint32(b[4:])&^0xff == 0xe28cca00 && le.Uint32(b[8:])&^0xfff == 0xe5bcf000
}

// codeARM finds calls, stubs and distances to data.
func (f *finder) codeARM(s *section) {
	b := f.b[s.off : s.off+s.size]
	for at := 0; at < len(b); at += modeBlock {
		block := b[at:min(at+modeBlock, len(b))]
		always := 0 // instructions of a word that are executed always
		for i := 3; i < len(block); i += 4 {
			always += b2i(block[i]>>4 == 14)
		}
		if always*8 >= len(block) {
			f.codeWords(s, at, at+len(block))
		} else {
			f.codeThumb(s, at, at+len(block))
		}
		f.saw(len(block))
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A loaded is a register that holds the word at off since the instruction at i.
type loaded struct{ off, i int }

// distance visits the word that a register holds, to which the instruction at i of the section adds base.
func (f *finder) distance(s *section, l *loaded, i int, base uint64) {
	if l.off > 0 && i-l.i <= addWithin {
		p := site{off: uint32(s.off) + uint32(l.off), kind: relative32, base: base}
		if f.mapped(f.target(p)) {
			f.found(p)
		}
	}
	*l = loaded{}
}

func (f *finder) codeThumb(s *section, from, to int) {
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size]
	var registers [16]loaded
	load := func(r, off, i int) {
		if off > 0 && off+4 <= len(b) {
			registers[r] = loaded{off, i}
		}
	}
	for i := from; i+2 <= to; i += 2 {
		w := le.Uint16(b[i:])
		pc := s.addr + uint64(i) + 4
		here := int(pc&^3 - s.addr)
		switch {
		case w&0xf800 == 0x4800: // LDR literal
			load(int(w>>8&7), here+int(w&0xff)*4, i)
			continue
		case w&0xff78 == 0x4478: // ADD register, pc
			f.distance(s, &registers[w&7|w>>4&8], i, pc)
			continue
		case w < 0xe800:
			continue
		}
		if i+4 > len(b) {
			return
		}
		next := le.Uint16(b[i+2:])
		switch {
		case w&0xf800 == 0xf000 && (next&0xd000 == 0xd000 || next&0xd001 == 0xc000 || next&0xd000 == 0x9000):
			p := site{off: uint32(s.off) + uint32(i), kind: call25, base: pc}
			if f.isCode(callTarget(pc, uint32(w)|uint32(next)<<16)) {
				f.found(p)
			}
		case w == 0xf8df:
			load(int(next>>12), here+int(next&0xfff), i)
		case w == 0xf85f:
			load(int(next>>12), here-int(next&0xfff), i)
		}
		i += 2
	}
}

func (f *finder) codeWords(s *section, from, to int) {
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size]
	var registers [16]loaded
	for i := from; i+4 <= to; i += 4 {
		w := le.Uint32(b[i:])
		pc := s.addr + uint64(i) + 8
		switch {
		case w>>28 != 15 && w>>25&7 == 5: // B, BL
			if p := (site{off: uint32(s.off) + uint32(i), kind: branch24, base: pc}); f.isCode(wordTarget(p, w)) {
				f.found(p)
			}
		case w&0x0f7f0000 == 0x051f0000: // LDR literal
			off := i + 8 - int(w&0xfff)
			if w&(1<<23) != 0 {
				off = i + 8 + int(w&0xfff)
			}
			if off > 0 && off+4 <= len(b) {
				registers[w>>12&15] = loaded{off, i}
			}
		case w&0x0fff0ff0 == 0x008f0000, w&0x0fff0ff0 == 0x079f0000: // ADD register, pc, register; LDR register, [pc, register]
			f.distance(s, &registers[w&15], i, pc)
		case isStub(b[i:]):
			if p := (site{off: uint32(s.off) + uint32(i), kind: stub96, base: pc}); f.mapped(f.target(p)) {
				f.found(p)
			}
		}
	}
}

// unwindIndex takes .ARM.exidx: pairs of a function and how it is unwound, a place in .ARM.extab where
// the upper bit is clear. What stands there begins with the place of a handler in the same form.
func (f *finder) unwindIndex(s *section) {
	le := binary.LittleEndian
	place := func(off uint64, addr uint64) (site, bool) {
		p := site{off: uint32(off), kind: place31, base: addr}
		return p, le.Uint32(f.b[off:])>>31 == 0 && f.mapped(f.target(p))
	}
	for i := uint64(0); i+8 <= s.size; i += 8 {
		p, ok := place(s.off+i, s.addr+i)
		if !ok {
			continue
		}
		p.index = true
		f.found(p)
		const cannotUnwind = 1
		if le.Uint32(f.b[s.off+i+4:]) == cannotUnwind {
			continue
		}
		if p, ok = place(s.off+i+4, s.addr+i+4); !ok {
			continue
		}
		f.found(p)
		addr := f.target(p)
		if l, off, ok := f.offset(addr); ok && addr-l.addr+4 <= l.fileSize && off+4 <= uint64(len(f.b)) {
			if p, ok := place(off, addr); ok {
				f.found(p)
			}
		}
	}
}

// stubsARM labels the stubs of .plt, and what leads from Thumb into one: BX pc; NOP.
func (m *masker) stubsARM(sites []site) {
	for _, p := range sites {
		if p.kind != stub96 {
			continue
		}
		l, ok := m.named[m.im.target(p)]
		if !ok {
			continue
		}
		at := p.base - 8
		m.named[at] = l
		if p.off >= 4 && binary.LittleEndian.Uint16(m.im.b[p.off-4:]) == 0x4778 {
			m.named[at-4] = l
		}
	}
}
