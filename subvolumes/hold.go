package subvolumes

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Hold keeps the subvolumes of a deployment from being deleted: it carries a shared
// flock on the directory of each. The kernel does not do that: a subvolume in use can
// be deleted. The locks go with Release or the process.
type Hold struct {
	deployment Deployment
	base       *os.File
	overlays   []*os.File
}

// Hold opens and locks the subvolumes of a deployment. It fails if one of them is
// not there (any more).
func (p *Pool) Hold(d *Deployment) (*Hold, error) {
	h := &Hold{deployment: *d}
	bases, err := p.openDir(dirBases)
	if err != nil {
		return nil, fmt.Errorf("cannot hold deployment %d: %w", d.ID, err)
	}
	defer bases.Close()
	overlays, err := p.openDir(dirOverlays)
	if err != nil {
		return nil, fmt.Errorf("cannot hold deployment %d: %w", d.ID, err)
	}
	defer overlays.Close()
	if h.base, err = shareSubvolume(bases, d.Base); err != nil {
		return nil, fmt.Errorf("cannot hold deployment %d: %w", d.ID, err)
	}
	for _, o := range d.Overlays {
		f, err := shareSubvolume(overlays, o.Subvolume)
		if err != nil {
			h.Release()
			return nil, fmt.Errorf("cannot hold deployment %d: overlay %q: %w", d.ID, o.Name, err)
		}
		h.overlays = append(h.overlays, f)
	}
	return h, nil
}

// Deployment returns what is held.
func (h *Hold) Deployment() Deployment { return h.deployment }

// Base returns the base's root directory, which Release closes.
func (h *Hold) Base() *os.File { return h.base }

// Overlays returns the overlays' subvolumes in the order of the deployment's, which
// Release closes.
func (h *Hold) Overlays() []*os.File { return h.overlays }

// Release gives the locks back.
func (h *Hold) Release() error {
	var errs []error
	if h.base != nil {
		errs = append(errs, h.base.Close())
	}
	for _, f := range h.overlays {
		errs = append(errs, f.Close())
	}
	h.base, h.overlays = nil, nil
	return errors.Join(errs...)
}

// shareSubvolume opens dir/name with a shared lock. The exclusive lock of garbage
// collection lasts for a moment, so it waits a little.
func shareSubvolume(dir *os.File, name string) (*os.File, error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		f, err := lockSubvolume(dir, name, unix.LOCK_SH)
		if err != nil || f != nil {
			return f, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s/%s is being deleted", dir.Name(), name)
		}
	}
}

// claimSubvolume opens dir/name with an exclusive lock, for its deletion. It returns
// nil if somebody uses it.
func claimSubvolume(dir *os.File, name string) (*os.File, error) {
	return lockSubvolume(dir, name, unix.LOCK_EX)
}

func lockSubvolume(dir *os.File, name string, how int) (*os.File, error) {
	path := dir.Name() + "/" + name
	if name == "" {
		return nil, fmt.Errorf("it has no subvolume in %s (garbage collection removed it)", dir.Name())
	}
	open := func() (*os.File, unix.Stat_t, error) {
		var st unix.Stat_t
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, st, &os.PathError{Op: "open", Path: path, Err: err}
		}
		f := os.NewFile(uintptr(fd), path)
		if err := unix.Fstat(fd, &st); err != nil {
			f.Close()
			return nil, st, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		return f, st, nil
	}
	f, mine, err := open()
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, nil
		}
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	// Between open and flock it may have been deleted: the name must still be it.
	again, now, err := open()
	if err != nil {
		f.Close()
		return nil, err
	}
	again.Close()
	if now.Dev != mine.Dev || now.Ino != mine.Ino {
		f.Close()
		return nil, nil
	}
	return f, nil
}
