package overlay

import (
	"sync"

	"golang.org/x/sys/unix"
)

// scout reads directories of the base ahead of a walk. A walk through a view that
// nothing is known of waits for the disk in every directory, while the program that
// walks waits for the server; the directories that come next are known from the lists,
// so that somebody can read their inodes meanwhile. It changes nothing and answers
// nobody: what it reads lies in the caches of the file system below.
//
// A walk is recognised by a directory being listed after its parent was. What is read
// then are its directories, before them all that was asked for earlier, and the next ones
// of its parent: depth first, as walks go.
type scout struct {
	mu      sync.Mutex
	stack   []sighting // the last one is next
	running bool
	closed  bool
	done    sync.WaitGroup
}

// sighting is a directory that may be listed soon.
type sighting struct {
	layer *layer
	path  string
	dir   *Node // of which it is a name
	name  string
}

const (
	scoutAhead  = 16   // directories of one parent
	scoutDepth  = 64   // directories that wait
	scoutNames  = 1024 // entries of one directory
	scoutParent = 4096 // entries of a parent that is searched for the next ones
)

// walking is told that a directory's list is read from its start.
// Preconditions: nothing is held.
func (u *Union) walking(n *Node, l *listing) {
	if !n.is(listed) {
		n.set(listed, 0)
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	if n.nameless() || n.first.parent == nil || !n.first.parent.is(listed) {
		return
	}
	var found []sighting
	found = u.sight(found, n.first.parent, n.first.name)
	if len(l.ents) <= scoutParent {
		found = u.sightIn(found, n, l, 0)
	}
	u.scout.send(u, found)
}

// sight finds the directories that come in a directory's list after a name.
func (u *Union) sight(out []sighting, dir *Node, after string) []sighting {
	if !dir.mu.TryLock() {
		return out
	}
	var l *listing
	if dir.ext != nil {
		l = dir.ext.listing
	}
	dir.mu.Unlock()
	if l == nil || len(l.ents) > scoutParent {
		return out
	}
	for i := range l.ents {
		if l.name(&l.ents[i]) == after {
			return u.sightIn(out, dir, l, i+1)
		}
	}
	return out
}

// sightIn finds directories of the base in a list. The last one found is read first.
func (u *Union) sightIn(out []sighting, dir *Node, l *listing, from int) []sighting {
	if !dir.is(hasLower) || dir.nameless() {
		return out
	}
	path, first := "", len(out)
	for i := from; i < len(l.ents) && len(out)-first < scoutAhead; i++ {
		if l.ents[i].typ != unix.DT_DIR {
			continue
		}
		name := l.name(&l.ents[i])
		if u.wasListed(dir, name) {
			continue
		}
		if path == "" {
			path = pathOf(dir)
		}
		out = append(out, sighting{u.cur.base, joinPath(path, name), dir, name})
	}
	for i, j := first, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

func (u *Union) wasListed(dir *Node, name string) bool {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	l := u.tab.names[linkKey{dir, name}]
	return l != nil && l.node.is(listed)
}

// send adds what was sighted. The goroutine that reads it ends when nothing is left.
func (s *scout) send(u *Union, found []sighting) {
	if len(found) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.stack = append(s.stack, found...)
	if n := len(s.stack) - scoutDepth; n > 0 {
		s.stack = append(s.stack[:0], s.stack[n:]...)
	}
	if !s.running {
		s.running = true
		s.done.Go(func() {
			for f, ok := s.next(); ok; f, ok = s.next() {
				u.readAhead(&f)
			}
		})
	}
}

func (s *scout) next() (f sighting, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.stack)
	if n == 0 || s.closed {
		s.running = false
		return f, false
	}
	f, s.stack = s.stack[n-1], s.stack[:n-1]
	return f, true
}

// close waits until nothing is read any more.
func (s *scout) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.done.Wait()
}

// readAhead reads a directory of the base and the inodes in it, unless the walk was faster.
func (u *Union) readAhead(f *sighting) {
	u.tree.RLock()
	if u.cur.base != f.layer || u.wasListed(f.dir, f.name) {
		u.tree.RUnlock()
		return
	}
	f.layer.retain()
	u.tree.RUnlock()
	defer u.releaseLayer(f.layer)
	fd, err := f.layer.open(f.path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return // the directory is an overlay's
	}
	defer unix.Close(fd)
	names, err := dirNames(fd)
	if err != nil {
		return
	}
	var st Attr
	for _, e := range names[:min(len(names), scoutNames)] {
		at{fd, e.name}.stat(&st)
	}
}
