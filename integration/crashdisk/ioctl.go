package crashdisk

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [4088]byte
}

func ioctlVolArgs(f *os.File, req uintptr, args *volArgs) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(unsafe.Pointer(args))); errno != 0 {
		return errno
	}
	return nil
}
