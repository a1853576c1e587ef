package exe

import (
	"encoding/binary"
	"hash/crc32"
)

// Instructions of AArch64 are words, so nothing has to be guessed about where one begins.
// What they say of addresses is cut into fields of a word:
//
//	branch26   B, BL                    imm26 at bit 0, words
//	branch19   B.cond, CBZ, CBNZ        imm19 at bit 5, words
//	branch14   TBZ, TBNZ                imm14 at bit 5, words
//	literal19  LDR (literal)            imm19 at bit 5, words
//	near21     ADR                      imm21 at bits 5 and 29, bytes
//	page21     ADRP                     imm21 at bits 5 and 29, pages
//	low12      ADD, LDR, STR behind it  imm12 at bit 10, in units of the access
//
// An ADRP holds a page only; the address that is meant is known from the instruction that
// adds the rest. So an ADRP is a site together with the first of these, and each of
// these is a site of its own, which counts from the page.
const machineARM64 = 183

// pairWithin is how many instructions behind an ADRP one looks for what adds the rest.
const pairWithin = 12

// pageSize is what an ADRP counts in, whatever the system's pages are.
const pageMask = 1<<12 - 1

func split21(v uint32) uint32 { return v>>2&(1<<19-1)<<5 | v&3<<29 }

// unit returns the power of two that the 12 bits of an addition or an access count in.
func unit(w uint32) uint {
	if w&0x3b000000 != 0x39000000 { // ADD
		return 0
	}
	if w&0x04800000 == 0x04800000 { // 16 bytes of a vector register
		return 4
	}
	return uint(w >> 30)
}

// codeARM64 finds branches and references to data.
func (f *finder) codeARM64(s *section) {
	le, b := binary.LittleEndian, f.b[s.off:s.off+s.size&^3]
	at := func(i int, k siteKind) site {
		return site{off: uint32(s.off) + uint32(i), kind: k, base: s.addr + uint64(i)}
	}
	for i := 0; i+4 <= len(b); i += 4 {
		w := le.Uint32(b[i:])
		var p site
		switch {
		case w&0x7c000000 == 0x14000000:
			p = at(i, branch26)
		case w&0xff000000 == 0x54000000, w&0x7e000000 == 0x34000000:
			p = at(i, branch19)
		case w&0x7e000000 == 0x36000000:
			p = at(i, branch14)
		case w&0x3b000000 == 0x18000000:
			p = at(i, literal19)
		case w&0x9f000000 == 0x10000000:
			p = at(i, near21)
		case w&0x9f000000 == 0x90000000:
			f.pages(at(i, page21), b[i:])
			continue
		default:
			continue
		}
		if f.mapped(wordTarget(p, w)) {
			f.found(p)
		}
	}
}

// pages visits an ADRP and what adds the rest of the address. b begins with it.
func (f *finder) pages(p site, b []byte) {
	le := binary.LittleEndian
	w := le.Uint32(b)
	register := w & 31
	page := wordTarget(p, w)
	var rest []site
	for i := 4; i+4 <= len(b) && i <= 4*pairWithin; i += 4 {
		w := le.Uint32(b[i:])
		if w&0x7c000000 == 0x14000000 && w>>31 == 0 || w&0xfffffc1f == 0xd65f0000 { // B, RET: another path
			break
		}
		add, access := w&0xffc00000 == 0x91000000, w&0x3b000000 == 0x39000000
		if (add || access) && w>>5&31 == register {
			u := site{off: p.off + uint32(i), kind: low12, base: page}
			if f.mapped(wordTarget(u, w)) {
				rest = append(rest, u)
			}
		}
		if w&0x9f000000 == 0x90000000 && w&31 == register || add && w&31 == register {
			break // the register holds something else now
		}
	}
	if len(rest) == 0 {
		return // a page alone says too little
	}
	p.low = uint16(wordTarget(rest[0], le.Uint32(f.b[rest[0].off:])) - page)
	f.found(p)
	for _, u := range rest {
		f.found(u)
	}
}

// stubsARM64 labels the stubs of .plt: adrp x16, slot; ldr x17, [x16, slot]; add; br x17.
func (m *masker) stubsARM64() {
	im, le := m.im, binary.LittleEndian
	for i := range im.sections {
		s := &im.sections[i]
		if !s.executable || s.typ != shtProgbits || s.name != ".plt" {
			continue
		}
		b := im.b[s.off : s.off+s.size]
		for at := 0; at+8 <= len(b); at += 4 {
			w, next := le.Uint32(b[at:]), le.Uint32(b[at+4:])
			if w&0x9f00001f != 0x90000010 || next&0xffc003ff != 0xf9400211 {
				continue
			}
			p := site{kind: page21, base: s.addr + uint64(at)}
			l, ok := m.named[wordTarget(site{kind: low12, base: wordTarget(p, w)}, next)]
			if !ok {
				continue
			}
			m.named[s.addr+uint64(at)] = l
			if at >= 4 && le.Uint32(b[at-4:]) == 0xd503245f { // bti c
				m.named[s.addr+uint64(at)-4] = l
			}
		}
	}
}

// label21 makes a label of 21 bits of a longer one that is not zero.
func label21(l uint64) uint32 {
	if l == 0 {
		return 0
	}
	h := crc32.ChecksumIEEE(binary.LittleEndian.AppendUint64(nil, l))
	return h ^ h>>16<<29 | 1<<5
}
