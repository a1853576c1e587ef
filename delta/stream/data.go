package stream

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// writable returns the file of a path, open for writing until the next call.
func (a *applier) writable(path string) (*os.File, error) {
	if !a.file.is(a.root, path) {
		f, err := regular(a.root, path, unix.O_WRONLY)
		if err != nil {
			return nil, err
		}
		a.file.close()
		a.file = handle{f, a.root, path}
	}
	return a.file.f, nil
}

func (a *applier) write(path string, data []byte, offset uint64) error {
	if offset > math.MaxInt64-uint64(len(data)) {
		return unix.EFBIG
	}
	f, err := a.writable(path)
	if err != nil {
		return err
	}
	n, err := f.WriteAt(data, int64(offset))
	a.res.Written += int64(n)
	return errno(err)
}

// errno strips the path that os adds: the command says it already.
func errno(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// clone shares a range with a file of this subvolume or of another one that the
// caller knows.
func (a *applier) clone(c *Command) error {
	if c.Size == 0 {
		return errors.New("a clone of no bytes") // the ioctl would clone to the end
	}
	if c.Offset > math.MaxInt64-c.Size || c.CloneOffset > math.MaxInt64-c.Size {
		return unix.EFBIG
	}
	src, err := a.source(c)
	if err != nil {
		return fmt.Errorf("source %q: %w", c.ClonePath, err)
	}
	dst, err := a.writable(c.Path)
	if err != nil {
		return err
	}
	err = unix.IoctlFileCloneRange(int(dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(src.Fd()), Src_offset: c.CloneOffset, Src_length: c.Size, Dest_offset: c.Offset,
	})
	switch err {
	case nil:
		a.res.Cloned += int64(c.Size)
		return nil
	case unix.EINVAL, unix.EXDEV, unix.EOPNOTSUPP, unix.ENOTTY:
		// Blocks of another size than the sender's, or a file system that cannot
		// share: the content is what counts.
		return a.copyRange(dst, src, int64(c.Offset), int64(c.CloneOffset), int64(c.Size))
	}
	return err
}

// source opens the source file of a Clone command.
func (a *applier) source(c *Command) (*os.File, error) {
	root := a.root
	if c.CloneUUID != a.res.UUID {
		if root = a.sources[c.CloneUUID]; root == nil {
			if a.o.Source == nil {
				return nil, fmt.Errorf("subvolume %v is not known here", c.CloneUUID)
			}
			var err error
			if root, err = a.o.Source(c.CloneUUID, c.CloneCtransid); err != nil {
				return nil, err
			}
			a.sources[c.CloneUUID] = root
		}
	}
	if !a.from.is(root, c.ClonePath) {
		f, err := regular(root, c.ClonePath, unix.O_RDONLY)
		if err != nil {
			return nil, err
		}
		a.from.close()
		a.from = handle{f, root, c.ClonePath}
	}
	return a.from.f, nil
}

func (a *applier) copyRange(dst, src *os.File, to, from, size int64) error {
	if a.copy == nil {
		a.copy = make([]byte, 128<<10)
	}
	if dst == src || to < from+size && from < to+size {
		// Within one file the ranges must not overlap: a clone refuses that too.
		var s, d unix.Stat_t
		if unix.Fstat(int(src.Fd()), &s) == nil && unix.Fstat(int(dst.Fd()), &d) == nil && s.Dev == d.Dev && s.Ino == d.Ino {
			return unix.EINVAL
		}
	}
	for size > 0 {
		b := a.copy[:min(size, int64(len(a.copy)))]
		if n, err := src.ReadAt(b, from); n < len(b) {
			if err == io.EOF {
				err = errors.New("the source is shorter than the stream says")
			}
			return errno(err)
		}
		if _, err := dst.WriteAt(b, to); err != nil {
			return errno(err)
		}
		n := int64(len(b))
		a.res.Written += n
		to, from, size = to+n, from+n, size-n
	}
	return nil
}

// fallocate does what version 2 has for holes and preallocation.
func (a *applier) fallocate(c *Command) error {
	const allowed = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if c.FallocateMode&^allowed != 0 {
		return fmt.Errorf("mode %#x is not known", c.FallocateMode)
	}
	if c.Offset > math.MaxInt64-c.Size {
		return unix.EFBIG
	}
	f, err := a.writable(c.Path)
	if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), c.FallocateMode, int64(c.Offset), int64(c.Size))
}
