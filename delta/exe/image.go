package exe

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// An image is what is known of a linked ELF file for x86-64, AArch64 or 32-bit ARM.
type image struct {
	b       []byte
	machine uint16
	*layout
	loads    []load
	sections []section // none in the head of a file
	code     []section // those with code
}

// A load is a part of the file that is mapped.
type load struct {
	off, addr, fileSize, memSize uint64
	exec                         bool
}

type section struct {
	typ, link  uint32
	addr       uint64
	off, size  uint64
	name       string
	executable bool
}

// A layout is how long things are in a file whose addresses have 64 or 32 bits.
type layout struct {
	header, phdr, shdr uint64
	symbol             uint64 // entries of a table of symbols
	relocation         uint64 // entries of the relocations that the machine has
	relocations        uint32 // type of their sections
	pointer            siteKind
}

var (
	layout64 = &layout{header: headerSize, phdr: phdrSize, shdr: shdrSize, symbol: symbolSize, relocation: relaSize, relocations: shtRela, pointer: absolute64}
	layout32 = &layout{header: 52, phdr: 32, shdr: 40, symbol: symbolSize32, relocation: 8, relocations: shtRel, pointer: absolute32}
)

const (
	headerSize   = 64
	phdrSize     = 56
	shdrSize     = 64
	relaSize     = 24
	symbolSize   = 24
	symbolSize32 = 16
	maxPhdrs     = 64
	maxSections  = 1024
	maxSize      = 1 << 30

	typeExec, typeDyn = 2, 3
	machineX86        = 62
	ptLoad            = 1
	shtProgbits       = 1
	shtRela           = 4
	shtDynamic        = 6
	shtNobits         = 8
	shtRel            = 9
	shtDynsym         = 11
	shtSymtab         = 2
)

// layoutOf returns the layout of a file by the start of its header; nil if it is none that
// this package knows.
func layoutOf(b []byte) *layout {
	if len(b) < headerSize || len(b) > maxSize {
		return nil
	}
	m := binary.LittleEndian.Uint16(b[18:])
	switch {
	case bytes.HasPrefix(b, []byte("\x7fELF\x02\x01\x01")) && (m == machineX86 || m == machineARM64):
		return layout64
	case bytes.HasPrefix(b, []byte("\x7fELF\x01\x01\x01")) && m == machineARM:
		return layout32
	}
	return nil
}

// word returns the address, or length, at the start of b.
func (l *layout) word(b []byte) uint64 {
	if l == layout32 {
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return binary.LittleEndian.Uint64(b)
}

// HeadSize returns how many bytes at the start of a file [Rewrite] must know of the
// new version: its headers. 0 if the file is none that this package knows.
func HeadSize(b []byte) int {
	l := layoutOf(b)
	if l == nil {
		return 0
	}
	le := binary.LittleEndian
	if t := le.Uint16(b[16:]); t != typeExec && t != typeDyn {
		return 0
	}
	offset, sizes := b[32:], b[54:]
	if l == layout32 {
		offset, sizes = b[28:], b[42:]
	}
	n := uint64(le.Uint16(sizes[2:]))
	if l.word(offset) != l.header || uint64(le.Uint16(sizes)) != l.phdr || n == 0 || n > maxPhdrs {
		return 0
	}
	return int(l.header + n*l.phdr)
}

// parse returns the image of a file, or of its head. nil if it is none.
func parse(b []byte) *image {
	n := HeadSize(b)
	if n == 0 || n > len(b) {
		return nil
	}
	le := binary.LittleEndian
	im := &image{b: b, machine: le.Uint16(b[18:]), layout: layoutOf(b)}
	for p := b[im.header:n]; len(p) > 0; p = p[im.phdr:] {
		var l load
		if im.layout == layout32 {
			l = load{off: im.word(p[4:]), addr: im.word(p[8:]), fileSize: im.word(p[16:]), memSize: im.word(p[20:]), exec: p[24]&1 != 0}
		} else {
			l = load{off: im.word(p[8:]), addr: im.word(p[16:]), fileSize: im.word(p[32:]), memSize: im.word(p[40:]), exec: p[4]&1 != 0}
		}
		const huge = 1 << 62
		if le.Uint32(p) != ptLoad || l.off > huge || l.fileSize > huge || l.memSize < l.fileSize || l.addr+l.memSize < l.addr {
			continue
		}
		im.loads = append(im.loads, l)
	}
	if len(im.loads) == 0 {
		return nil
	}
	im.readSections()
	return im
}

// readSections reads the section headers; a damaged table is as none.
func (im *image) readSections() {
	le, b := binary.LittleEndian, im.b
	off, sizes := im.word(b[40:]), b[58:]
	if im.layout == layout32 {
		off, sizes = im.word(b[32:]), b[46:]
	}
	n, names := uint64(le.Uint16(sizes[2:])), int(le.Uint16(sizes[4:]))
	if uint64(le.Uint16(sizes)) != im.shdr || n > maxSections || off > uint64(len(b)) || n*im.shdr > uint64(len(b))-off {
		return
	}
	var all []section
	var nameAt []uint32
	for h := b[off : off+n*im.shdr]; len(h) > 0; h = h[im.shdr:] {
		s := section{typ: le.Uint32(h[4:])}
		if im.layout == layout32 {
			s.addr, s.off, s.size, s.link = im.word(h[12:]), im.word(h[16:]), im.word(h[20:]), le.Uint32(h[24:])
		} else {
			s.addr, s.off, s.size, s.link = im.word(h[16:]), im.word(h[24:]), im.word(h[32:]), le.Uint32(h[40:])
		}
		s.executable = im.word(h[8:])&4 != 0
		if s.typ == shtNobits {
			s.off, s.size = 0, 0
		} else if s.off > uint64(len(b)) || s.size > uint64(len(b))-s.off {
			return
		}
		all = append(all, s)
		nameAt = append(nameAt, le.Uint32(h))
	}
	if names >= len(all) {
		return
	}
	table := b[all[names].off:][:all[names].size]
	for i := range all {
		if uint64(nameAt[i]) < uint64(len(table)) {
			name := table[nameAt[i]:]
			if k := bytes.IndexByte(name, 0); k >= 0 {
				all[i].name = string(name[:k])
			}
		}
	}
	im.sections = all
	for _, s := range all {
		if s.executable && s.addr != 0 && s.typ == shtProgbits {
			im.code = append(im.code, s)
		}
	}
}

// offset returns where an address lies in the file. ok is false for what is not mapped,
// zero for memory that no part of the file fills.
func (im *image) offset(addr uint64) (l *load, off uint64, ok bool) {
	for i := range im.loads {
		l := &im.loads[i]
		if d := addr - l.addr; d < l.memSize || d == l.memSize && d > 0 {
			return l, l.off + d, true
		}
	}
	return nil, 0, false
}

// address returns the address of a place in the file.
func (im *image) address(off uint64) (uint64, bool) {
	for _, l := range im.loads {
		if d := off - l.off; d < l.fileSize {
			return l.addr + d, true
		}
	}
	return 0, false
}

// isCode reports whether an address is one of code.
func (im *image) isCode(addr uint64) bool {
	for _, r := range im.code {
		if addr-r.addr < r.size {
			return true
		}
	}
	return false
}

func (im *image) mapped(addr uint64) bool {
	_, _, ok := im.offset(addr)
	return ok
}

func (im *image) section(name string) *section {
	i := slices.IndexFunc(im.sections, func(s section) bool { return s.name == name && s.typ != shtNobits && s.size > 0 })
	if i < 0 {
		return nil
	}
	return &im.sections[i]
}
