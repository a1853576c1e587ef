package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Extent is one extent of a file as FIEMAP reports it.
type Extent struct {
	Logical   uint64 // offset in the file
	Physical  uint64 // offset in the file system's logical address space
	Length    uint64
	Shared    bool // another file or snapshot uses it too
	Inline    bool // stored in metadata
	Encoded   bool // compressed: Physical and Length do not tell which part of it is meant
	Delayed   bool // not allocated yet: Physical means nothing
	Unwritten bool // preallocated, reads as zeros
}

const (
	fiemapSync      = 0x1 // a flag of the request
	fiemapLast      = 0x1
	fiemapDelalloc  = 0x4
	fiemapEncoded   = 0x8
	fiemapInline    = 0x200
	fiemapUnwritten = 0x800
	fiemapShared    = 0x2000
)

// Extents calls fn for every extent of f, in order. Holes are left out. Dirty pages are
// written first: else a range that was overwritten a moment ago would be reported with
// the extent of before.
func Extents(f *os.File, fn func(Extent) error) error {
	// struct fiemap: start 0, length 8, flags 16, mapped 20, count 24, reserved 28,
	// then {logical 0, physical 8, length 16, reserved 24, flags 40, reserved 44}, 56 bytes each.
	const head, each, count = 32, 56, 128
	buf := make([]byte, head+each*count)
	var start uint64
	for {
		clear(buf[:head])
		le.PutUint64(buf[0:], start)
		le.PutUint64(buf[8:], ^uint64(0)-start)
		le.PutUint32(buf[16:], fiemapSync)
		le.PutUint32(buf[24:], count)
		// FS_IOC_FIEMAP is _IOWR('f', 11, 32 bytes).
		if err := ioctl(f, uint(3<<30|32<<16|'f'<<8|11), buf); err != nil {
			return fmt.Errorf("list extents of %s: %w", f.Name(), err)
		}
		n := min(le.Uint32(buf[20:]), count)
		for i := range n {
			p := buf[head+each*i:]
			flags := le.Uint32(p[40:])
			e := Extent{
				Logical:   le.Uint64(p[0:]),
				Physical:  le.Uint64(p[8:]),
				Length:    le.Uint64(p[16:]),
				Shared:    flags&fiemapShared != 0,
				Inline:    flags&fiemapInline != 0,
				Encoded:   flags&fiemapEncoded != 0,
				Delayed:   flags&fiemapDelalloc != 0,
				Unwritten: flags&fiemapUnwritten != 0,
			}
			if err := fn(e); err != nil {
				return err
			}
			start = e.Logical + e.Length
			if flags&fiemapLast != 0 {
				return nil
			}
		}
		if n == 0 {
			return nil
		}
	}
}

// exclusive sums the extents below root that are not shared. Hard links are
// counted once.
func exclusive(ctx context.Context, root *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", root.Name(), err)
	}
	c := &exclusiveCount{dev: uint64(st.Dev), linked: map[uint64]bool{}}
	if err := c.dir(ctx, int(root.Fd()), root.Name()); err != nil {
		return 0, err
	}
	runtime.KeepAlive(root)
	return c.bytes, nil
}

type exclusiveCount struct {
	dev    uint64
	linked map[uint64]bool // inodes with several links that were counted
	bytes  uint64
}

func (c *exclusiveCount) dir(ctx context.Context, fd int, path string) error {
	// A descriptor of its own: reading a directory moves its offset.
	dup, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	d := os.NewFile(uintptr(dup), path)
	defer d.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if err := c.entry(ctx, dup, name, path+"/"+name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", path, err)
		}
	}
}

func (c *exclusiveCount) entry(ctx context.Context, dir int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) { // removed meanwhile: a writable tree is in use
			return nil
		}
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if uint64(st.Dev) != c.dev {
		return nil
	}
	var flags int
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.O_DIRECTORY
	case unix.S_IFREG:
		if st.Size == 0 || c.linked[uint64(st.Ino)] {
			return nil
		}
		if st.Nlink > 1 {
			c.linked[uint64(st.Ino)] = true
		}
	default:
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("open %s: %w", path, err)
	}
	if flags != 0 {
		defer unix.Close(fd)
		return c.dir(ctx, fd, path)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return Extents(f, func(e Extent) error {
		if !e.Shared && !e.Inline {
			c.bytes += e.Length
		}
		return nil
	})
}
