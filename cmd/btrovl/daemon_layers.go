package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
	"github.com/btrovl/btrovl/subvolumes"
)

// layers is a deployment's subvolumes, open and held for as long as a view shows
// them or something that was opened through it still uses them.
type layers struct {
	deployment subvolumes.Deployment
	hold       *subvolumes.Hold
	locks      *workLocks
	locked     []string        // what was taken from locks
	pending    map[string]bool // once retired: the directories that are still in use
}

// openLayers opens and holds a deployment and locks its overlays.
func openLayers(p *subvolumes.Pool, d *subvolumes.Deployment, locks *workLocks) (*layers, error) {
	hold, err := p.Hold(d)
	if err != nil {
		return nil, fmt.Errorf("cannot open deployment %d: %w", d.ID, err)
	}
	l := &layers{deployment: *d, hold: hold, locks: locks}
	for i, dir := range hold.Overlays() {
		ref := d.Overlays[i]
		if err := locks.take(ref.Subvolume, dir); err != nil {
			l.release()
			return nil, err
		}
		l.locked = append(l.locked, ref.Subvolume)
	}
	return l, nil
}

// workLocks keeps overlays to one daemon: one writable view or several read-only
// ones, because two caches of what somebody else changes would both be wrong. The
// lock is a flock on the overlay's work directory, shared by all layers of this
// process that need it.
type workLocks struct {
	readOnly bool

	mu   sync.Mutex // guards what follows
	held map[string]*workLock
}

type workLock struct {
	file *os.File
	refs int
}

// take locks the overlay whose subvolume is dir. Error: one with codeBusy.
func (w *workLocks) take(name string, dir *os.File) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.held[name]; l != nil {
		l.refs++
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), "work", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open overlay %s: %w", name, &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), "work"), Err: err})
	}
	how := unix.LOCK_EX
	if w.readOnly {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(fd, how|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return coded(codeBusy, fmt.Errorf("overlay %s is mounted by another process already", name),
				"see by whom: btrovl status", "an overlay has one writable view, or several read-only ones")
		}
		return fmt.Errorf("cannot lock overlay %s: %w", name, err)
	}
	w.held[name] = &workLock{os.NewFile(uintptr(fd), name), 1}
	return nil
}

func (w *workLocks) give(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.held[name]
	if l.refs--; l.refs == 0 {
		l.file.Close()
		delete(w.held, name)
	}
}

// config is what the union is made of.
func (l *layers) config() overlay.Config {
	c := overlay.Config{Base: l.hold.Base()}
	for i, ref := range l.deployment.Overlays {
		c.Uppers = append(c.Uppers, overlay.Upper{
			Name: ref.Name, Dir: l.hold.Overlays()[i], Paths: ref.Paths, ReadOnly: l.locks.readOnly,
		})
	}
	return c
}

// dirs are the names of the layers' directories, as the view knows them.
func (l *layers) dirs() map[string]bool {
	m := map[string]bool{l.hold.Base().Name(): true}
	for _, f := range l.hold.Overlays() {
		m[f.Name()] = true
	}
	return m
}

func (l *layers) release() {
	for _, name := range l.locked {
		l.locks.give(name)
	}
	l.hold.Release()
}

// retire notes, before a switch, which directories of old the view will not show
// any more. It is released when the last of them is.
func (s *server) retire(old *layers, next *layers) {
	kept := next.dirs()
	old.pending = map[string]bool{}
	for dir := range old.dirs() {
		if !kept[dir] {
			old.pending[dir] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = append(s.retired, old)
}

// unretire takes a retirement back: the switch failed.
func (s *server) unretire(old *layers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range s.retired {
		if l == old {
			s.retired = append(s.retired[:i], s.retired[i+1:]...)
			return
		}
	}
}

// released is called by the view when nothing uses a layer any more.
func (s *server) released(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.retired[:0]
	for _, l := range s.retired {
		delete(l.pending, dir)
		if len(l.pending) > 0 || l == s.shown { // shown: the switch is still under way
			rest = append(rest, l)
			continue
		}
		s.log.Info("released", "deployment", l.deployment.ID)
		l.release()
	}
	s.retired = rest
}

func (s *server) releaseAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.retired {
		l.release()
	}
	s.retired = nil
	s.shown.release()
}
