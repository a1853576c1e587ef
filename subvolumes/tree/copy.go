package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Copy copies the tree src with all metadata into the empty directory dst, whose
// own metadata becomes that of src's root. Contents are reflinked where both lie
// on one file system that can, and keep their holes where not. It is not durable on
// return, and what an error leaves in dst is garbage. Needs root for owners, device
// nodes and trusted attributes.
func Copy(ctx context.Context, dst, src *os.File, o CopyOptions) (Stats, error) {
	names, err := readNames(int(dst.Fd()))
	if err != nil {
		return Stats{}, fmt.Errorf("list %s: %w", dst.Name(), err)
	}
	if len(names) > 0 {
		return Stats{}, fmt.Errorf("copy into %s: %w", dst.Name(), unix.ENOTEMPTY)
	}
	jobs := o.Jobs
	if jobs <= 0 {
		jobs = runtime.GOMAXPROCS(0)
	}
	var stats Stats
	g, wctx := errgroup.WithContext(ctx)
	c := &copier{
		ctx:   wctx,
		place: newPlacer(dst),
		work:  make(chan copyJob, 4*jobs),
		p:     &progress{fn: o.Progress},
	}
	defer c.place.close()
	g.Go(func() error {
		defer close(c.work)
		return walk(wctx, src, func(e *Entry, open func() (int, error)) error {
			stats.count(e, e.Size)
			if err := c.entry(e, open); err != nil {
				return fmt.Errorf("copy %s: %w", join(src.Name(), e.Path), err)
			}
			return nil
		})
	})
	for range jobs {
		g.Go(func() error {
			var failed error
			buf := make([]byte, 256<<10)
			for j := range c.work {
				if failed == nil {
					if failed = c.file(j, buf); failed != nil {
						failed = fmt.Errorf("copy %s: %w", join(src.Name(), j.e.Path), failed)
					}
				}
				unix.Close(j.src)
				unix.Close(j.dst)
			}
			return failed
		})
	}
	if err := g.Wait(); err != nil {
		return Stats{}, err
	}
	// Directories last: filling one changes its times, and a default ACL must not
	// reach what is copied into it.
	if err := c.place.finishDirs(ctx); err != nil {
		return Stats{}, err
	}
	return stats, nil
}

type copier struct {
	ctx   context.Context
	place *placer
	work  chan copyJob
	p     *progress
}

// copyJob is a created file that waits for content and metadata.
type copyJob struct {
	e        *Entry
	src, dst int
}

// entry creates e. A regular file is filled by a worker.
func (c *copier) entry(e *Entry, open func() (int, error)) error {
	if e.Link != "" {
		return c.place.link(e.Path, e.Link)
	}
	if e.Mode&unix.S_IFMT != unix.S_IFREG {
		return c.place.make(e)
	}
	src, err := open()
	if err != nil {
		return err
	}
	dst, err := c.place.create(e.Path)
	if err != nil {
		unix.Close(src)
		return err
	}
	select {
	case c.work <- copyJob{e, src, dst}:
		return nil
	case <-c.ctx.Done():
		unix.Close(src)
		unix.Close(dst)
		return c.ctx.Err()
	}
}

// file gives a created file its content and metadata.
func (c *copier) file(j copyJob, buf []byte) error {
	if j.e.Size > 0 {
		err := unix.IoctlFileClone(j.dst, j.src)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) ||
			errors.Is(err, unix.EINVAL) { // EINVAL: one of them has no checksums (chattr +C)
			if err = copySparse(c.ctx, j.dst, j.src, buf, c.p); err != nil {
				return err
			}
		} else if err != nil {
			return fmt.Errorf("reflink: %w", err)
		} else {
			c.p.add(j.e.Size)
		}
	}
	return setMetadata(j.dst, "", j.e)
}

// copySparse copies the content of src to the empty file dst, holes as holes.
func copySparse(ctx context.Context, dst, src int, buf []byte, p *progress) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	size := st.Size
	for off := int64(0); off < size; {
		data, err := unix.Seek(src, off, unix.SEEK_DATA)
		end := size
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			data = size
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			data = off // cannot seek for data: all of it may be some
		case err != nil:
			return fmt.Errorf("look for data: %w", err)
		default:
			if end, err = unix.Seek(src, data, unix.SEEK_HOLE); err != nil {
				return fmt.Errorf("look for a hole: %w", err)
			}
		}
		p.add(min(data, size) - off)
		if off, err = copyRange(ctx, dst, src, data, end, buf, p); err != nil {
			return err
		}
	}
	if err := unix.Ftruncate(dst, size); err != nil { // the hole at the end
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

// copyRange copies the bytes from off to end and returns where it stopped, which is
// before end only if src ends there.
func copyRange(ctx context.Context, dst, src int, off, end int64, buf []byte, p *progress) (int64, error) {
	for off < end {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n, err := unix.Pread(src, buf[:min(int64(len(buf)), end-off)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return off, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return end, nil
		}
		if err := pwriteAll(dst, buf[:n], off); err != nil {
			return off, err
		}
		off += int64(n)
		p.add(int64(n))
	}
	return end, nil
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// splitPath returns the parent directory's path and the last name.
func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}
