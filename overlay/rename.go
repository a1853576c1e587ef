package overlay

import (
	"golang.org/x/sys/unix"
)

// move is one rename while it is prepared.
type move struct {
	from, to         end
	exchange         bool
	layer            *layer
	fromLow, toWhite bool // the base shows something under the old name; the upper has a whiteout at the new one
}

// end is one of the two names of a rename.
type end struct {
	dir  *Node
	name string
	node *Node // nil: the view shows nothing there
	up   *handle
	done func()
}

// Rename moves an object. A directory of the base, or one that is merged with
// it, is copied up whole before: kernel overlayfs, which follows no redirects by
// default, then finds at the new place all that was at the old one. Copying
// changes nothing that the view shows; the last step is one rename.
func (u *Union) Rename(oldDir *Node, oldName string, newDir *Node, newName string, flags uint32) error {
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	for _, name := range []string{oldName, newName} {
		if err := checkName(name); err != nil {
			return err
		}
	}
	u.gate.RLock()
	defer u.gate.RUnlock()
	m := &move{from: end{dir: oldDir, name: oldName}, to: end{dir: newDir, name: newName}, exchange: flags&unix.RENAME_EXCHANGE != 0}
	defer func() {
		for _, e := range []*end{&m.from, &m.to} {
			if e.up != nil {
				u.fds.release(e.up)
			}
			if e.done != nil {
				e.done()
			}
		}
	}()
	u.tree.RLock()
	err := u.prepareMove(m, flags)
	u.tree.RUnlock()
	if err != nil {
		return err
	}
	u.tree.Lock()
	defer u.tree.Unlock()
	return u.moveLocked(m)
}

func (u *Union) prepareMove(m *move, flags uint32) error {
	for _, e := range []*end{&m.from, &m.to} {
		if u.trieChild(e.dir, e.name) != nil {
			return unix.EBUSY // a claim's root, or what leads to one
		}
		if e == &m.to && !m.exchange {
			free, white, err := u.vacant(e.dir, e.name)
			if err != nil {
				return err
			}
			if free {
				m.toWhite = white
				continue
			}
		}
		n, done, err := u.known(e.dir, e.name)
		switch {
		case err == nil:
			e.node, e.done = n, done
		case err != unix.ENOENT || e == &m.from || m.exchange:
			return err
		}
	}
	if m.to.node != nil && flags&unix.RENAME_NOREPLACE != 0 {
		return unix.EEXIST
	}
	if m.from.dir.claim != m.to.dir.claim {
		return unix.EXDEV
	}
	m.layer = u.cur.layer(m.from.dir.claim)
	if m.layer == nil || m.layer.ro {
		return unix.EROFS
	}
	n, t := m.from.node, m.to.node
	if err := u.bringUp(&m.from); err != nil {
		return err
	}
	for _, e := range []*end{&m.from, &m.to} {
		var err error
		if e.up, _, err = u.intoDir(e.dir); err != nil {
			return err
		}
	}
	if m.exchange {
		if err := u.bringUp(&m.to); err != nil {
			return err
		}
		if err := u.fitFor(t, m.from.dir, m.from.up, m.from.name); err != nil {
			return err
		}
	} else if t != nil {
		if err := u.prepareVictim(n, t, m); err != nil {
			return err
		}
	}
	if err := u.fitFor(n, m.to.dir, m.to.up, m.to.name); err != nil {
		return err
	}
	var st Attr
	var err error
	m.fromLow, err = u.inBase(m.from.dir, m.from.name, &st)
	return err
}

// vacant says whether the view shows nothing under a name, and whether a whiteout is
// why. Most renames lead to a name that never was: that is one look.
func (u *Union) vacant(dir *Node, name string) (free, white bool, err error) {
	if dir.nameless() {
		return false, false, unix.ENOENT
	}
	u.tab.mu.Lock()
	known := u.tab.names[linkKey{dir, name}] != nil
	u.tab.mu.Unlock()
	if known {
		return false, false, nil
	}
	var st Attr
	if dir.is(hasUpper) {
		h, err := u.dir(dir, upper)
		if err != nil {
			return false, false, err
		}
		defer u.fds.release(h)
		switch err := (at{h.fd, name}).stat(&st); {
		case err == nil:
			white = whiteout(&st)
			return white, white, nil
		case err != unix.ENOENT:
			return false, false, err
		}
	}
	low, err := u.inBase(dir, name, &st)
	return !low, false, err
}

// bringUp copies an object up with all that is below it.
func (u *Union) bringUp(e *end) error {
	if err := u.copyUp(e.node, wholeFile); err != nil {
		return err
	}
	if !e.node.IsDir() || !e.node.is(hasLower) {
		return nil
	}
	if err := u.copyTree(e.node); err != nil {
		return err
	}
	o, done, err := u.upperOf(e.node)
	if err != nil {
		return err
	}
	defer done()
	return u.separate(e.dir, e.node, o)
}

// upperOf returns the descriptor of a directory's upper.
func (u *Union) upperOf(n *Node) (at, func(), error) {
	h, err := u.dir(n, upper)
	if err != nil {
		return at{}, nil, err
	}
	return at{h.fd, ""}, func() { u.fds.release(h) }, nil
}

// separate lets a directory that was merged with one of the base, whose content
// has been copied up, go on with its number but without the base. It shows the
// same after each step.
func (u *Union) separate(parent, n *Node, o at) error {
	up, err := u.dir(parent, upper)
	if err != nil {
		return err
	}
	defer u.fds.release(up)
	if err := u.markImpure(parent, up); err != nil {
		return err
	}
	var st Attr
	if err := o.stat(&st); err != nil {
		return err
	}
	g := origin{n.ino >> inoLayerBits, st.Btime}
	if err := o.setxattr(xattrIno, g.bytes(), 0); err != nil {
		return err
	}
	if err := o.setxattr(xattrOpaque, []byte("y"), 0); err != nil {
		return err
	}
	n.mu.Lock()
	n.set(0, hasLower)
	u.fds.drop(n, lower)
	err = keepTimes(o.fd, func() error { return sweepWhiteouts(o.fd) })
	n.mu.Unlock()
	if err != nil {
		return err
	}
	n.version.Add(1)
	u.noteCopied(n)
	return nil
}

// sweepWhiteouts removes the whiteouts of a directory that is not merged with
// anything: there kernel overlayfs would list them.
func sweepWhiteouts(fd int) error {
	names, err := dirNames(fd)
	if err != nil {
		return err
	}
	for _, e := range names {
		var st Attr
		if e.typ != unix.DT_CHR || (at{fd, e.name}).stat(&st) != nil || !whiteout(&st) {
			continue
		}
		if err := unix.Unlinkat(fd, e.name, 0); err != nil {
			return err
		}
	}
	return nil
}

// copyTree copies up all that a merged directory shows of the base.
func (u *Union) copyTree(dir *Node) error {
	names, err := u.lowerNames(dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		if err := u.copyEntry(dir, e.name); err != nil {
			return err
		}
	}
	return nil
}

func (u *Union) lowerNames(dir *Node) ([]dirent, error) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	h, err := u.dirLocked(dir, lower)
	if err != nil {
		return nil, err
	}
	defer u.fds.release(h)
	return dirNames(h.fd)
}

func (u *Union) copyEntry(dir *Node, name string) error {
	n, done, err := u.known(dir, name)
	if err == unix.ENOENT {
		return nil // whiteout
	}
	if err != nil {
		return err
	}
	defer done()
	if !n.is(hasLower) {
		return nil
	}
	err = u.copyUp(n, wholeFile)
	if n.nameless() {
		return nil // deleted meanwhile
	}
	if err != nil || !n.IsDir() {
		return err
	}
	if err := u.copyTree(n); err != nil {
		return err
	}
	o, release, err := u.upperOf(n)
	if err != nil {
		return err
	}
	defer release()
	return u.separate(dir, n, o)
}

// fitFor makes an upper object fit for a place below another directory.
func (u *Union) fitFor(n, dir *Node, up *handle, name string) error {
	if fromBase(n.ino) {
		if err := u.markImpure(dir, up); err != nil {
			return err
		}
	}
	if !n.IsDir() {
		return nil
	}
	var st Attr
	if low, err := u.inBase(dir, name, &st); err != nil || !low || !isDir(&st) {
		return err
	}
	o, done, err := u.upperOf(n)
	if err != nil {
		return err
	}
	defer done()
	return o.setxattr(xattrOpaque, []byte("y"), 0)
}

// prepareVictim prepares what a rename replaces.
func (u *Union) prepareVictim(n, t *Node, m *move) error {
	switch {
	case t.IsDir() && !n.IsDir():
		return unix.EISDIR
	case !t.IsDir() && n.IsDir():
		return unix.ENOTDIR
	}
	if t.is(multi) {
		if err := u.copyUp(t, wholeFile); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.IsDir() {
		physically, err := u.emptyLocked(t)
		if err != nil {
			return err
		}
		if physically {
			if err := u.clearLocked(t, m); err != nil {
				return err
			}
		}
	}
	if t.is(hasUpper) {
		return u.keepLocked(t, m.layer)
	}
	return nil
}

// clearLocked replaces an upper directory that holds whiteouts by an empty opaque
// one, so that a directory can be renamed over it.
func (u *Union) clearLocked(t *Node, m *move) error {
	if err := u.keepLocked(t, m.layer); err != nil { // who has it open goes on with this one
		return err
	}
	o := at{m.to.up.fd, m.to.name}
	var st Attr
	if err := o.stat(&st); err != nil {
		return err
	}
	tmp := m.layer.work.temp()
	if err := unix.Mkdirat(tmp.fd, tmp.name, 0o700); err != nil {
		return err
	}
	err := tmp.setxattr(xattrOpaque, []byte("y"), 0)
	if err == nil {
		err = copyMeta(tmp, o, &st)
	}
	if err == nil {
		err = unix.Renameat2(tmp.fd, tmp.name, o.fd, o.name, unix.RENAME_EXCHANGE)
	}
	removeTree(tmp.fd, tmp.name)
	return err
}

// moveLocked makes the step that shows.
// Preconditions: gate held shared, tree held alone.
func (u *Union) moveLocked(m *move) error {
	n, t := m.from.node, m.to.node
	src, dst := at{m.from.up.fd, m.from.name}, at{m.to.up.fd, m.to.name}
	if !u.still(&m.from) || t != nil && !u.still(&m.to) {
		return unix.ENOENT
	}
	flags := uint(0)
	swapWhite := m.toWhite && n.IsDir() // a directory cannot replace a whiteout, but change places with it
	switch {
	case m.exchange || swapWhite:
		flags = unix.RENAME_EXCHANGE
	case m.fromLow:
		flags = unix.RENAME_WHITEOUT
	}
	if err := unix.Renameat2(src.fd, src.name, dst.fd, dst.name, flags); err != nil {
		if t != nil && !m.exchange {
			u.unkeepLocked(t, m.layer)
			if t.IsDir() {
				u.fds.drop(t, upper) // of the directory that clearLocked took away
			}
		}
		return err
	}
	if swapWhite && !m.fromLow {
		unix.Unlinkat(src.fd, src.name, 0) // a whiteout too many hides nothing
	}
	m.from.dir.version.Add(1)
	m.to.dir.version.Add(1)
	if t != nil && !m.exchange {
		u.loseName(t, m.to.dir, m.to.name)
	}
	u.tab.mu.Lock()
	defer u.unlockTable()
	a := u.tab.names[linkKey{m.from.dir, m.from.name}]
	b := u.tab.names[linkKey{m.to.dir, m.to.name}]
	u.tab.moveLinkLocked(a, b, m)
	u.tab.noteMovedLocked(n)
	u.tab.noteLocked(m.from.dir)
	if m.exchange {
		u.tab.noteMovedLocked(t)
	}
	return nil
}

// still says that a name means the node that was prepared.
func (u *Union) still(e *end) bool {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	l := u.tab.names[linkKey{e.dir, e.name}]
	return l != nil && l.node == e.node
}

// moveLinkLocked moves the name a to the new place, and what is there (b, in an
// exchange) to the old one.
func (t *table) moveLinkLocked(a, b *link, m *move) {
	t.takeLocked(a)
	if b != nil {
		t.takeLocked(b)
		b.parent, b.name = m.from.dir, m.from.name
		t.insertLocked(b)
	}
	a.parent, a.name = m.to.dir, m.to.name
	t.insertLocked(a)
	t.reapLocked(m.from.dir)
}
