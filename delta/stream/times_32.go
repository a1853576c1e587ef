//go:build arm || 386

package stream

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setTimes sets the times of an entry itself, not of what a symlink there names.
// The system call that x/sys uses here ends in 2038; utimensat_time64 (number 412 on
// both architectures, since Linux 5.1) does not.
func setTimes(dir int, base string, atime, mtime Time) error {
	p, err := unix.BytePtrFromString(base)
	if err != nil {
		return err
	}
	type timespec64 struct{ sec, nsec int64 }
	ts := [2]timespec64{{atime.Sec, int64(atime.Nsec)}, {mtime.Sec, int64(mtime.Nsec)}}
	const sysUtimensatTime64 = 412
	_, _, e := unix.Syscall6(sysUtimensatTime64, uintptr(dir), uintptr(unsafe.Pointer(p)),
		uintptr(unsafe.Pointer(&ts)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
	if e == unix.ENOSYS {
		return unix.UtimesNanoAt(dir, base, []unix.Timespec{
			{Sec: int32(atime.Sec), Nsec: int32(atime.Nsec)},
			{Sec: int32(mtime.Sec), Nsec: int32(mtime.Nsec)},
		}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if e != 0 {
		return e
	}
	return nil
}
