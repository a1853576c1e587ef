package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const digestMagic = "btrovl tree 1\n"

// Digest returns the digest of the tree and counts it. Files are hashed in parallel,
// the entries in order; memory does not grow with files or their sizes, but for
// the names of one directory and the inodes with several links.
func Digest(ctx context.Context, root *os.File, o DigestOptions) (Sum, Stats, error) {
	jobs := o.Jobs
	if jobs <= 0 {
		jobs = runtime.GOMAXPROCS(0)
	}
	g, ctx := errgroup.WithContext(ctx)
	// Every file in work holds a descriptor, so that queue is short; the order may run
	// far ahead while a large file is hashed.
	work := make(chan *pending, 4*jobs)
	order := make(chan *pending, 4096)
	p := &progress{fn: o.Progress, total: o.Total}

	g.Go(func() error {
		defer close(order)
		defer close(work)
		return walk(ctx, root, func(e *Entry, open func() (int, error)) error {
			it := &pending{e: e, fd: -1}
			if e.Link == "" && e.Mode&unix.S_IFMT == unix.S_IFREG {
				if e.Size == 0 {
					it.sum = sha256.Sum256(nil)
				} else {
					fd, err := open()
					if err != nil {
						return err
					}
					it.fd, it.done = fd, make(chan struct{})
					select {
					case work <- it:
					case <-ctx.Done():
						unix.Close(fd)
						return ctx.Err()
					}
				}
			}
			select {
			case order <- it:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range jobs {
		g.Go(func() error {
			h, buf := sha256.New(), make([]byte, 256<<10)
			var failed error
			for it := range work { // to the end, to close every file
				if failed == nil {
					h.Reset()
					if it.size, failed = hashFile(ctx, h, it.fd, buf, p); failed != nil {
						failed = fmt.Errorf("read %s: %w", join(root.Name(), it.e.Path), failed)
					}
					h.Sum(it.sum[:0])
				}
				unix.Close(it.fd)
				it.err = failed
				close(it.done)
			}
			return failed
		})
	}
	var stats Stats
	sum := sha256.New()
	sum.Write([]byte(digestMagic))
	g.Go(func() error {
		var rec []byte
		for it := range order {
			if it.done != nil {
				<-it.done
				if it.err != nil {
					return it.err
				}
			}
			stats.count(it.e, it.size)
			rec = appendRecord(rec[:0], it.e, it.size, it.sum)
			sum.Write(rec)
			if o.Entry != nil {
				if err := o.Entry(it.e, it.sum); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return Sum{}, Stats{}, err
	}
	return Sum(sum.Sum(nil)), stats, nil
}

// pending is an entry on its way through Digest.
type pending struct {
	e    *Entry
	fd   int
	done chan struct{} // closed when sum, size and err are set; nil if there is nothing to hash
	sum  Sum
	size int64
	err  error
}

// appendRecord appends what the package comment says of one entry.
func appendRecord(b []byte, e *Entry, size int64, content Sum) []byte {
	str := func(s string) {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	str(e.Path)
	b = binary.LittleEndian.AppendUint32(b, e.Mode)
	b = binary.LittleEndian.AppendUint32(b, e.UID)
	b = binary.LittleEndian.AppendUint32(b, e.GID)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Mtime.Sec))
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Mtime.Nsec))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		str(x.Name)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.Value)))
		b = append(b, x.Value...)
	}
	str(e.Link)
	if e.Link != "" {
		return b
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b = binary.LittleEndian.AppendUint64(b, uint64(size))
		b = append(b, content[:]...)
	case unix.S_IFLNK:
		str(e.Target)
	case unix.S_IFCHR, unix.S_IFBLK:
		b = binary.LittleEndian.AppendUint32(b, unix.Major(e.Rdev))
		b = binary.LittleEndian.AppendUint32(b, unix.Minor(e.Rdev))
	}
	return b
}

func (s *Stats) count(e *Entry, size int64) {
	if e.Link != "" {
		s.Links++
		return
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Files++
		s.Bytes += size
	case unix.S_IFDIR:
		s.Dirs++
	case unix.S_IFLNK:
		s.Symlinks++
	default:
		s.Others++
	}
}

// hashFile writes fd's content from its start into h.
func hashFile(ctx context.Context, h hash.Hash, fd int, buf []byte, p *progress) (int64, error) {
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n, err := unix.Pread(fd, buf, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return off, err
		}
		h.Write(buf[:n])
		off += int64(n)
		p.add(int64(n))
	}
}

// FileDigest returns the SHA-256 of f's content from its start, and its size. It
// does not move f's offset.
func FileDigest(ctx context.Context, f *os.File) (Sum, int64, error) {
	h := sha256.New()
	n, err := hashFile(ctx, h, int(f.Fd()), make([]byte, 256<<10), &progress{})
	runtime.KeepAlive(f)
	if err != nil {
		return Sum{}, n, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return Sum(h.Sum(nil)), n, nil
}

// progress adds up what parallel workers did and tells it in order.
type progress struct {
	fn    func(done, total int64)
	total int64
	done  atomic.Int64

	mu   sync.Mutex
	told int64 // by fn
}

func (p *progress) add(n int64) {
	if p.fn == nil {
		return
	}
	done := p.done.Add(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if done > p.told { // a slower worker's smaller figure comes too late
		p.told = done
		p.fn(done, p.total)
	}
}
