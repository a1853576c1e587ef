//go:build !arm && !386

package stream

import "golang.org/x/sys/unix"

// setTimes sets the times of an entry itself, not of what a symlink there names.
func setTimes(dir int, base string, atime, mtime Time) error {
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{
		{Sec: atime.Sec, Nsec: int64(atime.Nsec)},
		{Sec: mtime.Sec, Nsec: int64(mtime.Nsec)},
	}, unix.AT_SYMLINK_NOFOLLOW)
}
