package stream

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Everything that a stream names is reached through open, which cannot leave the
// subvolume, or through one name in a directory that open reached, by calls that
// do not follow a symlink there.

// open opens a path below root: no "..", no symlink, no mount on the way.
func open(root *os.File, path string, flags uint64) (*os.File, error) {
	if path == "" {
		path = "."
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		// EAGAIN: something was renamed meanwhile, and the kernel cannot be sure.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// split splits a path of the stream in directory and name. The root is ".".
func split(path string) (dir, base string, err error) {
	if path == "" || path == "." {
		return "", ".", nil
	}
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
		if dir == "" {
			return "", "", errors.New("this path is absolute")
		}
	} else {
		base = path
	}
	if base == "" || base == "." || base == ".." || len(base) > maxName {
		return "", "", errors.New("this path does not end in a name")
	}
	return dir, base, nil
}

// parent returns the directory of a path, and the name in it. The descriptor is
// good until the next call.
func (a *applier) parent(path string) (dir int, base string, err error) {
	d, base, err := split(path)
	if err != nil {
		return -1, "", err
	}
	if d == "" {
		return int(a.root.Fd()), base, nil
	}
	if !a.dir.is(a.root, d) {
		f, err := open(a.root, d, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return -1, "", err
		}
		a.dir.close()
		a.dir = handle{f, a.root, d}
	}
	return int(a.dir.f.Fd()), base, nil
}

// twoNames calls f with the directories and names of two paths, and forgets all
// handles: what f does may change what paths mean.
func (a *applier) twoNames(p1, p2 string, f func(d1 int, b1 string, d2 int, b2 string) error) error {
	dir1, b1, err := split(p1)
	if err != nil {
		return err
	}
	d1, err := open(a.root, dir1, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d1.Close()
	d2, b2, err := a.parent(p2)
	if err != nil {
		return err
	}
	if b1 == "." || b2 == "." {
		return errors.New("the root keeps its place")
	}
	defer a.forget()
	return f(int(d1.Fd()), b1, d2, b2)
}

// regular opens a regular file below root. A device node or FIFO that a stream made
// a moment ago must not be opened, not even to look at it: hence the detour by
// a handle that opens nothing.
func regular(root *os.File, path string, flags int) (*os.File, error) {
	h, err := open(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("this is no regular file")
	}
	fd, err := unix.Open(procPath(int(h.Fd()), ""), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// procPath names an entry of an open directory (or, with no name, an open file) for
// the calls that know paths only. It needs /proc.
func procPath(fd int, base string) string {
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	if base != "" {
		p += "/" + base
	}
	return p
}

// chmod sets the mode of an entry, which must not be a symlink: fchmodat would
// follow it.
func (a *applier) chmod(dir int, base string, mode uint32) error {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(fd, ""), mode)
}
