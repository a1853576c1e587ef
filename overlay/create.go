package overlay

import (
	"golang.org/x/sys/unix"
)

// Spec describes an object to be made and who makes it.
type Spec struct {
	Mode     uint32 // with the type for Mknod
	Umask    uint32 // counts where the directory has no default ACL
	UID, GID uint32
	Rdev     uint64 // Mknod: unix.Mkdev
}

// maker makes an object under a name and returns its descriptor if it has one.
type maker func(o at, mode uint32) (int, error)

// Mkdir makes a directory.
func (u *Union) Mkdir(dir *Node, name string, w *Spec, a *Attr) (*Node, error) {
	return u.create(dir, name, w, unix.S_IFDIR, a, func(o at, mode uint32) (int, error) {
		return -1, unix.Mkdirat(o.fd, o.name, mode)
	})
}

// Mknod makes a file, device node, FIFO or socket.
func (u *Union) Mknod(dir *Node, name string, w *Spec, a *Attr) (*Node, error) {
	typ := w.Mode & unix.S_IFMT
	if typ == unix.S_IFCHR && w.Rdev == 0 {
		return nil, unix.EPERM // would be a whiteout
	}
	if typ == 0 {
		typ = unix.S_IFREG
	}
	return u.create(dir, name, w, typ, a, func(o at, mode uint32) (int, error) {
		return -1, unix.Mknodat(o.fd, o.name, typ|mode, int(w.Rdev))
	})
}

// Symlink makes a symbolic link.
func (u *Union) Symlink(dir *Node, name, target string, w *Spec, a *Attr) (*Node, error) {
	return u.create(dir, name, w, unix.S_IFLNK, a, func(o at, _ uint32) (int, error) {
		return -1, unix.Symlinkat(target, o.fd, o.name)
	})
}

// Create makes a regular file, or with excl false finds it if it is there.
func (u *Union) Create(dir *Node, name string, w *Spec, excl bool, a *Attr) (*Node, error) {
	n, err := u.create(dir, name, w, unix.S_IFREG, a, func(o at, mode uint32) (int, error) {
		return openBeneath(o.fd, o.name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, mode)
	})
	if err == unix.EEXIST && !excl {
		return u.Lookup(dir, name, a)
	}
	return n, err
}

// Tmpfile makes a regular file without a name.
func (u *Union) Tmpfile(dir *Node, w *Spec, a *Attr) (*Node, error) {
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	defer u.tree.RUnlock()
	up, l, err := u.intoDir(dir)
	if err != nil {
		return nil, err
	}
	defer u.fds.release(up)
	want, acl := u.wantMode(dir, up, w)
	fd, err := openBeneath(up.fd, ".", unix.O_TMPFILE|unix.O_RDWR, want)
	if err != nil {
		return nil, err
	}
	if err := u.own(at{fd, ""}, up, w, unix.S_IFREG, want, acl, a); err != nil {
		unix.Close(fd)
		return nil, err
	}
	a.Ino = viewIno(a.Ino, l.num)
	f := found{st: *a, state: anonymous | noCaps, claim: dir.claim}
	u.tab.mu.Lock()
	n := u.makeLocked(nil, "", &f)
	u.tab.noteLocked(n)
	u.unlockTable()
	h := u.fds.put(n, upper, l, fd, true)
	u.fds.pin(h)
	u.fds.release(h)
	return n, nil
}

// intoDir prepares a directory for a new entry: it is copied up and its upper
// descriptor returned with a reference.
// Preconditions: gate and tree held shared.
func (u *Union) intoDir(dir *Node) (*handle, *layer, error) {
	if dir.nameless() {
		return nil, nil, unix.ENOENT
	}
	if err := u.copyUp(dir, wholeFile); err != nil {
		return nil, nil, err
	}
	up, err := u.dir(dir, upper)
	if err != nil {
		return nil, nil, err
	}
	return up, u.cur.layer(dir.claim), nil
}

// trieChild returns the trie node of a name in a directory.
func (u *Union) trieChild(dir *Node, name string) *trie {
	if !dir.is(onTrie) {
		return nil
	}
	return u.cur.find(pathOf(dir)).child(name)
}

func (u *Union) create(dir *Node, name string, w *Spec, typ uint32, a *Attr, mk maker) (*Node, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	defer u.tree.RUnlock()
	if u.trieChild(dir, name) != nil {
		return nil, unix.EEXIST
	}
	up, l, err := u.intoDir(dir)
	if err != nil {
		return nil, err
	}
	defer u.fds.release(up)
	want, acl := u.wantMode(dir, up, w)
	o := at{up.fd, name}
	fd, err := mk(o, want)
	if err == unix.EEXIST {
		var st Attr
		if o.stat(&st) != nil || !whiteout(&st) {
			return nil, unix.EEXIST
		}
		fd, err = u.createOver(l, o, up, w, typ, want, acl, mk)
	}
	if err != nil {
		return nil, err
	}
	if fd >= 0 {
		err = u.own(at{fd, ""}, up, w, typ, want, acl, a)
	} else {
		err = u.own(o, up, w, typ, want, acl, a)
	}
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	a.Ino = viewIno(a.Ino, l.num)
	f := found{st: *a, state: hasUpper | noCaps, claim: dir.claim}
	u.tab.mu.Lock()
	if old := u.tab.names[linkKey{dir, name}]; old != nil {
		u.tab.dropNameLocked(old)
	}
	n := u.makeLocked(dir, name, &f)
	u.unlockTable()
	dir.version.Add(1)
	if fd >= 0 {
		u.fds.release(u.fds.put(n, upper, l, fd, true))
	}
	return n, nil
}

// wantMode is the mode of a new object: the directory's default ACL takes the
// umask's place.
func (u *Union) wantMode(dir *Node, up *handle, w *Spec) (mode uint32, acl bool) {
	mode = w.Mode & 0o7777
	if u.defaultACL(dir, up) {
		return mode, true
	}
	return mode &^ w.Umask, false
}

const xattrDefaultACL = "system.posix_acl_default"

func (u *Union) defaultACL(dir *Node, up *handle) bool {
	if s := dir.state.Load(); s&defACLKnown != 0 {
		return s&defACL != 0
	}
	n, err := at{up.fd, ""}.getxattr(xattrDefaultACL, nil)
	if err == nil && n > 0 {
		dir.set(defACL|defACLKnown, 0)
		return true
	}
	dir.set(defACLKnown, defACL)
	return false
}

// own gives a new object the caller as its owner, and the mode that this
// process's umask may have cut, and returns its attributes. The kernel has
// applied the directory's default ACL and its setgid bit.
func (u *Union) own(o at, up *handle, w *Spec, typ, want uint32, acl bool, a *Attr) error {
	if err := o.stat(a); err != nil {
		return err
	}
	uid, gid := int(w.UID), int(w.GID)
	if a.Uid == w.UID {
		uid = -1
	}
	if a.Gid == w.GID {
		gid = -1
	} else {
		var dir Attr
		if err := (at{up.fd, ""}).stat(&dir); err != nil {
			return err
		}
		if dir.Mode&unix.S_ISGID != 0 {
			gid = -1
		}
	}
	mode := uint32(a.Mode) & 0o7777
	if acl {
		want = mode | want&0o7000
	}
	if typ == unix.S_IFDIR {
		want |= mode & unix.S_ISGID
	}
	changed := false
	if uid != -1 || gid != -1 {
		if err := o.chown(uid, gid); err != nil {
			return err
		}
		changed = true
	}
	if typ != unix.S_IFLNK && (mode != want || changed && typ != unix.S_IFDIR && want&(unix.S_ISUID|unix.S_ISGID) != 0) {
		if err := o.chmod(want); err != nil {
			return err
		}
		changed = true
	}
	if changed {
		return o.stat(a)
	}
	return nil
}

// createOver makes an object in the place of a whiteout, by one rename: a crash
// must not bring back what was deleted. It is made in a directory of work/ that
// hands down what the real one would.
func (u *Union) createOver(l *layer, dst at, up *handle, w *Spec, typ, want uint32, acl bool, mk maker) (int, error) {
	tmp := l.work.temp()
	if err := unix.Mkdirat(tmp.fd, tmp.name, 0o700); err != nil {
		return -1, err
	}
	defer removeTree(tmp.fd, tmp.name)
	var st Attr
	if err := (at{up.fd, ""}).stat(&st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_ISGID != 0 {
		if err := tmp.chown(-1, int(st.Gid)); err != nil {
			return -1, err
		}
		if err := tmp.chmod(0o700 | unix.S_ISGID); err != nil {
			return -1, err
		}
	}
	if acl {
		val, err := at{up.fd, ""}.xattrValue(xattrDefaultACL)
		if err == nil {
			err = tmp.setxattr(xattrDefaultACL, val, 0)
		}
		if err != nil && err != unix.ENODATA {
			return -1, err
		}
	}
	dir, err := openBeneath(tmp.fd, tmp.name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	o := at{dir, "x"}
	fd, err := mk(o, want)
	if err == nil {
		var a Attr
		err = u.own(o, up, w, typ, want, acl, &a)
	}
	if err == nil {
		err = overWhiteout(o, dst, typ == unix.S_IFDIR)
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// overWhiteout moves a finished object to where a whiteout is. A directory must
// not be merged with what the whiteout hid.
func overWhiteout(src, dst at, dir bool) error {
	if !dir {
		return unix.Renameat2(src.fd, src.name, dst.fd, dst.name, 0)
	}
	if err := src.setxattr(xattrOpaque, []byte("y"), 0); err != nil {
		return err
	}
	if err := unix.Renameat2(src.fd, src.name, dst.fd, dst.name, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return unix.Unlinkat(src.fd, src.name, 0)
}

// Link gives an object another name.
func (u *Union) Link(n, dir *Node, name string, a *Attr) error {
	if err := checkName(name); err != nil {
		return err
	}
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	defer u.tree.RUnlock()
	if n.IsDir() {
		return unix.EPERM
	}
	if u.trieChild(dir, name) != nil {
		return unix.EEXIST
	}
	if n.claim != dir.claim {
		return unix.EXDEV
	}
	if n.is(detached) {
		return unix.ENOENT
	}
	if err := u.copyUp(n, wholeFile); err != nil {
		return err
	}
	up, l, err := u.intoDir(dir)
	if err != nil {
		return err
	}
	defer u.fds.release(up)
	if fromBase(n.ino) {
		if err := u.markImpure(dir, up); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := u.linkTo(n, l, at{up.fd, name}); err != nil {
		return err
	}
	t := &u.tab
	t.mu.Lock()
	if old := t.names[linkKey{dir, name}]; old != nil {
		t.dropNameLocked(old)
	}
	t.links[n.ino] = n
	n.set(linked, 0)
	t.addNameLocked(n, dir, name)
	n.lookups++
	if n.is(anonymous) {
		u.attachLocked(n, &found{state: hasUpper, claim: dir.claim})
	}
	u.unlockTable()
	dir.version.Add(1)
	if err := u.withLocked(n, func(o at) error { return o.stat(a) }); err != nil {
		return err
	}
	a.Ino = n.ino
	return nil
}

// linkTo links the upper object of a node to dst, which may be a whiteout.
func (u *Union) linkTo(n *Node, l *layer, dst at) error {
	link := func(dst at) error {
		if h := u.fds.get(n, upper, l, false); h != nil {
			defer u.fds.release(h)
			return linkFD(h.fd, dst)
		}
		if n.is(anonymous) {
			return unix.ENOENT
		}
		o, h, err := u.placeLocked(n, upper, l)
		if err != nil {
			return err
		}
		if h == nil {
			return unix.EBUSY // only directories lie at a claim's root
		}
		defer u.fds.release(h)
		return unix.Linkat(o.fd, o.name, dst.fd, dst.name, 0)
	}
	err := link(dst)
	if err != unix.EEXIST {
		return err
	}
	var st Attr
	if dst.stat(&st) != nil || !whiteout(&st) {
		return err
	}
	tmp := l.work.temp()
	if err := link(tmp); err != nil {
		return err
	}
	if err := overWhiteout(tmp, dst, false); err != nil {
		removeTree(tmp.fd, tmp.name)
		return err
	}
	return nil
}
