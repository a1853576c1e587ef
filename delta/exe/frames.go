package exe

import (
	"bytes"
	"encoding/binary"
)

// pcrel4 is the usual pointer encoding of .eh_frame: relative to its own place, 4 bytes.
const pcrel4 = 0x1b

// common is what functions of .eh_frame share.
type common struct {
	start    bool // their start is given relative to its place
	handlers bool // and the place of their table of handlers
}

// walkFrames walks .eh_frame and calls f with each function's entry whose shape is known: where
// it is, and its length without the first 4 bytes.
//
//	u32 length │ u32 distance back to the common entry, 0 in that itself │ …
//	function:    i32 start │ u32 size │ uleb length │ i32 handlers, if any │ …
//	common:      u8 version │ augmentation string │ …
func walkFrames(b []byte, f func(at, n uint64, c common)) {
	le := binary.LittleEndian
	commons := map[uint64]common{}
	for at := uint64(0); at+12 <= uint64(len(b)); {
		n := uint64(le.Uint32(b[at:]))
		if n < 8 || n >= 0xfffffff0 || n > uint64(len(b))-at-4 {
			return
		}
		e := b[at+8 : at+4+n]
		back := uint64(le.Uint32(b[at+4:]))
		if back == 0 {
			start, handlers := augmentation(e)
			commons[at] = common{start, handlers}
		} else if c, ok := commons[at+4-back]; ok && c.start && len(e) >= 8 {
			c.handlers = c.handlers && len(e) >= 13 && e[8] == 4
			f(at, n, c)
		}
		at += 4 + n
	}
}

// frames takes what the entries of .eh_frame say of places.
func (f *finder) frames(s *section) {
	b := f.b[s.off : s.off+s.size]
	walkFrames(b, func(at, n uint64, c common) {
		place := func(i uint64, k siteKind) site {
			return site{off: uint32(s.off + at + i), kind: k, base: s.addr + at + i}
		}
		f.found(place(4, distance32))
		if p := place(8, relative32); f.mapped(f.target(p)) {
			f.found(p)
		}
		if p := place(17, relative32); c.handlers && binary.LittleEndian.Uint32(b[at+17:]) != 0 && f.mapped(f.target(p)) {
			f.found(p)
		}
	})
}

// augmentation says how the entries of functions that refer to a common entry look.
func augmentation(e []byte) (start, handlers bool) {
	if len(e) < 2 {
		return false, false
	}
	n := bytes.IndexByte(e[1:], 0)
	if n < 1 || e[1] != 'z' {
		return false, false
	}
	aug := e[2 : 1+n]
	rest := e[2+n:]
	for range 4 { // code and data alignment, return register, length: small numbers
		k := 0
		for k < len(rest) && rest[k]&0x80 != 0 {
			k++
		}
		if k >= len(rest) {
			return false, false
		}
		rest = rest[k+1:]
	}
	for _, c := range aug {
		if len(rest) == 0 {
			return false, false
		}
		switch c {
		case 'R':
			start = rest[0] == pcrel4
			rest = rest[1:]
		case 'L':
			handlers = rest[0] == pcrel4
			rest = rest[1:]
		case 'P':
			if rest[0]&0x0f != 0x0b || len(rest) < 5 { // 4 bytes
				return false, false
			}
			rest = rest[5:]
		case 'S', 'B':
		default:
			return false, false
		}
	}
	return start, handlers
}

// frameIndex takes .eh_frame_hdr: pairs of function and entry, relative to the start
// of the section, sorted by function.
func (f *finder) frameIndex(s *section) {
	b := f.b[s.off : s.off+s.size]
	const head = 12
	if len(b) < head || b[0] != 1 || b[1] != pcrel4 || b[3] != 0x3b {
		return
	}
	f.found(site{off: uint32(s.off) + 4, kind: relative32, base: s.addr + 4})
	for i := head; i+8 <= len(b); i += 4 {
		p := site{off: uint32(s.off) + uint32(i), kind: relative32, base: s.addr, index: true}
		if f.mapped(f.target(p)) {
			f.found(p)
		}
	}
}
