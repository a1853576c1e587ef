package fusefs

import (
	"errors"
	"io"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// status is the one place where errors of the union become what a program sees
// in errno.
func (f *rawFS) status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if errno, ok := err.(syscall.Errno); ok {
		return fuse.Status(errno)
	}
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return fuse.Status(errno)
	case errors.Is(err, io.ErrShortWrite):
		return fuse.Status(syscall.ENOSPC)
	}
	f.log.Error("an error without errno", "error", err)
	return fuse.EIO
}
