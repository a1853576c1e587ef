package overlay

import (
	"sync"

	"golang.org/x/sys/unix"
)

// scout reads directories and small files of the base ahead of a walk. A walk through a view that
// nothing is known of waits for the disk in every directory, while the program that
// walks waits for the server; the directories that come next are known from the lists,
// so that somebody can read their inodes meanwhile. It changes nothing and answers
// nobody: what it reads lies in the caches of the file system below.
//
// A walk is recognised by a directory being listed after its parent was. What is read
// then are its directories, before them all that was asked for earlier, and the next ones
// of its parent: depth first, as walks go. Who reads the files of a directory one after the
// other in the order of its list will read the next ones, too.
type scout struct {
	mu      sync.Mutex
	stack   []sighting // the last one is next
	running bool
	closed  bool
	done    sync.WaitGroup
}

// sighting is a directory that may be listed soon, or a file that may be read.
type sighting struct {
	layer *layer
	path  string
	dir   *Node // of which it is a name
	name  string
	file  bool
}

const (
	scoutAhead  = 16   // directories of one parent
	scoutDepth  = 64   // directories that wait
	scoutNames  = 1024 // entries of one directory
	scoutParent = 4096 // entries of a parent that is searched for the next ones
	scoutFiles  = 8    // files of one directory
	scoutBytes  = 128 << 10
)

// walking is told that a directory's list is read from its start.
// Preconditions: nothing is held.
func (u *Union) walking(n *Node, l *listing) {
	if !n.is(listed) {
		n.set(listed, 0)
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	parent, name := u.nameOf(n)
	if parent == nil || !parent.is(listed) {
		return
	}
	found := u.sightAfter(parent, name)
	if len(l.ents) <= scoutParent {
		found = u.sightIn(found, n, l, 0)
	}
	u.scout.send(u, found)
}

// nameOf returns a node's name, and its directory, nil if it has none.
// Preconditions: tree held.
func (u *Union) nameOf(n *Node) (*Node, string) {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	if n.nameless() {
		return nil, ""
	}
	return n.first.parent, n.first.name
}

// lastList returns the list that was made of a directory last, nil if it is not kept.
func (u *Union) lastList(dir *Node) *listing {
	if !dir.mu.TryLock() {
		return nil
	}
	defer dir.mu.Unlock()
	if dir.ext == nil {
		return nil
	}
	return dir.ext.listing
}

// sightAfter finds the directories that come in a directory's list after a name.
func (u *Union) sightAfter(dir *Node, name string) []sighting {
	l := u.lastList(dir)
	if l == nil || len(l.ents) > scoutParent {
		return nil
	}
	for i := range l.ents {
		if l.name(&l.ents[i]) == name {
			return u.sightIn(nil, dir, l, i+1)
		}
	}
	return nil
}

// reading is told that a file of the base is read from its start.
// Preconditions: nothing is held.
func (u *Union) reading(n *Node) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	dir, name := u.nameOf(n)
	if dir == nil || !dir.is(hasLower) {
		return
	}
	l := u.lastList(dir)
	if l == nil {
		return
	}
	next := int(l.nextRead.Load())
	i := l.find(name, next, 2*scoutFiles)
	if i < 0 && next > 0 {
		i, next = l.find(name, 0, 2*scoutFiles), 0
	}
	if i < 0 {
		return // somebody reads here and there
	}
	l.nextRead.Store(int32(i + 1))
	if next == 0 {
		return // the first one
	}
	from := max(int(l.sighted.Load()), i+1)
	if from > i+1+scoutFiles/2 || from >= len(l.ents) {
		return // enough is under way
	}
	var found []sighting
	path, to := pathOf(dir), min(i+1+2*scoutFiles, len(l.ents))
	for k := to - 1; k >= from; k-- { // the last one found is read first
		if l.ents[k].typ == unix.DT_REG {
			name := l.name(&l.ents[k])
			found = append(found, sighting{u.cur.base, joinPath(path, name), dir, name, true})
		}
	}
	l.sighted.Store(int32(to))
	u.scout.send(u, found)
}

// find returns where a name is among some entries, -1 if it is not there.
func (l *listing) find(name string, from, count int) int {
	for i := from; i < len(l.ents) && i < from+count; i++ {
		if l.name(&l.ents[i]) == name {
			return i
		}
	}
	return -1
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
		out = append(out, sighting{u.cur.base, joinPath(path, name), dir, name, false})
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

// readAhead reads a directory of the base and the inodes in it, or a file's first part,
// unless the walk was faster.
func (u *Union) readAhead(f *sighting) {
	u.tree.RLock()
	if u.cur.base != f.layer || !f.file && u.wasListed(f.dir, f.name) {
		u.tree.RUnlock()
		return
	}
	f.layer.retain()
	u.tree.RUnlock()
	defer u.releaseLayer(f.layer)
	flags := unix.O_RDONLY | unix.O_NONBLOCK
	if !f.file {
		flags |= unix.O_DIRECTORY
	}
	fd, err := f.layer.open(f.path, flags, 0)
	if err != nil {
		return // it is an overlay's
	}
	defer unix.Close(fd)
	if f.file {
		unix.Fadvise(fd, 0, scoutBytes, unix.FADV_WILLNEED)
		return
	}
	names, err := dirNames(fd)
	if err != nil {
		return
	}
	var st Attr
	for _, e := range names[:min(len(names), scoutNames)] {
		at{fd, e.name}.stat(&st)
	}
}
