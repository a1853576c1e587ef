package overlay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// workdir is where things are made before one rename or link shows them: a
// directory work/btrovl.<pid>.<random> of this process. Kernel overlayfs uses
// work/work and ignores it. Its flock tells that the process lives; what a dead
// one left is removed by the next that opens the overlay.
type workdir struct {
	fd     int
	parent int
	name   string
	next   atomic.Uint64
}

const workPrefix = "btrovl."

func newWorkdir(sub int) (*workdir, error) {
	if err := unix.Mkdirat(sub, "work", 0o700); err != nil && err != unix.EEXIST {
		return nil, fmt.Errorf("cannot make work/: %w", err)
	}
	parent, err := openBeneath(sub, "work", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open work/: %w", err)
	}
	sweepWork(parent)
	name := workPrefix + strconv.Itoa(os.Getpid()) + "." + strconv.FormatUint(rand.Uint64(), 36)
	if err := unix.Mkdirat(parent, name, 0o700); err != nil {
		unix.Close(parent)
		return nil, fmt.Errorf("cannot make work/%s: %w", name, err)
	}
	fd, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == nil {
		err = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
	}
	if err != nil {
		unix.Close(parent)
		return nil, fmt.Errorf("cannot open work/%s: %w", name, err)
	}
	return &workdir{fd: fd, parent: parent, name: name}, nil
}

// sweepWork removes what dead processes left.
func sweepWork(parent int) {
	names, err := dirNames(parent)
	if err != nil {
		return
	}
	for _, e := range names {
		if !strings.HasPrefix(e.name, workPrefix) {
			continue
		}
		fd, err := openBeneath(parent, e.name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeTree(parent, e.name)
		}
		unix.Close(fd)
	}
}

// temp returns a name that nothing in the directory has.
func (w *workdir) temp() at { return at{w.fd, strconv.FormatUint(w.next.Add(1), 36)} }

func (w *workdir) close() {
	if w == nil {
		return
	}
	removeTree(w.parent, w.name)
	unix.Close(w.fd)
	unix.Close(w.parent)
}

// removeTree removes name in dir and everything below. It serves temporary
// trees only, so errors leave garbage and nothing else.
func removeTree(dir int, name string) {
	if unix.Unlinkat(dir, name, 0) == nil {
		return
	}
	if unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil {
		return
	}
	fd, err := openBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	if names, err := dirNames(fd); err == nil {
		for _, e := range names {
			removeTree(fd, e.name)
		}
	}
	unix.Close(fd)
	unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
