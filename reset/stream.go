package reset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/stream"
	"github.com/btrovl/btrovl/subvolumes"
)

// RestoreStream is [Restore] from what [Export] wrote, here or on another machine.
// source names it for the history. The stream is confined to the overlay's new
// subvolume, which is garbage if anything is wrong with it. Errors:
// *subvolumes.UnknownError, *stream.FormatError.
func RestoreStream(ctx context.Context, w *subvolumes.Writer, overlay string, r io.Reader, source string) (*subvolumes.Record, error) {
	rec, err := w.Record()
	if err != nil {
		return nil, err
	}
	active, err := activeOf(rec)
	if err != nil {
		return nil, err
	}
	ref := active.Overlay(overlay)
	if ref == nil {
		return nil, &subvolumes.UnknownError{Kind: "overlay", Name: overlay, Known: names(active)}
	}
	fresh, err := w.FreshOverlay(ctx, defOf(rec, *ref), active.Base)
	if err != nil {
		return nil, err
	}
	if err := receive(ctx, w.Pool(), fresh, r); err != nil {
		return nil, fmt.Errorf("cannot restore overlay %q from %s: %w", overlay, source, err)
	}
	next := with(active, fresh, fmt.Sprintf("restore %s --from %s", overlay, filepath.Base(source)))
	return w.Deploy(ctx, next, subvolumes.DeployOptions{})
}

// receive fills a fresh overlay from a stream and makes it durable.
func receive(ctx context.Context, p *subvolumes.Pool, ref subvolumes.OverlayRef, r io.Reader) error {
	dir, err := p.OpenOverlay(ref)
	if err != nil {
		return err
	}
	defer dir.Close()
	meta, err := keepMeta(dir)
	if err != nil {
		return err
	}
	if err := empty(dir); err != nil {
		return err
	}
	if _, err := stream.Apply(ctx, r, dir, stream.ApplyOptions{}); err != nil {
		return err
	}
	for _, name := range []string{"upper", "work"} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &stream.FormatError{Reason: fmt.Sprintf("it holds no directory %q, so it is no backup of an overlay", name)}
		}
	}
	if err := meta(); err != nil {
		return err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	return nil
}

// metaName is the file in which an overlay's subvolume says what it is.
const metaName = "meta"

// keepMeta reads the overlay's own meta file and returns what writes it again: the
// stream brings that of another incarnation, maybe of another machine.
func keepMeta(dir *os.File) (func() error, error) {
	fd, err := unix.Openat(int(dir.Fd()), metaName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: metaName, Err: err}
	}
	f := os.NewFile(uintptr(fd), metaName)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	return func() error {
		if err := unix.Unlinkat(int(dir.Fd()), metaName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "unlink", Path: metaName, Err: err}
		}
		fd, err := unix.Openat(int(dir.Fd()), metaName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return &os.PathError{Op: "create", Path: metaName, Err: err}
		}
		f := os.NewFile(uintptr(fd), metaName)
		defer f.Close()
		_, err = f.Write(b)
		return err
	}, nil
}

// empty removes what a fresh overlay holds: no more than its skeleton.
func empty(dir *os.File) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}
