package delta

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelTime is the kernel's 64-bit timespec, the same on all machines.
type kernelTime struct{ sec, nsec int64 }

const utimeOmit = (1 << 30) - 2 // UTIME_OMIT

// setMtime sets the time of what fd is (name ""), or of a name in the directory fd,
// which may be a symbolic link. The access time stays.
func setMtime(fd int, name string, e *entry) error {
	times := [2]kernelTime{{0, utimeOmit}, {e.sec, int64(e.nsec)}}
	var path *byte
	flags := 0
	if name != "" {
		p, err := unix.BytePtrFromString(name)
		if err != nil {
			return err
		}
		path, flags = p, unix.AT_SYMLINK_NOFOLLOW
	}
	_, _, errno := unix.Syscall6(sysUtimensat, uintptr(fd), uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&times)), uintptr(flags), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
