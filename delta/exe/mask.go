package exe

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/btrovl/btrovl/delta/btf"
)

// Mask returns a copy of a file in which each address is replaced by a label of what it
// leads to, which does not change when things move: what is compared to find the moves.
// nil if the file is none that this package knows.
//
// Labels tell apart what would be all alike with the addresses cleared: tables of
// pointers, and the stubs through which functions of other libraries are called.
func Mask(b []byte) []byte {
	im := parse(b)
	if im == nil || im.sections == nil {
		return nil
	}
	out := slices.Clone(b)
	var sites []site
	im.sites(func() {}, func(s site) {
		sites = append(sites, s)
		if s.kind.word() {
			w := binary.LittleEndian.Uint32(b[s.off:])
			binary.LittleEndian.PutUint32(out[s.off:], mark(s.kind, w, 0))
			return
		}
		if s.kind == stub96 {
			setStub(out[s.off:], 0)
			return
		}
		clear(out[s.off:][:s.size()])
	})
	m := masker{im: im, cleared: bytes.Clone(out), named: map[uint64]uint32{}, slots: map[uint64]bool{}, frames: map[uint64]uint32{}}
	m.imports()
	switch im.machine {
	case machineARM64:
		m.stubsARM64()
	case machineARM:
		m.stubsARM(sites)
	default:
		m.stubs(out)
	}
	m.functions()
	for _, s := range sites {
		if s.place {
			continue
		}
		l := m.label(s)
		if s.kind.word() {
			w := binary.LittleEndian.Uint32(out[s.off:])
			binary.LittleEndian.PutUint32(out[s.off:], mark(s.kind, w, label21(l)))
			continue
		}
		switch s.kind {
		case absolute64:
			binary.LittleEndian.PutUint64(out[s.off:], l)
		case index24, symbol24:
			out[s.off], out[s.off+1], out[s.off+2] = byte(l), byte(l>>8), byte(l>>16)
		case stub96:
			setStub(out[s.off:], l)
		default:
			binary.LittleEndian.PutUint32(out[s.off:], uint32(l))
		}
	}
	for _, s := range sites {
		if s.place {
			// What the place holds, and what lies before it, now that labels stand there.
			_, off, _ := im.offset(im.target(s))
			binary.LittleEndian.PutUint32(out[s.off:], crc32.ChecksumIEEE(out[off-min(off, 16):min(off+8, uint64(len(b)))]))
		}
	}
	if s := im.section(".BTF"); s != nil {
		btf.Mask(out[s.off : s.off+s.size : s.off+s.size])
	}
	// Slots are what their symbol is, whatever they hold at first.
	for addr, l := range m.named {
		n := uint64(site{kind: im.pointer}.size())
		if p, off, ok := im.offset(addr); ok && !p.exec && addr-p.addr+n <= p.fileSize && off+n <= uint64(len(b)) && m.slots[addr] {
			binary.LittleEndian.PutUint32(out[off:], l)
			clear(out[off+4 : off+n])
		}
	}
	return out
}

type masker struct {
	im      *image
	cleared []byte            // the file with all addresses zero
	named   map[uint64]uint32 // slots, stubs and entries of symbols
	slots   map[uint64]bool
	frames  map[uint64]uint32 // functions, by what .eh_frame says of them
}

// label returns what stands for the target of a site.
func (m *masker) label(s site) uint64 {
	t := m.im.target(s)
	if s.name > 0 {
		return uint64(crc32.ChecksumIEEE(m.cleared[s.name : s.name+uint32(s.nameLen)]))
	}
	if l, ok := m.named[t]; ok {
		return uint64(l)
	}
	if l, ok := m.frames[t]; ok && s.index {
		return uint64(l)
	}
	if s.kind == distance32 && !s.index {
		return 0
	}
	l, off, ok := m.im.offset(t)
	if !ok || t-l.addr+8 > l.fileSize || off+8 > uint64(len(m.cleared)) {
		return 0
	}
	if s.index {
		// Many places of code begin alike: what lies before them tells them apart.
		return uint64(crc32.ChecksumIEEE(m.cleared[off-min(off-l.off, 12) : off+8]))
	}
	if m.im.isCode(t) && (s.kind == relative32 || s.kind.word()) {
		return 0
	}
	return binary.LittleEndian.Uint64(m.cleared[off:])
}

// imports labels the slots that the dynamic linker fills with addresses of symbols, and
// the symbols' entries, by name.
func (m *masker) imports() {
	im, le := m.im, binary.LittleEndian
	for i := range im.sections {
		s := &im.sections[i]
		if s.typ != im.relocations || uint64(s.link) >= uint64(len(im.sections)) || im.sections[s.link].typ != shtDynsym {
			continue
		}
		symbols := &im.sections[s.link]
		if uint64(symbols.link) >= uint64(len(im.sections)) {
			continue
		}
		names := im.b[im.sections[symbols.link].off:][:im.sections[symbols.link].size]
		for off := s.off; off+im.layout.relocation <= s.off+s.size; off += im.layout.relocation {
			r := im.relocation(im.b[off:])
			if r.symbol == 0 || (r.symbol+1)*im.symbol > symbols.size {
				continue
			}
			at := uint64(le.Uint32(im.b[symbols.off+r.symbol*im.symbol:]))
			if at >= uint64(len(names)) {
				continue
			}
			name := names[at:]
			if n := bytes.IndexByte(name, 0); n >= 0 {
				name = name[:n]
			}
			l := crc32.ChecksumIEEE(name)
			m.named[r.place], m.slots[r.place] = l, true
			m.named[symbols.addr+r.symbol*im.symbol] = l
		}
	}
}

// stubs labels the stubs that jump through such a slot: jmp *slot(%rip). The number that
// some push for the dynamic linker counts entries, and is cleared.
func (m *masker) stubs(out []byte) {
	im := m.im
	for i := range im.sections {
		s := &im.sections[i]
		if !s.executable || s.typ != shtProgbits || len(s.name) < 4 || s.name[:4] != ".plt" {
			continue
		}
		const stub = 16
		for at := uint64(0); at+8 <= s.size; at += 8 {
			b := im.b[s.off+at:]
			if b[0] == 0xf3 && b[1] == 0x0f { // endbr64
				b = b[min(4, len(b)):]
			}
			if len(b) < 6 || b[0] != 0xff || b[1] != 0x25 {
				continue
			}
			slot := im.target(site{off: uint32(len(im.b) - len(b) + 2), kind: relative32, base: s.addr + uint64(len(im.b)-len(b)) - s.off + 6})
			if l, ok := m.named[slot]; ok {
				m.named[s.addr+at] = l
			}
			if at+stub <= s.size && len(b) > 11 && b[6] == 0x68 { // push
				clear(out[s.off+at+7:][:4])
			}
		}
	}
}

// functions labels functions by their size and unwinding instructions.
func (m *masker) functions() {
	s := m.im.section(".eh_frame")
	if s == nil {
		return
	}
	b := m.im.b[s.off : s.off+s.size]
	cleared := m.cleared[s.off : s.off+s.size]
	walkFrames(b, func(at, n uint64, c common) {
		p := site{off: uint32(s.off + at + 8), kind: relative32, base: s.addr + at + 8}
		l := crc32.ChecksumIEEE(cleared[at+12 : at+4+n])
		m.frames[m.im.target(p)] = l
		m.frames[s.addr+at] = l
	})
}
