package overlay

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Attr are an object's attributes as statx reports them, with the inode number
// that the view shows.
type Attr = unix.Statx_t

const (
	statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

	// beneath keeps every path inside its layer: no "..", no symlink, no
	// /proc magic, whatever somebody put there.
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
)

// at names an object of a layer: a name in an open directory, or, if name is
// empty, what fd itself refers to. Nothing else reaches the disk.
type at struct {
	fd   int
	name string
}

// openBeneath is the one way to open anything in a layer.
func openBeneath(dir int, path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: beneath}
	for {
		fd, err := unix.Openat2(dir, path, &how)
		// EAGAIN: a rename elsewhere made the kernel unsure about "..".
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

func (o at) stat(st *Attr) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_SYNC_AS_STAT
	if o.name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.Statx(o.fd, o.name, flags, statMask, st)
}

func (o at) chown(uid, gid int) error {
	return unix.Fchownat(o.fd, o.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW|emptyPath(o.name))
}

func (o at) chmod(mode uint32) error {
	if o.name == "" {
		if err := unix.Fchmod(o.fd, mode); err != unix.EBADF { // EBADF: opened with O_PATH
			return err
		}
		return unix.Fchmodat(unix.AT_FDCWD, procPath(o), mode, 0)
	}
	err := unix.Fchmodat(o.fd, o.name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.EOPNOTSUPP { // before Linux 6.6; the caller knows that it is no symlink
		err = unix.Fchmodat(o.fd, o.name, mode, 0)
	}
	return err
}

func (o at) utimes(ts *[2]unix.Timespec) error {
	return unix.UtimesNanoAt(o.fd, o.name, ts[:], unix.AT_SYMLINK_NOFOLLOW|emptyPath(o.name))
}

func (o at) readlink() (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(o.fd, o.name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func emptyPath(name string) int {
	if name == "" {
		return unix.AT_EMPTY_PATH
	}
	return 0
}

func procPath(o at) string {
	p := "/proc/self/fd/" + strconv.Itoa(o.fd)
	if o.name != "" {
		p += "/" + o.name
	}
	return p
}

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// xattrat calls one of the getxattrat family (Linux 6.13), which needs neither
// an open file nor /proc.
func (o at) xattrat(nr uintptr, attr string, buf []byte, flags int) (int, error) {
	name, err := unix.BytePtrFromString(o.name)
	if err != nil {
		return 0, err
	}
	var attrPtr *byte
	if nr != unix.SYS_LISTXATTRAT {
		if attrPtr, err = unix.BytePtrFromString(attr); err != nil {
			return 0, err
		}
	}
	p := unsafe.Pointer(unsafe.SliceData(buf))
	dfd, atFlags := uintptr(o.fd), uintptr(unix.AT_SYMLINK_NOFOLLOW|emptyPath(o.name))
	var n uintptr
	var errno unix.Errno
	switch nr {
	case unix.SYS_LISTXATTRAT:
		n, _, errno = unix.Syscall6(nr, dfd, uintptr(unsafe.Pointer(name)), atFlags, uintptr(p), uintptr(len(buf)), 0)
	case unix.SYS_REMOVEXATTRAT:
		n, _, errno = unix.Syscall6(nr, dfd, uintptr(unsafe.Pointer(name)), atFlags, uintptr(unsafe.Pointer(attrPtr)), 0, 0)
	default:
		args := xattrArgs{value: uint64(uintptr(p)), size: uint32(len(buf)), flags: uint32(flags)}
		n, _, errno = unix.Syscall6(nr, dfd, uintptr(unsafe.Pointer(name)), atFlags,
			uintptr(unsafe.Pointer(attrPtr)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
		keepAlive(buf)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// keepAlive keeps a buffer in place whose address the kernel got as a number.
//
//go:noinline
func keepAlive([]byte) {}

// old says that the kernel has no getxattrat family, or that it does not take
// this kind of descriptor (O_PATH).
func old(err error) bool { return err == unix.ENOSYS || err == unix.EBADF }

func (o at) getxattr(attr string, buf []byte) (int, error) {
	if o.name == "" {
		if n, err := unix.Fgetxattr(o.fd, attr, buf); err != unix.EBADF {
			return n, err
		}
		return unix.Getxattr(procPath(o), attr, buf)
	}
	n, err := o.xattrat(unix.SYS_GETXATTRAT, attr, buf, 0)
	if old(err) {
		return unix.Lgetxattr(procPath(o), attr, buf)
	}
	return n, err
}

func (o at) setxattr(attr string, val []byte, flags int) error {
	if o.name == "" {
		if err := unix.Fsetxattr(o.fd, attr, val, flags); err != unix.EBADF {
			return err
		}
		return unix.Setxattr(procPath(o), attr, val, flags)
	}
	_, err := o.xattrat(unix.SYS_SETXATTRAT, attr, val, flags)
	if old(err) {
		return unix.Lsetxattr(procPath(o), attr, val, flags)
	}
	return err
}

func (o at) removexattr(attr string) error {
	if o.name == "" {
		if err := unix.Fremovexattr(o.fd, attr); err != unix.EBADF {
			return err
		}
		return unix.Removexattr(procPath(o), attr)
	}
	_, err := o.xattrat(unix.SYS_REMOVEXATTRAT, attr, nil, 0)
	if old(err) {
		return unix.Lremovexattr(procPath(o), attr)
	}
	return err
}

func (o at) listxattr(buf []byte) (int, error) {
	if o.name == "" {
		if n, err := unix.Flistxattr(o.fd, buf); err != unix.EBADF {
			return n, err
		}
		return unix.Listxattr(procPath(o), buf)
	}
	n, err := o.xattrat(unix.SYS_LISTXATTRAT, "", buf, 0)
	if old(err) {
		return unix.Llistxattr(procPath(o), buf)
	}
	return n, err
}

// xattrNames returns all names.
func (o at) xattrNames() ([]string, error) {
	for {
		n, err := o.listxattr(nil)
		if err == unix.ENOTSUP {
			return nil, nil
		}
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n+256)
		n, err = o.listxattr(buf)
		if err == unix.ERANGE {
			continue
		}
		if err != nil {
			return nil, err
		}
		var names []string
		for b := buf[:n]; len(b) > 0; {
			i := 0
			for i < len(b) && b[i] != 0 {
				i++
			}
			names = append(names, string(b[:i]))
			b = b[min(i+1, len(b)):]
		}
		return names, nil
	}
}

// xattrValue returns a whole value.
func (o at) xattrValue(attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := o.getxattr(attr, buf)
		if err == unix.ERANGE {
			if n, err = o.getxattr(attr, nil); err == nil {
				buf = make([]byte, n+64)
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// timespec converts a time of statx. Times of a 32-bit Timespec end in 2038: a
// later one becomes the last.
func timespec(t unix.StatxTimestamp) (ts unix.Timespec) {
	sec := t.Sec
	if unsafe.Sizeof(ts.Sec) == 4 {
		sec = max(min(sec, 1<<31-1), -1<<31)
	}
	ts.Sec = timeWord(sec)
	ts.Nsec = timeWord(int64(t.Nsec))
	return ts
}

func utime(nsec int64) unix.Timespec { return unix.Timespec{Nsec: timeWord(nsec)} }
