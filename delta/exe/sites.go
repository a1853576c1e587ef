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

	index bool // an entry of .eh_frame_hdr
}

func (s site) size() int {
	if s.kind == absolute64 {
		return 8
	}
	return 4
}

type siteKind uint8

const (
	absolute64 siteKind = iota // 8 bytes, an address
	relative32                 // 4 bytes, an address minus base
	distance32                 // 4 bytes, base minus an address
	index32                    // 4 bytes, the number of a symbol in the table at base
)

// target returns the address that a site holds.
func (im *image) target(s site) uint64 {
	switch s.kind {
	case absolute64:
		return binary.LittleEndian.Uint64(im.b[s.off:])
	case distance32:
		return s.base - uint64(binary.LittleEndian.Uint32(im.b[s.off:]))
	case index32:
		return s.base + symbolSize*uint64(binary.LittleEndian.Uint32(im.b[s.off:]))
	}
	return s.base + uint64(int64(int32(binary.LittleEndian.Uint32(im.b[s.off:]))))
}

// sites returns all that can be recognised, ordered by their place, without overlap.
func (im *image) sites() []site {
	var all []site
	var tables []uint64
	for i := range im.sections {
		s := &im.sections[i]
		switch {
		case s.typ == shtProgbits && s.executable:
			all = im.codeSites(all, s, &tables)
		case s.typ == shtRela && s.addr != 0:
			all = im.relaSites(all, s)
		case s.typ == shtDynsym || s.typ == shtSymtab:
			all = im.symbolSites(all, s)
		}
	}
	all = im.jumpTables(all, tables)
	if s := im.section(".eh_frame"); s != nil {
		all = im.frameSites(all, s)
	}
	if s := im.section(".eh_frame_hdr"); s != nil {
		all = im.frameIndexSites(all, s)
	}
	slices.SortStableFunc(all, func(a, b site) int { return int(int64(a.off) - int64(b.off)) })
	// The first of two that overlap stays.
	out, end := all[:0], uint32(0)
	for _, s := range all {
		if s.off < end {
			continue
		}
		out = append(out, s)
		end = s.off + uint32(s.size())
	}
	return out
}

// codeSites finds calls, jumps and references relative to the instruction pointer by
// their patterns. No instruction is decoded: what looks like one of these and
// leads to a place where it may lead hardly ever is something else, and a mistake costs
// bytes, no more.
func (im *image) codeSites(all []site, s *section, tables *[]uint64) []site {
	b := im.b[s.off : s.off+s.size]
	rel := func(i int) (site, uint64) {
		at := site{off: uint32(s.off) + uint32(i), kind: relative32, base: s.addr + uint64(i) + 4}
		return at, im.target(at)
	}
	for i := 0; i+6 <= len(b); i++ {
		switch c := b[i]; {
		case c == 0xe8 || c == 0xe9: // call, jmp
			if at, t := rel(i + 1); im.code(t) {
				all = append(all, at)
				i += 4
			}
		case c == 0x0f && b[i+1]&0xf0 == 0x80: // jcc
			if at, t := rel(i + 2); im.code(t) {
				all = append(all, at)
				i += 5
			}
		case c&0xc7 == 0x05 && i > 0: // a memory operand [rip+disp32]
			at, t := rel(i + 1)
			lea := b[i-1] == 0x8d
			if im.mapped(t) && (lea || !im.code(t)) {
				all = append(all, at)
				if lea && !im.code(t) {
					*tables = append(*tables, t)
				}
				i += 4
			}
		}
	}
	return all
}

// jumpTables finds tables of code addresses, relative to the table, where code takes the
// address of one.
func (im *image) jumpTables(all []site, tables []uint64) []site {
	slices.Sort(tables)
	tables = slices.Compact(tables)
	for i, base := range tables {
		l, off, ok := im.offset(base)
		if !ok || base%4 != 0 || base-l.addr >= l.fileSize {
			continue
		}
		end := min(l.off+l.fileSize, uint64(len(im.b)))
		if i+1 < len(tables) {
			end = min(end, off+tables[i+1]-base)
		}
		var found []site
		for ; off+4 <= end; off += 4 {
			s := site{off: uint32(off), kind: relative32, base: base}
			if !im.code(im.target(s)) {
				break
			}
			found = append(found, s)
		}
		if len(found) >= 2 {
			all = append(all, found...)
		}
	}
	return all
}

// relaSites takes relocations: their places, their addends if these are addresses, and
// the pointers themselves.
func (im *image) relaSites(all []site, s *section) []site {
	const size, relative, irelative = relaSize, 8, 37
	var table *section
	if int(s.link) < len(im.sections) && im.sections[s.link].typ == shtDynsym {
		table = &im.sections[s.link]
	}
	for off := s.off; off+size <= s.off+s.size; off += size {
		e := im.b[off:]
		place := binary.LittleEndian.Uint64(e)
		l, at, ok := im.offset(place)
		if !ok {
			continue
		}
		all = append(all, site{off: uint32(off), kind: absolute64})
		kind := binary.LittleEndian.Uint64(e[8:])
		if kind>>32 != 0 && table != nil && (kind>>32+1)*symbolSize <= table.size {
			all = append(all, site{off: uint32(off) + 12, kind: index32, base: table.addr})
		}
		addend := binary.LittleEndian.Uint64(e[16:])
		if kind == relative || kind == irelative {
			if im.mapped(addend) {
				all = append(all, site{off: uint32(off) + 16, kind: absolute64})
			}
		}
		if place-l.addr+8 <= l.fileSize && at+8 <= uint64(len(im.b)) {
			if v := binary.LittleEndian.Uint64(im.b[at:]); v != 0 && im.mapped(v) {
				all = append(all, site{off: uint32(at), kind: absolute64})
			}
		}
	}
	return all
}

// symbolSites takes the values of symbols, and where their names are.
func (im *image) symbolSites(all []site, s *section) []site {
	var names *section
	if int(s.link) < len(im.sections) && im.sections[s.link].addr != 0 {
		names = &im.sections[s.link]
	}
	for off := s.off; off+symbolSize <= s.off+s.size; off += symbolSize {
		e := im.b[off:]
		if names != nil && uint64(binary.LittleEndian.Uint32(e)) < names.size {
			all = append(all, site{off: uint32(off), kind: relative32, base: names.addr})
		}
		if binary.LittleEndian.Uint16(e[6:]) != 0 && im.mapped(binary.LittleEndian.Uint64(e[8:])) {
			all = append(all, site{off: uint32(off) + 8, kind: absolute64})
		}
	}
	return all
}
