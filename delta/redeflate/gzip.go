package redeflate

import (
	"bytes"
	"encoding/binary"
	"hash/adler32"
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

// A zlib stream (RFC 1950) has two bytes before it and an Adler-32 behind it.
const (
	zlibHeader  = 2
	zlibTrailer = 4
)

func isZlib(p []byte) bool {
	return len(p) >= zlibHeader && p[0]&15 == 8 && p[0]>>4 <= 7 && (uint(p[0])<<8|uint(p[1]))%31 == 0 && p[1]&0x20 == 0
}

// zlib takes data apart, if it is one zlib stream that can be made again.
func (u *unpacker) zlib(data []byte) bool {
	if !isZlib(data) || len(data) < zlibHeader+zlibTrailer {
		return false
	}
	end := len(data) - zlibTrailer
	s, ok := u.stream(data[zlibHeader:end], hint{family: familyZlib, level: [...]int{1, 5, 6, 9}[data[1]>>6]})
	if !ok || zlibHeader+s.used != end || binary.BigEndian.Uint32(data[end:]) != adler32.Checksum(s.content) {
		return false
	}
	u.copyPending()
	u.recipe.literal(data[:zlibHeader])
	u.addStream(opZlib, s, "")
	return true
}
