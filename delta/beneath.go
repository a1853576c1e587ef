package delta

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Every path that comes out of a bundle is opened here: below a directory handle,
// never through a symbolic link, never across a mount. A name in a bundle thus
// cannot reach anything but the tree that it is for, whatever the tree looks like
// at that moment.

func openBeneath(root *os.File, path string, flags int, mode uint32) (*os.File, error) {
	if path == "" {
		path = "."
	}
	if flags&unix.O_CREAT == 0 {
		mode = 0 // openat2 refuses a mode that means nothing
	}
	if flags&unix.O_PATH == 0 { // openat2 takes no flag that has no meaning
		flags |= unix.O_NOCTTY
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		}
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
}

// openRegular opens a regular file for reading and returns its size. It does not hang on a FIFO.
func openRegular(root *os.File, path string) (*os.File, int64, error) {
	f, err := openBeneath(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		f, err = openBeneath(root, path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	return f, st.Size, nil
}

// parents opens the directories that hold names, and keeps the last one: work
// goes through a tree in order. Not for several goroutines.
type parents struct {
	root *os.File
	dir  string
	f    *os.File
}

// of returns the directory of a path and the name in it.
func (p *parents) of(path string) (fd int, name string, err error) {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if p.f == nil || dir != p.dir {
		p.close()
		if p.f, err = openBeneath(p.root, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
			return -1, "", err
		}
		p.dir = dir
	}
	return int(p.f.Fd()), name, nil
}

func (p *parents) close() {
	if p.f != nil {
		p.f.Close()
		p.f = nil
	}
}

// tempFile returns a nameless file on the file system of dir.
func tempFile(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "temporary"), nil
	}
	f, err := os.CreateTemp("", "btrovl-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// memoryFirst is written once and read at random: small content stays in memory,
// large content goes to a nameless file.
type memoryFirst struct {
	dir  *os.File
	buf  []byte
	f    *os.File
	size int64
}

const memoryFirstMax = 4 << 20

var _ io.ReaderAt = (*memoryFirst)(nil)

func (m *memoryFirst) Write(p []byte) (int, error) {
	if m.f == nil && len(m.buf)+len(p) > memoryFirstMax {
		f, err := tempFile(m.dir)
		if err != nil {
			return 0, err
		}
		m.f = f
		if _, err := f.Write(m.buf); err != nil {
			return 0, err
		}
		m.buf = nil
	}
	m.size += int64(len(p))
	if m.f != nil {
		return m.f.Write(p)
	}
	m.buf = append(m.buf, p...)
	return len(p), nil
}

func (m *memoryFirst) ReadAt(p []byte, off int64) (int, error) {
	if m.f != nil {
		return m.f.ReadAt(p, off)
	}
	if off >= int64(len(m.buf)) {
		return 0, io.EOF
	}
	n := copy(p, m.buf[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memoryFirst) Close() error {
	if m.f != nil {
		return m.f.Close()
	}
	return nil
}
