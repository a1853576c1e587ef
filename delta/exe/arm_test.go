package exe

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"
)

// Each instruction of ARM says what it was made to say, and the rest of it stays.
func TestInstructionsARM(t *testing.T) {
	const pc = 0x412344
	for _, c := range []struct {
		kind   siteKind
		w      uint32
		target uint64
	}{
		{call25, 0xf800f000, pc + 1<<24 - 2}, {call25, 0xf800f000, pc - 1<<22}, // BL
		{call25, 0xe800f000, pc + 4096}, {call25, 0xe800f000, pc - 4096}, // BLX
		{call25, 0xb800f000, pc + 2}, // B.W
		{branch24, 0xeb000000, pc + 1<<25 - 4}, {branch24, 0x0affffff, pc - 1<<22},
		{place31, 0x80000000, pc + 1<<30 - 1}, {place31, 0x7fffffff, pc - 1<<22},
	} {
		checkWord(t, site{kind: c.kind, base: pc}, c.w, c.target)
	}
	for _, k := range []siteKind{halfHigh, halfHighWord} {
		const base, target = 0x1000, 0x8765f321
		low := setWord(site{kind: k - 1}, ^uint32(0), target, base)
		high := setWord(site{kind: k}, 0, target, base)
		l := site{kind: k - 1, base: base, low: uint16(imm16(k, high))}
		h := site{kind: k, base: base, low: uint16(imm16(k-1, low))}
		if got := uint32(wordTarget(l, low)); got != target {
			t.Errorf("lower half: %x", got)
		}
		if got := uint32(wordTarget(h, high)); got != target {
			t.Errorf("upper half: %x", got)
		}
		if low|k.fields() != ^uint32(0) || high&^k.fields() != 0 {
			t.Errorf("%08x and %08x outside of the field", low, high)
		}
	}
}

// What GNU as makes of an instruction leads where it says.
func TestWordsOfAs(t *testing.T) {
	for _, c := range []struct {
		text   string
		kind   siteKind
		w      uint32
		base   uint64
		low    uint16
		target uint32
	}{
		{"movw r9, #0xf9ab", halfLow, 0x19abf64f, 0, 0x0f0f, 0x0f0ff9ab},
		{"movt r9, #0x0f0f", halfHigh, 0x790ff6c0, 0, 0xf9ab, 0x0f0ff9ab},
		{"movw r0, #0x1234", halfLow, 0x2034f241, 0, 0x8765, 0x87651234},
		{"movt r0, #0x8765", halfHigh, 0x7065f2c8, 0, 0x1234, 0x87651234},
		{"movw r5, #0x1234", halfLowWord, 0xe3015234, 0, 0x8765, 0x87651234},
		{"movt r5, #0x8765", halfHighWord, 0xe3485765, 0, 0x1234, 0x87651234},
		{"bl 0x1028, Thumb", call25, 0xf800f001, 0x28, 0, 0x1028},
		{"bl 0xfffffc3c, Thumb", call25, 0xfe08f7ff, 0x2c, 0, 0xfffffc3c},
		{"bl 0xabcdf2, Thumb", call25, 0xdef7f2bc, 0x4, 0, 0xabcdf2},
		{"bl 0xff84321a, Thumb", call25, 0xf109f443, 0x8, 0, 0xff84321a},
		{"blx 0xabc5fc", call25, 0xcaf8f2bc, 0xe, 0, 0xabc5fc},
		{"blx 0x1030", call25, 0xe800f001, 0x30, 0, 0x1030},
		{"b.w 0x12348a", call25, 0xba2bf123, 0x34, 0, 0x12348a},
		{"bl 0x105c", branch24, 0xeb000400, 0x5c, 0, 0x105c},
		{"beq 0xfffff060", branch24, 0x0afffc00, 0x60, 0, 0xfffff060},
	} {
		s := site{kind: c.kind, base: c.base, low: c.low}
		if got := uint32(wordTarget(s, c.w)); got != c.target {
			t.Errorf("%s: leads to %x, want %x", c.text, got, c.target)
		}
		if got := setWord(s, c.w&^c.kind.fields(), wordTarget(s, c.w), c.base); got != c.w {
			t.Errorf("%s: made again as %08x, want %08x", c.text, got, c.w)
		}
	}
}

// What GNU as and ld made of a few instructions, with .text at 0x10000 and data at 0x12340. All that leads
// somewhere is found there, and an instruction that is made to lead there again is the same.
func TestAssembledARM(t *testing.T) {
	const text, got, data = 0x10000, 0x13000, 0x12340
	type found struct {
		off    uint32
		kind   siteKind
		target uint64
	}
	for _, c := range []struct {
		name, code string
		size       uint64 // with zeros behind
		want       []found
	}{
		// ldr r3, 1f; ldr.w r11, 2f; ldr r2, 3f; 5: add r3, pc; 6: add r11, pc; ldr r2, [r4, r2]; movw r9, #:lower16:(data-(7f+4));
		// movt r9, #:upper16:(data-(7f+4)); 7: add r9, pc; ldr.w r8, 4f; ldr.w r8, [r10, r8]; bl .text; blx .text+0x444; b.w .text+0x440;
		// bx lr; 1: .word data-(5b+4); 2: .word data+8-(6b+4); 3: .word 8; 4: .word 12
		{"Thumb", "0b4bdff830b00c4a7b44fb44a25842f22639c0f20009f944dff820805af80880fff7eeff00f00eea00f00aba704700bf342300003a230000080000000c000000", 1096,
			[]found{{0x0e, halfLow, data}, {0x12, halfHigh, data}, {0x20, call25, text}, {0x24, call25, text + 0x444}, {0x28, call25, text + 0x440},
				{0x30, relative32, data}, {0x34, relative32, data + 8}, {0x38, relative32, got + 8}, {0x3c, relative32, got + 12}}},
		// ldr r3, 1f; ldr r2, 3f; 5: add r3, pc, r3; ldr r2, [r4, r2]; ldr r5, 2f; 6: ldr r5, [pc, r5]; movw r6, #:lower16:(data-(7f+8));
		// movt r6, #:upper16:(data-(7f+8)); 7: add r6, pc, r6; bl .text; beq stub; bx lr; 1: .word data-(5b+8); 2: .word data+8-(6b+8);
		// 3: .word 8; stub: add ip, pc, #0, 12; add ip, ip, #0x2000; ldr pc, [ip, #0x10]!
		{"words", "28309fe52c209fe503308fe0022094e71c509fe505509fe7186302e3006040e306608fe0f5ffffeb0300000a1eff2fe1302300002c2300000800000000c68fe202ca8ce210f0bce5", 72,
			[]found{{0x18, halfLowWord, data}, {0x1c, halfHighWord, data}, {0x24, branch24, text}, {0x28, branch24, text + 0x3c},
				{0x30, relative32, data}, {0x34, relative32, data + 8}, {0x38, relative32, got + 8}, {0x3c, stub96, text + 0x44 + 0x2010}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, err := hex.DecodeString(c.code)
			if err != nil {
				t.Fatal(err)
			}
			im := &image{b: append(code, make([]byte, c.size-uint64(len(code)))...), machine: machineARM, layout: layout32,
				loads: []load{{addr: text, fileSize: c.size, memSize: 0x10000}}}
			s := section{typ: shtProgbits, addr: text, size: c.size, executable: true}
			im.code = []section{s}
			var have []found
			f := &finder{image: im, shed: func() {}, taken: make([]uint64, c.size/64+1), got: &section{addr: got, size: 64}}
			f.visit = func(s site) {
				have = append(have, found{s.off, s.kind, im.target(s)})
				if s.kind.word() {
					w := binary.LittleEndian.Uint32(im.b[s.off:])
					if again := setWord(s, w&^s.kind.fields(), im.target(s), s.base); again != w {
						t.Errorf("at %x: %08x, want %08x", s.off, again, w)
					}
				}
			}
			f.codeARM(&s)
			slices.SortFunc(have, func(a, b found) int { return int(a.off) - int(b.off) })
			if !slices.Equal(have, c.want) {
				t.Errorf("found %x\nwant  %x", have, c.want)
			}
		})
	}
}

// buildARM links a program as build does, with 32 bits: in Thumb, or in instructions of a word, and
// with distances or, where it is fixed, with addresses.
func (p *program) buildARM(thumb, fixed bool) []byte {
	le := binary.LittleEndian
	a := &assembler{base: 0x10000, at: uint64(layout32.header + 2*layout32.phdr)}
	n := len(p.functions)
	const fixedSize = 4 * 13
	var starts []int
	codeSize := 0
	for _, f := range p.functions {
		starts = append(starts, codeSize)
		codeSize += len(f)/4*4 + fixedSize
	}
	plt := a.add(".plt", shtProgbits, 4, 12*len(p.imports))
	text := a.add(".text", shtProgbits, 4, codeSize)
	strs := a.add(".rodata", shtProgbits, 0, 0)
	var strAt []uint64
	for _, s := range p.strings {
		strAt = append(strAt, strs.addr+uint64(len(strs.data)))
		strs.data = append(append(strs.data, s...), 0)
	}
	a.at += uint64(len(strs.data))
	tables := a.add(".ARM.extab", shtProgbits, 0, 12*n)
	index := a.add(".ARM.exidx", shtARMExidx, 0, 8*n)
	names := a.add(".dynstr", 3, 0, 1)
	sym := a.add(".dynsym", shtDynsym, 0, symbolSize32*(len(p.imports)+1))
	a.at += uint64(20 * len(p.imports))
	rel := a.add(".rel.dyn", shtRel, 0, 8*(n+len(p.imports)))
	rel.link, sym.link = 1+slices.Index(a.s, sym), 1+slices.Index(a.s, names)
	got := a.add(".got", shtProgbits, 0, 4*len(p.imports))
	data := a.add(".data", shtProgbits, 0, 4*n)

	put := func(s *buildSection, at int, k siteKind, w uint32, base, target uint64) {
		le.PutUint32(s.data[at:], setWord(site{kind: k}, w, target, base))
	}
	fn := func(i int) uint64 { return text.addr + uint64(starts[i%n]) }
	for i, f := range p.functions {
		at := starts[i]
		for k := 0; k+4 <= len(f); k, at = k+4, at+4 {
			le.PutUint32(text.data[at:], 0xe3a01000|uint32(f[k]))
			if thumb {
				le.PutUint32(text.data[at:], 0x21002000|uint32(f[k])|uint32(i%16)<<16) // movs, movs
			}
		}
		here := text.addr + uint64(at)
		s, stub, slot := strAt[i%len(strAt)], plt.addr+12*uint64(i%len(p.imports)), uint64(4*(i%len(p.imports)))
		code := text.data[at:]
		words := func(w ...uint32) {
			for k, v := range w {
				le.PutUint32(code[4*k:], v)
			}
		}
		base := uint64(0)
		if thumb {
			if !fixed {
				base = here + 8
			}
			// ldr r3, =string; ldr r2, =slot; add r3, pc; ldr r2, [r4, r2]; bl; blx; movw, movt; add r5, pc; nop; bx lr
			words(0x4a094b08, 0x58a2447b, 0, 0, 0, 0, 0xbf00447d, 0xbf004770, 0xbf00bf00)
			put(text, at+8, call25, 0xf800f000, here+12, fn(i*7+2))
			put(text, at+12, call25, 0xe800f000, here+16, stub)
			b := uint64(0)
			if !fixed {
				b = here + 28
			}
			put(text, at+16, halfLow, 0x0500f240, b, fn(i*3))
			put(text, at+20, halfHigh, 0x0500f2c0, b, fn(i*3))
			le.PutUint32(code[36:], uint32(s-base))
			le.PutUint32(code[40:], uint32(slot))
		} else {
			if !fixed {
				base = here + 16
			}
			// ldr r3, =string; ldr r2, =slot; add r3, pc, r3; ldr r2, [r4, r2]; bl; bl; movw, movt; add r5, pc, r5; bx lr
			b, add := uint64(0), uint32(0xe1a00000) // nop
			if !fixed {
				b, add = here+40, 0xe08f5005
			}
			words(0xe59f3020, 0xe59f2020, 0xe08f3003, 0xe7942002, 0, 0, 0, 0, add, 0xe12fff1e)
			put(text, at+16, branch24, 0xeb000000, here+24, fn(i*7+2))
			put(text, at+20, branch24, 0xeb000000, here+28, stub)
			put(text, at+24, halfLowWord, 0xe3005000, b, fn(i*3))
			put(text, at+28, halfHighWord, 0xe3405000, b, fn(i*3))
			le.PutUint32(code[40:], uint32(s-base))
			le.PutUint32(code[44:], uint32(slot))
		}
		le.PutUint32(data.data[4*i:], uint32(fn(i*3)))
		le.PutUint32(rel.data[8*i:], uint32(data.addr)+uint32(4*i))
		le.PutUint32(rel.data[8*i+4:], 23)
		put(index, 8*i, place31, 0, index.addr+uint64(8*i), fn(i))
		put(index, 8*i+4, place31, 0, index.addr+uint64(8*i)+4, tables.addr+uint64(12*i))
		put(tables, 12*i, place31, 0, tables.addr+uint64(12*i), plt.addr)
		copy(tables.data[12*i+4:], "\xb0\xb0\xa8\x80")
	}
	for i, name := range p.imports {
		le.PutUint32(sym.data[symbolSize32*(i+1):], uint32(len(names.data)))
		names.data = append(append(names.data, name...), 0)
		slot := got.addr + uint64(4*i)
		for k, w := range []uint32{0xe28fc600, 0xe28cca00, 0xe5bcf000} {
			le.PutUint32(plt.data[12*i+4*k:], w)
		}
		setStub(plt.data[12*i:], slot-(plt.addr+uint64(12*i)+8))
		le.PutUint32(rel.data[8*(n+i):], uint32(slot))
		le.PutUint32(rel.data[8*(n+i)+4:], uint32(i+1)<<8|22)
	}
	kind := uint16(typeDyn)
	if fixed {
		kind = typeExec
	}
	return a.link(layout32, kind, machineARM)
}

func TestProgramsARM(t *testing.T) {
	for _, c := range []struct {
		name         string
		thumb, fixed bool
	}{{"Thumb", true, false}, {"Thumb, fixed", true, true}, {"words", false, false}, {"words, fixed", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			old, new := newProgram(false).buildARM(c.thumb, c.fixed), grown(false).buildARM(c.thumb, c.fixed)
			same := bytes.Clone(old)
			if !Rewrite(same, old, []Move{{0, 0, int64(len(old))}}) || !bytes.Equal(same, old) {
				t.Error("it changes where nothing moves")
			}
			_, got, want := compared(t, old, new)
			t.Logf("%d bytes to say, %d without addresses, of %d", got, want, len(new))
			if got*4 > want {
				t.Errorf("%d bytes to say, %d without addresses", got, want)
			}
		})
	}
}

// A fixed program of 64 bits has no relocations that say where its pointers are.
func TestFixedPointers(t *testing.T) {
	strip := func(b []byte) []byte { // relocations become something else
		im := parse(b)
		shoff := binary.LittleEndian.Uint64(b[40:])
		for i := range im.sections {
			if im.sections[i].typ == shtRela {
				binary.LittleEndian.PutUint32(b[shoff+uint64(i)*shdrSize+4:], shtNobits)
				clear(b[im.sections[i].off:][:im.sections[i].size])
			}
		}
		return b
	}
	old, new := strip(newProgram(false).build()), strip(grown(false).build())
	_, got, want := compared(t, old, new)
	t.Logf("%d bytes to say, %d without addresses, of %d", got, want, len(new))
	if got*4 > want {
		t.Errorf("%d bytes to say, %d without addresses", got, want)
	}
}

func FuzzARM(f *testing.F) {
	for _, thumb := range []bool{false, true} {
		f.Add(newProgram(false).buildARM(thumb, thumb), int64(100), int64(200), int64(5000))
	}
	f.Fuzz(sameEachTime)
}
