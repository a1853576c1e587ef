package btrfs

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Clone makes dst share all content of src (FICLONE). dst's size becomes src's.
// The error wraps EXDEV across file systems and EOPNOTSUPP where there are no
// reflinks; a caller copies then.
func Clone(dst, src *os.File) error {
	for {
		err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
		runtime.KeepAlive(dst)
		runtime.KeepAlive(src)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("clone %s to %s: %w", src.Name(), dst.Name(), err)
		}
	}
}

// CloneRange makes dst share n bytes of src (FICLONERANGE). Offsets and length
// are multiples of the sector size (4096), but for a range that ends at src's end.
// n = 0 means up to src's end.
func CloneRange(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) error {
	for {
		err := unix.IoctlFileCloneRange(int(dst.Fd()), &unix.FileCloneRange{
			Src_fd:      int64(src.Fd()),
			Src_offset:  uint64(srcOff),
			Src_length:  uint64(n),
			Dest_offset: uint64(dstOff),
		})
		runtime.KeepAlive(dst)
		runtime.KeepAlive(src)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("clone %d bytes at %d of %s to %d of %s: %w", n, srcOff, src.Name(), dstOff, dst.Name(), err)
		}
	}
}
