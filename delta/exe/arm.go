package exe

import "encoding/binary"

// 32-bit ARM: programs in Thumb-2 (Debian's armhf), whose instructions are one or two halfwords, or of words
// (armel, Raspberry Pi OS), or of both; and what a linker adds.
//
//	call25     BL, BLX, B.W     S:J1:J2:imm10:imm11 in two halfwords, halfwords
//	branch24   B, BL            imm24 of a word, words
//	half…      MOVW, MOVT       imm16, one half of an address or a distance each
//	place31    .ARM.exidx       31 bits, relative to their own place
//	stub96     .plt             ADD ip, pc, …; ADD ip, ip, …; LDR pc, [ip, …]!
//
// A distance to data does not fit into an instruction: it stands in a word behind the function,
// from which one instruction loads it and another one adds the program counter. The
// distance counts from the latter, so both have to be found. In the same way an entry of .got is loaded, whose
// distance counts from .got. Programs that are always mapped at the same place load addresses, and add nothing.
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

// imm16 returns the half that a MOVW or MOVT holds.
func imm16(k siteKind, w uint32) uint32 {
	if k == halfLowWord || k == halfHighWord {
		return w>>4&0xf000 | w&0xfff
	}
	return w&0xf<<12 | w>>10&1<<11 | w>>28&7<<8 | w>>16&0xff
}

func setImm16(k siteKind, w, v uint32) uint32 {
	w &^= k.fields()
	if k == halfLowWord || k == halfHighWord {
		return w | v&0xf000<<4 | v&0xfff
	}
	return w | v>>12&0xf | v>>11&1<<10 | v>>8&7<<28 | v&0xff<<16
}

// registers is what is known of the 16 registers while one goes through the code of a section.
type registers struct {
	f   *finder
	s   *section
	of  [16]struct{ word, low, high loaded }
	now int // where in the section the instruction is
}

// A loaded is what a register holds since the instruction at i: the word at off, or one half of one.
type loaded struct {
	off, i int // 0: nothing
	value  uint32
}

func (r *registers) recent(l loaded) bool { return l.off > 0 && r.now-l.i <= addWithin }

// word notes that the word at off is loaded.
func (r *registers) word(n uint32, off int) {
	if off <= 0 || uint64(off)+4 > r.s.size {
		return
	}
	r.of[n].word = loaded{off: off, i: r.now}
	if p := (site{off: uint32(r.s.off) + uint32(off), kind: absolute32}); r.f.fixed && r.f.mapped(r.f.target(p)) {
		r.f.found(p)
	}
}

// half notes that the instruction w, of the kind k, loads a half. (One at the very start of a section does not count.)
func (r *registers) half(n uint32, k siteKind, w uint32) {
	h := loaded{off: r.now, i: r.now, value: imm16(k, w)}
	if k == halfLow || k == halfLowWord {
		r.of[n].low, r.of[n].high = h, loaded{}
		return
	}
	r.of[n].high = h
	if r.f.fixed {
		r.both(n, k, 0)
	}
}

// both visits the halves in a register, of which k is the kind of the upper one, if they are there.
func (r *registers) both(n uint32, k siteKind, base uint64) {
	low, high := r.of[n].low, r.of[n].high
	if r.recent(low) && r.recent(high) && r.f.mapped(base+uint64(int64(int32(high.value<<16|low.value)))) {
		r.f.found(site{off: uint32(r.s.off) + uint32(low.off), kind: k - 1, base: base, low: uint16(high.value)})
		r.f.found(site{off: uint32(r.s.off) + uint32(high.off), kind: k, base: base, low: uint16(low.value)})
	}
	r.of[n].low, r.of[n].high = loaded{}, loaded{}
}

// add visits what a register holds, to which base is added. k is the kind of upper halves.
func (r *registers) add(n uint32, k siteKind, base uint64) {
	r.distance(n, base, func(p site) bool { return r.f.mapped(r.f.target(p)) })
	r.both(n, k, base)
}

// entry visits the word in a register of which the address of an entry of .got is made.
func (r *registers) entry(n uint32) {
	if got := r.f.got; got != nil {
		r.distance(n, got.addr, func(p site) bool { d := r.f.target(p) - got.addr; return d < got.size && d%4 == 0 })
	}
}

func (r *registers) distance(n uint32, base uint64, is func(site) bool) {
	l := &r.of[n].word
	if p := (site{off: uint32(r.s.off) + uint32(l.off), kind: relative32, base: base}); r.recent(*l) && is(p) {
		r.f.found(p)
	}
	*l = loaded{}
}

func (f *finder) codeThumb(s *section, from, to int) {
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size]
	r := registers{f: f, s: s}
	for i := from; i+2 <= to; i += 2 {
		r.now = i
		w := uint32(le.Uint16(b[i:]))
		pc := s.addr + uint64(i) + 4
		here := int(pc&^3 - s.addr)
		switch {
		case w&0xf800 == 0x4800: // LDR literal
			r.word(w>>8&7, here+int(w&0xff)*4)
			continue
		case w&0xff78 == 0x4478: // ADD register, pc
			r.add(w&7|w>>4&8, halfHigh, pc)
			continue
		case w&0xfe00 == 0x5800: // LDR register, [register, register]
			r.entry(w >> 6 & 7)
			r.entry(w >> 3 & 7)
			continue
		case w < 0xe800:
			continue
		}
		if i+4 > len(b) {
			return
		}
		next := uint32(le.Uint16(b[i+2:]))
		both := w | next<<16
		switch {
		case w&0xf800 == 0xf000 && (next&0xd000 == 0xd000 || next&0xd001 == 0xc000 || next&0xd000 == 0x9000):
			p := site{off: uint32(s.off) + uint32(i), kind: call25, base: pc}
			if f.isCode(callTarget(pc, both)) {
				f.found(p)
			}
		case w&0xfbf0 == 0xf240 && next>>15 == 0:
			r.half(next>>8&15, halfLow, both)
		case w&0xfbf0 == 0xf2c0 && next>>15 == 0:
			r.half(next>>8&15, halfHigh, both)
		case w == 0xf85f:
			r.word(next>>12, here-int(next&0xfff))
		case w&0xfff0 == 0xf850 && next&0xff0 == 0: // LDR register, [register, register]
			r.entry(next & 15)
			r.entry(w & 15)
		case w == 0xf8df:
			r.word(next>>12, here+int(next&0xfff))
		}
		i += 2
	}
}

func (f *finder) codeWords(s *section, from, to int) {
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size]
	r := registers{f: f, s: s}
	for i := from; i+4 <= to; i += 4 {
		r.now = i
		w := le.Uint32(b[i:])
		pc := s.addr + uint64(i) + 8
		switch {
		case w>>28 == 15: // none of these
		case w>>25&7 == 5: // B, BL
			if p := (site{off: uint32(s.off) + uint32(i), kind: branch24, base: pc}); f.isCode(wordTarget(p, w)) {
				f.found(p)
			}
		case w&0x0f7f0000 == 0x051f0000: // LDR literal
			if w&(1<<23) != 0 {
				r.word(w>>12&15, i+8+int(w&0xfff))
			} else {
				r.word(w>>12&15, i+8-int(w&0xfff))
			}
		case w&0x0ff00000 == 0x03000000:
			r.half(w>>12&15, halfLowWord, w)
		case w&0x0ff00000 == 0x03400000:
			r.half(w>>12&15, halfHighWord, w)
		case w&0x0fff0ff0 == 0x008f0000, w&0x0fff0ff0 == 0x079f0000: // ADD register, pc, register; LDR register, [pc, register]
			r.add(w&15, halfHighWord, pc)
		case w&0x0ff00ff0 == 0x07900000: // LDR register, [register, register]
			r.entry(w & 15)
			r.entry(w >> 16 & 15)
		case isStub(b[i:]):
			if p := (site{off: uint32(s.off) + uint32(i), kind: stub96, base: pc}); f.mapped(f.target(p)) {
				f.found(p)
			}
		}
	}
}

// unwindIndex takes .ARM.exidx: pairs of a function and how it is unwound, a place in .ARM.extab where
// the upper bit is clear. What stands there begins with the place of a handler in the same form,
// of which there are few: the function's beginning tells these apart.
func (f *finder) unwindIndex(s *section) {
	place := func(off, addr uint64) (site, bool) {
		p := site{off: uint32(off), kind: place31, base: addr}
		return p, binary.LittleEndian.Uint32(f.b[off:])>>31 == 0 && f.mapped(f.target(p))
	}
	at := func(addr, n uint64) (off uint64, ok bool) {
		l, off, ok := f.offset(addr)
		return off, ok && addr-l.addr+n <= l.fileSize && off+n <= uint64(len(f.b))
	}
	for i := uint64(0); i+8 <= s.size; i += 8 {
		function, ok := place(s.off+i, s.addr+i)
		if !ok {
			continue
		}
		begins := f.target(function)
		function.index = true
		f.found(function)
		const cannotUnwind = 1
		table, ok := place(s.off+i+4, s.addr+i+4)
		if !ok || binary.LittleEndian.Uint32(f.b[table.off:]) == cannotUnwind {
			continue
		}
		unwinding := f.target(table)
		f.found(table)
		if off, ok := at(unwinding, 4); ok {
			if p, ok := place(off, unwinding); ok {
				const before, n = 12, 20
				if code, ok := at(begins, n-before); ok && code > before {
					p.name, p.nameLen = uint32(code-before), n
				}
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
