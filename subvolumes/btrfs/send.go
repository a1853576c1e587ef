package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SendOptions shape a send stream.
type SendOptions struct {
	// Parent, if not nil, is the read-only subvolume that the stream is the
	// difference to.
	Parent *os.File
	// CloneSources are further read-only subvolumes that the receiver holds.
	CloneSources []*os.File
	// NoFileData sends UPDATE_EXTENT commands instead of contents: which
	// ranges differ, without reading them.
	NoFileData bool
	// Version of the stream; 0 means 1.
	Version uint32
}

// Send writes the send stream of the read-only subvolume sub to w. When ctx ends,
// the kernel stops at its next write.
func Send(ctx context.Context, w io.Writer, sub *os.File, o SendOptions) error {
	var flags uint64
	if o.NoFileData {
		flags |= 0x1
	}
	if o.Version > 1 {
		flags |= 0x8
	}
	var parent uint64
	var sources []uint64
	if o.Parent != nil {
		in, err := SubvolumeInfo(o.Parent)
		if err != nil {
			return err
		}
		parent = in.ID
		// The kernel clones from the parent only if it is named as a source too.
		sources = append(sources, in.ID)
	}
	for _, f := range o.CloneSources {
		in, err := SubvolumeInfo(f)
		if err != nil {
			return err
		}
		sources = append(sources, in.ID)
	}

	r, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	unix.FcntlInt(pw.Fd(), unix.F_SETPIPE_SZ, 1<<20) // fewer switches; a refusal costs only speed

	// struct btrfs_ioctl_send_args: send_fd 0, clone_sources_count 8,
	// clone_sources 16, parent_root 24, flags 32, version 40, reserved 44.
	// A 32-bit pointer at 16 is followed by padding, so 8 little-endian bytes fit both.
	const size = 72
	buf := make([]byte, size)
	var pin runtime.Pinner
	defer pin.Unpin()
	le.PutUint64(buf[0:], uint64(pw.Fd()))
	if len(sources) > 0 {
		pin.Pin(&sources[0])
		le.PutUint64(buf[8:], uint64(len(sources)))
		le.PutUint64(buf[16:], uint64(uintptr(unsafe.Pointer(&sources[0]))))
	}
	le.PutUint64(buf[24:], parent)
	le.PutUint64(buf[32:], flags)
	le.PutUint32(buf[40:], o.Version)

	done := make(chan error, 1)
	go func() {
		err := ioctl(sub, number(dirWrite, 38, size), buf)
		pw.Close()
		done <- err
	}()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	_, copyErr := io.Copy(w, r)
	stop()
	r.Close() // the kernel's next write fails with EPIPE
	sendErr := <-done
	runtime.KeepAlive(sources)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("send %s: %w", sub.Name(), ctx.Err())
	case copyErr != nil && !errors.Is(copyErr, os.ErrDeadlineExceeded):
		return fmt.Errorf("send %s: write stream: %w", sub.Name(), copyErr)
	case sendErr != nil:
		return fmt.Errorf("send %s: %w", sub.Name(), sendErr)
	}
	return nil
}
