package overlay

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// dirent is an entry as getdents64 gives it.
type dirent struct {
	name string
	ino  uint64
	pos  int64 // position of the entry in the directory, which it keeps for good on btrfs
	typ  uint8
}

// dirNames reads a directory from its start, without the dots. It moves the
// descriptor's position: the caller keeps others away.
func dirNames(fd int) ([]dirent, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var out []dirent
	var pos int64
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return out, err
		}
		// struct linux_dirent64: ino u64, off s64 (position of the next entry),
		// reclen u16, type u8, name
		for b := buf[:n]; len(b) > 19; {
			reclen := int(binary.NativeEndian.Uint16(b[16:]))
			name := b[19:reclen]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "." && s != ".." {
				out = append(out, dirent{name: s, ino: binary.NativeEndian.Uint64(b), pos: pos, typ: b[18]})
			}
			pos = int64(binary.NativeEndian.Uint64(b[8:]))
			b = b[reclen:]
		}
		if n > len(buf)/2 && len(buf) < 1<<20 {
			buf = make([]byte, 2*len(buf))
		}
	}
}
