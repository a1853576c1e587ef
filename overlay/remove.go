package overlay

import (
	"golang.org/x/sys/unix"
)

// makeWhiteout hides a name of the base where the upper has nothing.
func makeWhiteout(o at) error {
	return unix.Mknodat(o.fd, o.name, unix.S_IFCHR, 0)
}

// inBase says whether the base shows something under a name of the directory, so
// that removing it from the upper needs a whiteout.
// Preconditions: tree held.
func (u *Union) inBase(dir *Node, name string, st *Attr) (bool, error) {
	if !dir.is(hasLower) {
		return false, nil
	}
	h, err := u.dir(dir, lower)
	if err != nil {
		return false, err
	}
	defer u.fds.release(h)
	switch err := (at{h.fd, name}).stat(st); err {
	case nil:
		return !whiteout(st), nil
	case unix.ENOENT:
		return false, nil
	default:
		return false, err
	}
}

// known returns the node of a name, which is looked up if nobody knows it; done
// must be called when it is not needed any more.
func (u *Union) known(dir *Node, name string) (n *Node, done func(), err error) {
	u.tab.mu.Lock()
	if l := u.tab.names[linkKey{dir, name}]; l != nil {
		n = l.node
		n.lookups++
	}
	u.unlockTable()
	if n == nil {
		var a Attr
		if n, err = u.lookup(dir, name, &a); err != nil {
			return nil, nil, err
		}
	}
	return n, func() { u.Forget(n, 1) }, nil
}

// Unlink removes a name of anything but a directory.
func (u *Union) Unlink(dir *Node, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	defer u.tree.RUnlock()
	if u.trieChild(dir, name) != nil {
		return unix.EISDIR
	}
	n, done, err := u.known(dir, name)
	if err != nil {
		return err
	}
	defer done()
	if n.IsDir() {
		return unix.EISDIR
	}
	// One name of several goes: the others must show one link less, which only a
	// copy can.
	if n.is(multi) {
		if err := u.copyUp(n, wholeFile); err != nil {
			return err
		}
	}
	up, l, err := u.intoDir(dir)
	if err != nil {
		return err
	}
	defer u.fds.release(up)
	n.mu.Lock()
	defer n.mu.Unlock()
	var st Attr
	low, err := u.inBase(dir, name, &st)
	if err != nil {
		return err
	}
	o := at{up.fd, name}
	switch {
	case !n.is(hasUpper):
		err = makeWhiteout(o)
	case !low:
		if err = u.keepLocked(n, l); err == nil {
			err = unix.Unlinkat(o.fd, o.name, 0)
		}
	default:
		if err = u.keepLocked(n, l); err == nil {
			err = replaceByWhiteout(l, o)
		}
	}
	if err != nil {
		u.unkeepLocked(n, l)
		return err
	}
	u.loseName(n, dir, name)
	dir.version.Add(1)
	return nil
}

// replaceByWhiteout puts a whiteout in the place of a file, by one rename.
func replaceByWhiteout(l *layer, o at) error {
	tmp := l.work.temp()
	if err := makeWhiteout(tmp); err != nil {
		return err
	}
	if err := unix.Renameat2(tmp.fd, tmp.name, o.fd, o.name, 0); err != nil {
		removeTree(tmp.fd, tmp.name)
		return err
	}
	return nil
}

// keepLocked takes a descriptor of an upper object that is about to lose its
// last known name: whoever has it open goes on using it, and nobody tells the
// server who that is.
func (u *Union) keepLocked(n *Node, l *layer) error {
	u.tab.mu.Lock()
	last := n.first.alias == nil
	u.tab.mu.Unlock()
	if !last {
		return nil
	}
	h := u.fds.get(n, upper, l, n.typ == unix.S_IFREG && !l.ro)
	if h == nil {
		flags := unix.O_PATH
		switch n.typ {
		case unix.S_IFREG:
			flags = unix.O_RDWR
		case unix.S_IFDIR:
			flags = unix.O_RDONLY | unix.O_DIRECTORY
		}
		fd, err := u.openNode(n, upper, l, flags)
		if err != nil {
			return err
		}
		h = u.fds.put(n, upper, l, fd, n.typ == unix.S_IFREG)
	}
	u.fds.pin(h)
	u.fds.release(h)
	return nil
}

// unkeepLocked undoes keepLocked.
func (u *Union) unkeepLocked(n *Node, l *layer) {
	if !n.nameless() {
		u.fds.unpin(n, l)
	}
}

// loseName takes a name from a node in the table; without the last one it is
// anonymous, or detached if it lies in the base.
// Preconditions: n.mu held or tree held alone; keepLocked was called.
func (u *Union) loseName(n, dir *Node, name string) {
	u.tab.mu.Lock()
	l := u.tab.names[linkKey{dir, name}]
	if l == nil || l.node != n {
		u.unlockTable()
		return
	}
	last := l == &n.first && n.first.alias == nil
	var path string
	if last && !n.is(hasUpper) {
		path = pathOf(n)
	}
	u.tab.dropNameLocked(l)
	if last {
		if n.is(hasUpper) {
			n.set(anonymous, hasUpper|hasLower|onTrie)
		} else {
			u.detach(n, u.layerOf(n, lower), path)
		}
	}
	u.unlockTable()
}

// detach lets a nameless node remember where it lies.
// Preconditions: n.mu held or tree held alone; table locked.
func (u *Union) detach(n *Node, l *layer, path string) {
	n.extLocked().where = where{layer: l, path: path}
	l.retain()
	u.detachedCount.Add(1)
	n.set(detached|hasLower, hasUpper|onTrie|synth|multi)
	if u.tab.links[n.ino] == n {
		delete(u.tab.links, n.ino) // a name found later leads to another object
	}
}

// Rmdir removes an empty directory.
func (u *Union) Rmdir(dir *Node, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	defer u.tree.RUnlock()
	if t := u.trieChild(dir, name); t != nil {
		if t.claim != 0 {
			return unix.EBUSY
		}
		return unix.ENOTEMPTY
	}
	n, done, err := u.known(dir, name)
	if err != nil {
		return err
	}
	defer done()
	if !n.IsDir() {
		return unix.ENOTDIR
	}
	if l := u.cur.layer(dir.claim); l == nil || l.ro {
		return unix.EROFS
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := u.emptyLocked(n); err != nil {
		return err
	}
	up, l, err := u.intoDir(dir)
	if err != nil {
		return err
	}
	defer u.fds.release(up)
	var st Attr
	low, err := u.inBase(dir, name, &st)
	if err != nil {
		return err
	}
	o := at{up.fd, name}
	if !n.is(hasUpper) {
		err = makeWhiteout(o)
	} else if err = u.keepLocked(n, l); err == nil {
		err = removeDir(l, o, low)
	}
	if err != nil {
		u.unkeepLocked(n, l)
		return err
	}
	u.loseName(n, dir, name)
	dir.version.Add(1)
	return nil
}

// removeDir removes an upper directory that holds whiteouts at most; low leaves a
// whiteout in its place. It vanishes by one step.
func removeDir(l *layer, o at, low bool) error {
	if !low {
		if err := unix.Unlinkat(o.fd, o.name, unix.AT_REMOVEDIR); err != unix.ENOTEMPTY {
			return err
		}
	}
	flags := uint(0)
	if low {
		flags = unix.RENAME_WHITEOUT
	}
	tmp := l.work.temp()
	if err := unix.Renameat2(o.fd, o.name, tmp.fd, tmp.name, flags); err != nil {
		return err
	}
	removeTree(tmp.fd, tmp.name)
	return nil
}

// emptyLocked fails with ENOTEMPTY if the view shows anything in a directory;
// physically says that its upper has entries (whiteouts) all the same.
// Preconditions: tree held, n.mu held.
func (u *Union) emptyLocked(n *Node) (physically bool, err error) {
	hidden := map[string]bool{}
	if n.is(hasUpper) {
		h, err := u.dirLocked(n, upper)
		if err != nil {
			return false, err
		}
		names, err := dirNames(h.fd)
		defer u.fds.release(h)
		if err != nil {
			return false, err
		}
		for _, e := range names {
			var st Attr
			if e.typ == unix.DT_CHR || e.typ == unix.DT_UNKNOWN {
				if err := (at{h.fd, e.name}).stat(&st); err != nil {
					return false, err
				}
				if whiteout(&st) {
					hidden[e.name] = true
					continue
				}
			}
			return false, unix.ENOTEMPTY
		}
	}
	if n.is(hasLower) {
		h, err := u.dirLocked(n, lower)
		if err != nil {
			return false, err
		}
		defer u.fds.release(h)
		names, err := dirNames(h.fd)
		if err != nil {
			return false, err
		}
		for _, e := range names {
			if hidden[e.name] {
				continue
			}
			var st Attr
			if e.typ == unix.DT_CHR && (at{h.fd, e.name}).stat(&st) == nil && whiteout(&st) {
				continue
			}
			return false, unix.ENOTEMPTY
		}
	}
	return len(hidden) > 0, nil
}
