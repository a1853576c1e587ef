package subvolumes

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// On a full btrfs, taking a snapshot and writing a file of 2 KB fail while deleting
// works. So that a commit, a boot count and a reset work there, a preallocated file is
// kept and deleted when one of them meets ENOSPC.
const reserveSize = 16 << 20

// smallDisk is below which the reserve is a share of the disk.
const smallDisk = 64 * reserveSize

// ReleaseReserve gives the reserved space back to the file system, at once usable.
func (w *Writer) ReleaseReserve() error {
	err := unix.Unlinkat(int(w.p.dir.Fd()), nameReserve, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release %s/%s: %w", w.p.Dir(), nameReserve, err)
	}
	// Freed extents can be used after the transaction that freed them is committed.
	return btrfs.WaitSync(w.p.dir, 0)
}

// MakeReserve takes the reserve again, if it is not there.
func (w *Writer) MakeReserve() error {
	sp, err := w.p.Space()
	if err != nil {
		return err
	}
	size := int64(reserveSize)
	if sp.Total < smallDisk {
		size = int64(sp.Total / 64)
	}
	fd, err := unix.Openat(int(w.p.dir.Fd()), nameReserve, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make %s/%s: %w", w.p.Dir(), nameReserve, err)
	}
	f := os.NewFile(uintptr(fd), nameReserve)
	defer f.Close()
	if err := unix.Fallocate(fd, 0, 0, size); err != nil {
		unix.Unlinkat(int(w.p.dir.Fd()), nameReserve, 0)
		return fmt.Errorf("make %s/%s: %w", w.p.Dir(), nameReserve, err)
	}
	return nil
}

// renewReserve makes the reserve again if it is missing and would not fill the disk.
func (w *Writer) renewReserve() {
	var st unix.Stat_t
	if unix.Fstatat(int(w.p.dir.Fd()), nameReserve, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return
	}
	if _, err := w.p.Record(); err != nil { // no pool yet, or one of a newer format
		return
	}
	if sp, err := w.p.Space(); err == nil && sp.Free > 4*reserveSize && sp.MetadataFree() > 4*reserveSize {
		w.MakeReserve() // the next Close tries again
	}
}

// withReserve runs fn, which can be repeated, and again with the reserve released if
// the disk is full.
func (w *Writer) withReserve(fn func() error) error {
	err := fn()
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if rerr := w.ReleaseReserve(); rerr != nil {
		return err
	}
	return fn()
}

// Space returns what the file system can take.
func (p *Pool) Space() (btrfs.Space, error) { return btrfs.Usage(p.dir) }

// CheckSpace fails with *NoSpaceError if data bytes of content and metadata bytes of
// metadata do not fit now. The metadata figure gets what btrfs needs to work at all.
func (p *Pool) CheckSpace(what string, data, metadata uint64) error {
	sp, err := p.Space()
	if err != nil {
		return err
	}
	if data > sp.Free {
		return &NoSpaceError{Need: data, Free: sp.Free, What: what}
	}
	// A snapshot and a commit reserve a few tree paths each; below this, btrfs begins
	// to refuse them.
	const headroom = 4 << 20
	if metadata+headroom > sp.MetadataFree() {
		return &NoSpaceError{Need: metadata + headroom, Free: sp.MetadataFree(), What: "the metadata of " + what}
	}
	return nil
}
