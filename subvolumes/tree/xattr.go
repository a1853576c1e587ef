package tree

import (
	"bytes"
	"cmp"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Extended attributes of a name below a directory handle, symbolic links and device
// nodes included. Linux 6.13 has system calls for that; before, the way leads
// through /proc/self/fd/N/name, where only the last name stays unfollowed.
const (
	sysSetxattrat  = 463 // the same numbers on all architectures
	sysGetxattrat  = 464
	sysListxattrat = 465
)

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// xattrReader reads attributes; it keeps buffers and what the kernel can. It is for
// one goroutine.
type xattrReader struct {
	noAt bool // the kernel has no listxattrat
	list []byte
	val  []byte
}

// Limits of the kernel: XATTR_LIST_MAX and XATTR_SIZE_MAX.
const xattrMax = 64 << 10

// read returns the attributes of name in dir ("" is dir itself), sorted by name.
func (x *xattrReader) read(dir int, name string) ([]Xattr, error) {
	if x.list == nil {
		x.list, x.val = make([]byte, xattrMax), make([]byte, xattrMax)
	}
	n, err := x.listNames(dir, name)
	if err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) { // a file system without attributes
			return nil, nil
		}
		return nil, err
	}
	var out []Xattr
	for _, b := range bytes.Split(x.list[:n], []byte{0}) {
		if len(b) == 0 {
			continue
		}
		attr := string(b)
		n, err := x.get(dir, name, attr)
		if errors.Is(err, unix.ENODATA) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Xattr{attr, bytes.Clone(x.val[:n])})
	}
	slices.SortFunc(out, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (x *xattrReader) listNames(dir int, name string) (int, error) {
	if !x.noAt {
		p, err := unix.BytePtrFromString(name)
		if err != nil {
			return 0, err
		}
		n, _, errno := unix.Syscall6(sysListxattrat, uintptr(dir), uintptr(unsafe.Pointer(p)),
			uintptr(atFlags(name)), uintptr(unsafe.Pointer(&x.list[0])), uintptr(len(x.list)), 0)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.ENOSYS {
			return 0, errno
		}
		x.noAt = true
	}
	return unix.Llistxattr(procPath(dir, name), x.list)
}

func (x *xattrReader) get(dir int, name, attr string) (int, error) {
	if x.noAt {
		return unix.Lgetxattr(procPath(dir, name), attr, x.val)
	}
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&x.val[0])
	args := xattrArgs{value: uint64(uintptr(unsafe.Pointer(&x.val[0]))), size: uint32(len(x.val))}
	n, _, errno := unix.Syscall6(sysGetxattrat, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(atFlags(name)),
		uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// setXattr sets an attribute of name in dir, without following name.
func setXattr(dir int, name string, x Xattr) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	a, err := unix.BytePtrFromString(x.Name)
	if err != nil {
		return err
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	args := xattrArgs{size: uint32(len(x.Value))}
	if len(x.Value) > 0 {
		pin.Pin(&x.Value[0])
		args.value = uint64(uintptr(unsafe.Pointer(&x.Value[0])))
	}
	_, _, errno := unix.Syscall6(sysSetxattrat, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(atFlags(name)),
		uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno == unix.ENOSYS {
		return unix.Lsetxattr(procPath(dir, name), x.Name, x.Value, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func atFlags(name string) int {
	if name == "" {
		return unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW
	}
	return unix.AT_SYMLINK_NOFOLLOW
}

func procPath(dir int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(dir)
	if name == "" {
		return p + "/."
	}
	return p + "/" + name
}
