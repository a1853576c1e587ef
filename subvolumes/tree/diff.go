package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// Diff calls fn for every path that differs between the trees a and b, in walk
// order; both must stand still meanwhile. Contents that share their extents, as
// those of snapshots and reflinks do, are not read. A directory's time counts as
// metadata, so a directory in which something appears is reported too.
func Diff(ctx context.Context, a, b *os.File, fn func(path string, kind Kind) error) error {
	d := &differ{ctx: ctx, share: sameFilesystem(a, b), buf: make([]byte, 128<<10), buf2: make([]byte, 128<<10)}
	nextA, stopA := iter.Pull2(entries(ctx, a))
	defer stopA()
	nextB, stopB := iter.Pull2(entries(ctx, b))
	defer stopB()
	ea, err, okA := nextA()
	if err != nil {
		return err
	}
	eb, err, okB := nextB()
	if err != nil {
		return err
	}
	for okA || okB {
		order := 0
		switch {
		case !okA:
			order = 1
		case !okB:
			order = -1
		default:
			order = comparePaths(ea.Path, eb.Path)
		}
		switch order {
		case -1:
			err = fn(ea.Path, Removed)
		case 1:
			err = fn(eb.Path, Added)
		default:
			err = d.both(ea, eb, fn)
		}
		if err != nil {
			return err
		}
		if order <= 0 {
			if ea, err, okA = nextA(); err != nil {
				return err
			}
		}
		if order >= 0 {
			if eb, err, okB = nextB(); err != nil {
				return err
			}
		}
	}
	return nil
}

// opened is an entry that can be opened until the next one is asked for.
type opened struct {
	*Entry
	open Opener
}

// entries yields what a walk gives; an error comes last.
func entries(ctx context.Context, root *os.File) iter.Seq2[opened, error] {
	stop := errors.New("stop")
	return func(yield func(opened, error) bool) {
		err := Walk(ctx, root, func(e *Entry, open Opener) error {
			if !yield(opened{e, open}, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			yield(opened{}, err)
		}
	}
}

// comparePaths compares two paths in walk order: name by name. ("a/b" comes before
// "a-b", although "-" is less than "/".)
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[i] == b[i] {
		i++
	}
	switch {
	case i == len(a) && i == len(b):
		return 0
	case i == len(a):
		return -1
	case i == len(b):
		return 1
	case a[i] == '/':
		return -1
	case b[i] == '/':
		return 1
	case a[i] < b[i]:
		return -1
	}
	return 1
}

// sameFilesystem reports whether extents of both trees can be compared.
func sameFilesystem(a, b *os.File) bool {
	for _, f := range []*os.File{a, b} {
		if is, _, err := btrfs.IsBtrfs(f); err != nil || !is {
			return false
		}
	}
	ua, errA := btrfs.FilesystemUUID(a)
	ub, errB := btrfs.FilesystemUUID(b)
	return errA == nil && errB == nil && ua == ub
}

type differ struct {
	ctx       context.Context
	share     bool // both trees lie on one btrfs
	buf, buf2 []byte
}

// both compares two entries of one path.
func (d *differ) both(a, b opened, fn func(string, Kind) error) error {
	typ := a.Mode & unix.S_IFMT
	if typ != b.Mode&unix.S_IFMT {
		if err := fn(a.Path, Removed); err != nil {
			return err
		}
		return fn(a.Path, Added)
	}
	same, err := d.sameContent(a, b, typ)
	if err != nil {
		return err
	}
	if !same {
		return fn(a.Path, Content)
	}
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Mtime != b.Mtime || a.Link != b.Link ||
		!slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y Xattr) bool {
			return x.Name == y.Name && bytes.Equal(x.Value, y.Value)
		}) {
		return fn(a.Path, Metadata)
	}
	return nil
}

func (d *differ) sameContent(a, b opened, typ uint32) (bool, error) {
	switch typ {
	case unix.S_IFLNK:
		return a.Target == b.Target, nil
	case unix.S_IFCHR, unix.S_IFBLK:
		return a.Rdev == b.Rdev, nil
	case unix.S_IFREG:
		if a.Size != b.Size {
			return false, nil
		}
		if a.Size == 0 {
			return true, nil
		}
	default:
		return true, nil
	}
	fa, err := a.open()
	if err != nil {
		return false, err
	}
	defer fa.Close()
	fb, err := b.open()
	if err != nil {
		return false, err
	}
	defer fb.Close()
	if d.share && sameExtents(fa, fb) {
		return true, nil
	}
	for off := int64(0); ; {
		if err := d.ctx.Err(); err != nil {
			return false, err
		}
		n, err := preadFull(fa, d.buf, off)
		m, err2 := preadFull(fb, d.buf2, off)
		if err = errors.Join(err, err2); err != nil {
			return false, fmt.Errorf("compare %s: %w", a.Path, err)
		}
		if !bytes.Equal(d.buf[:n], d.buf2[:m]) {
			return false, nil
		}
		if n == 0 {
			return true, nil
		}
		off += int64(n)
	}
}

// preadFull fills b unless the file ends.
func preadFull(f *os.File, b []byte, off int64) (int, error) {
	n, err := f.ReadAt(b, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// sameExtents reports whether two files of one size certainly have the same content
// because they use the same extents in the same places.
func sameExtents(a, b *os.File) bool {
	ea, ok := solidExtents(a)
	if !ok {
		return false
	}
	eb, ok := solidExtents(b)
	return ok && slices.Equal(ea, eb)
}

// solidExtents lists a file's extents, if what they say identifies its content: not
// where data is inline or not on disk yet, and not where it is compressed, as one
// address then stands for any part of the extent.
func solidExtents(f *os.File) ([]btrfs.Extent, bool) {
	var list []btrfs.Extent
	err := btrfs.Extents(f, func(e btrfs.Extent) error {
		if e.Inline || e.Delayed || e.Encoded {
			return errNotSolid
		}
		e.Shared = false // differs where a third file shares only one of them
		list = append(list, e)
		return nil
	})
	return list, err == nil
}

var errNotSolid = errors.New("extents do not identify the content")
