package exe

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// An image is what is known of a linked ELF file for x86-64 or AArch64.
type image struct {
	b        []byte
	arm64    bool
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

const (
	headerSize  = 64
	phdrSize    = 56
	shdrSize    = 64
	relaSize    = 24
	symbolSize  = 24
	maxPhdrs    = 64
	maxSections = 1024
	maxSize     = 1 << 30

	typeExec, typeDyn = 2, 3
	machineX86        = 62
	ptLoad            = 1
	shtProgbits       = 1
	shtRela           = 4
	shtDynamic        = 6
	shtNobits         = 8
	shtDynsym         = 11
	shtSymtab         = 2
)

// HeadSize returns how many bytes at the start of a file [Rewrite] must know of the
// new version: its headers. 0 if the file is none that this package knows.
func HeadSize(b []byte) int {
	le := binary.LittleEndian
	if len(b) < headerSize || len(b) > maxSize || !bytes.HasPrefix(b, []byte("\x7fELF\x02\x01\x01")) {
		return 0
	}
	if t := le.Uint16(b[16:]); t != typeExec && t != typeDyn {
		return 0
	}
	n := uint64(le.Uint16(b[56:]))
	if m := le.Uint16(b[18:]); m != machineX86 && m != machineARM64 {
		return 0
	}
	if le.Uint64(b[32:]) != headerSize || le.Uint16(b[54:]) != phdrSize || n == 0 || n > maxPhdrs {
		return 0
	}
	return int(headerSize + n*phdrSize)
}

// parse returns the image of a file, or of its head. nil if it is none.
func parse(b []byte) *image {
	n := HeadSize(b)
	if n == 0 || n > len(b) {
		return nil
	}
	le := binary.LittleEndian
	im := &image{b: b, arm64: le.Uint16(b[18:]) == machineARM64}
	for p := b[headerSize:n]; len(p) > 0; p = p[phdrSize:] {
		l := load{off: le.Uint64(p[8:]), addr: le.Uint64(p[16:]), fileSize: le.Uint64(p[32:]), memSize: le.Uint64(p[40:]), exec: p[4]&1 != 0}
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
	off, n, names := le.Uint64(b[40:]), uint64(le.Uint16(b[60:])), int(le.Uint16(b[62:]))
	if le.Uint16(b[58:]) != shdrSize || n > maxSections || off > uint64(len(b)) || n*shdrSize > uint64(len(b))-off {
		return
	}
	var all []section
	var nameAt []uint32
	for h := b[off : off+n*shdrSize]; len(h) > 0; h = h[shdrSize:] {
		s := section{typ: le.Uint32(h[4:]), addr: le.Uint64(h[16:]), off: le.Uint64(h[24:]), size: le.Uint64(h[32:]), link: le.Uint32(h[40:])}
		s.executable = le.Uint64(h[8:])&4 != 0
		if s.typ == shtNobits {
			s.size = 0
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
