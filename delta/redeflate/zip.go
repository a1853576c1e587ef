package redeflate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io"
	"slices"
)

// Zip archives (PKWARE's APPNOTE.TXT): members, each behind a local header,
// then a directory, then a record that says where the directory is. What is
// between the members' data is raw; members are found by the directory.
const (
	zipLocal     = 30
	zipDirectory = 46
	zipEnd       = 22
	zipComment   = 0xffff // the longest that may follow zipEnd

	zipStored   = 0
	zipDeflated = 8
)

func isZip(p []byte) bool {
	return len(p) >= zipLocal && string(p[:4]) == "PK\x03\x04"
}

// A zipMember is the data of one member.
type zipMember struct {
	name         string
	offset, size int64 // of its data in the archive
	method       uint16
	flags        uint16
}

// zipMembers lists the members in the order of the archive, without those whose
// place is not clear.
func zipMembers(r io.ReaderAt, size int64) ([]zipMember, error) {
	tail := make([]byte, min(size, zipEnd+zipComment))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return nil, err
	}
	end := -1
	for i := len(tail) - zipEnd; i >= 0 && end < 0; i-- {
		if string(tail[i:i+4]) == "PK\x05\x06" {
			end = i
		}
	}
	if end < 0 {
		return nil, ErrUnsupported
	}
	length := int64(binary.LittleEndian.Uint32(tail[end+12:]))
	offset := int64(binary.LittleEndian.Uint32(tail[end+16:]))
	if length > size || offset > size-length || length > maxZipDirectory {
		return nil, ErrUnsupported // damaged, or of the 64-bit kind
	}
	dir := make([]byte, length)
	if _, err := r.ReadAt(dir, offset); err != nil && err != io.EOF {
		return nil, err
	}
	var out []zipMember
	for len(dir) >= zipDirectory && string(dir[:4]) == "PK\x01\x02" {
		m := zipMember{
			flags:  binary.LittleEndian.Uint16(dir[8:]),
			method: binary.LittleEndian.Uint16(dir[10:]),
			size:   int64(binary.LittleEndian.Uint32(dir[20:])),
			offset: int64(binary.LittleEndian.Uint32(dir[42:])),
		}
		name := int(binary.LittleEndian.Uint16(dir[28:]))
		next := zipDirectory + name + int(binary.LittleEndian.Uint16(dir[30:])) + int(binary.LittleEndian.Uint16(dir[32:]))
		if next > len(dir) {
			break
		}
		m.name = memberPath(string(dir[zipDirectory : zipDirectory+name]))
		dir = dir[next:]
		if m.place(r, offset) {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(out, func(a, b zipMember) int { return cmp.Compare(a.offset, b.offset) })
	return slices.Clip(out), nil
}

// maxZipDirectory bounds what is read of a directory: some 100,000 members.
const maxZipDirectory = 16 << 20

// place turns offset from that of the local header into that of the data, and
// reports whether it lies before the directory.
func (m *zipMember) place(r io.ReaderAt, directory int64) bool {
	var local [zipLocal]byte
	if m.offset > directory-zipLocal {
		return false
	}
	if _, err := r.ReadAt(local[:], m.offset); err != nil || !isZip(local[:]) {
		return false
	}
	m.offset += zipLocal + int64(binary.LittleEndian.Uint16(local[26:])) + int64(binary.LittleEndian.Uint16(local[28:]))
	const encrypted = 1
	return m.offset <= directory && m.size <= directory-m.offset && m.flags&encrypted == 0
}

// level is what the archiver says about its effort.
func (m *zipMember) level() int {
	switch m.flags >> 1 & 3 {
	case 1:
		return 9
	case 3:
		return 1
	}
	return 6
}

func (u *unpacker) zip(data []byte) error {
	u.format = "zip"
	members, err := zipMembers(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err
	}
	at := int64(0)
	for _, m := range members {
		if m.offset < at {
			continue // overlaps the one before
		}
		u.put(Raw, data[at:m.offset], "", 0)
		at = m.offset
		body := data[at : at+m.size]
		switch m.method {
		case zipStored:
			u.put(Member, body, m.name, 0)
			at += m.size
		case zipDeflated:
			s, ok := u.stream(body, hint{family: familyZlib, level: m.level()})
			if ok && int64(s.used) == m.size {
				u.addStream(0, s, m.name)
				at += m.size
			}
		}
	}
	u.put(Raw, data[at:], "", 0)
	return nil
}
