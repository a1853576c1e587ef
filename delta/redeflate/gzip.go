package redeflate

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// The header of a gzip member (RFC 1952).
const (
	gzipHeader  = 10
	gzipTrailer = 8

	gzipHasCRC     = 0x02
	gzipHasExtra   = 0x04
	gzipHasName    = 0x08
	gzipHasComment = 0x10
	gzipReserved   = 0xe0
)

func isGzip(p []byte) bool {
	return len(p) >= gzipHeader+gzipTrailer && p[0] == 0x1f && p[1] == 0x8b && p[2] == 8 && p[3]&gzipReserved == 0
}

// gzipHeaderLength returns the length of the header of a member, or 0.
func gzipHeaderLength(p []byte) int {
	n := gzipHeader
	if p[3]&gzipHasExtra != 0 {
		if len(p) < n+2 {
			return 0
		}
		n += 2 + int(binary.LittleEndian.Uint16(p[n:]))
	}
	for _, flag := range []byte{gzipHasName, gzipHasComment} {
		if p[3]&flag == 0 {
			continue
		}
		if n > len(p) {
			return 0
		}
		end := bytes.IndexByte(p[n:], 0)
		if end < 0 {
			return 0
		}
		n += end + 1
	}
	if p[3]&gzipHasCRC != 0 {
		n += 2
	}
	if n > len(p) {
		return 0
	}
	return n
}

// gzip takes one member apart and returns its length, or 0 if it cannot be
// made again. The header goes into the recipe, so that plain is what gunzip
// says; the trailer is computed, and must be right.
func (u *unpacker) gzip(data []byte) int {
	header := gzipHeaderLength(data)
	if header == 0 {
		return 0
	}
	h := hint{family: familyGNU, level: 6}
	switch data[8] {
	case 2:
		h.level = 9
	case 4:
		h.level = 1
	}
	if data[9] != 3 {
		h.family = familyZlib // a library's, not a program's on Unix
	}
	s, ok := u.stream(data[header:], h)
	if !ok {
		return 0
	}
	used := header + s.used
	var trailer [gzipTrailer]byte
	binary.LittleEndian.PutUint32(trailer[:], crc32.ChecksumIEEE(s.content))
	binary.LittleEndian.PutUint32(trailer[4:], uint32(len(s.content)))
	if !bytes.HasPrefix(data[used:], trailer[:]) {
		return 0
	}
	u.named("gzip")
	u.copyPending()
	u.recipe.literal(data[:header])
	u.addStream(opGzip, s, "")
	return used + gzipTrailer
}
