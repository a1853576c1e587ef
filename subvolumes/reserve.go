package subvolumes

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// On a full btrfs, taking a snapshot, making a directory and writing a file of 2 KB
// fail while deleting works. Mostly it is metadata that is missing, as btrfs reserves
// 256 KiB of it for every item that an operation may change; a preallocated file only
// gives data back. So the reserve is a file with 1 MiB of data, for a state too large
// to be inline, and 8 MiB of metadata: extended attributes that fill a leaf each. It is
// deleted when a commit, a boot count or a new overlay meets ENOSPC. TestFullDisk holds it.
const (
	reserveData     = 1 << 20
	reserveMetadata = 8 << 20
)

// ReleaseReserve gives the reserved space back to the file system, at once usable.
func (w *Writer) ReleaseReserve() error {
	err := unix.Unlinkat(int(w.p.dir.Fd()), nameReserve, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release %s/%s: %w", w.p.Dir(), nameReserve, err)
	}
	// Freed space can be used after the transaction that freed it is committed.
	return btrfs.WaitSync(w.p.dir, 0)
}

// MakeReserve takes the reserve, if it is not there.
func (w *Writer) MakeReserve() error {
	dir := int(w.p.dir.Fd())
	var st unix.Stat_t
	if unix.Fstatat(dir, nameReserve, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return nil
	}
	err := w.fillReserve()
	if err == nil {
		err = unix.Renameat(dir, nameReserveNew, dir, nameReserve) // a part of it is none
	}
	if err != nil {
		unix.Unlinkat(dir, nameReserveNew, 0)
		return fmt.Errorf("make %s/%s: %w", w.p.Dir(), nameReserve, err)
	}
	return nil
}

func (w *Writer) fillReserve() error {
	node, err := btrfs.NodeSize(w.p.dir)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(w.p.dir.Fd()), nameReserveNew,
		unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, 0, 0, reserveData); err != nil {
		return err
	}
	value := make([]byte, node-512) // with its headers a leaf takes one and no second
	for i := range reserveMetadata / node {
		if err := unix.Fsetxattr(fd, fmt.Sprintf("user.reserve.%04d", i), value, 0); err != nil {
			return err
		}
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
	if sp, err := w.p.Space(); err == nil && sp.Free > 8*reserveData && sp.MetadataFree() > 2*reserveMetadata {
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
	if free := sp.MetadataFree(); free < headroom || metadata > free-headroom { // metadata may be any number
		return &NoSpaceError{Need: max(metadata, metadata+headroom), Free: free, What: "the metadata of " + what}
	}
	return nil
}
