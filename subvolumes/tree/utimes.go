package tree

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// timespec64 is struct __kernel_timespec: 64 bits of seconds on all architectures.
type timespec64 struct{ sec, nsec int64 }

// setMtime sets the modification time and leaves the access time alone. x/sys's
// wrapper takes 32-bit seconds on 32-bit ARM and would wrap in 2038.
func setMtime(fd int, name string, flags int, t Time) error {
	ts := [2]timespec64{{nsec: unix.UTIME_OMIT}, {t.Sec, int64(t.Nsec)}}
	if name == "" {
		// utimensat takes no empty name before Linux 5.8, but NULL for the descriptor itself.
		return utimensat(fd, nil, &ts, 0)
	}
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	return utimensat(fd, p, &ts, flags)
}

func utimensat(fd int, name *byte, ts *[2]timespec64, flags int) error {
	_, _, errno := unix.Syscall6(sysUtimensat64, uintptr(fd), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(ts)), uintptr(flags), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
