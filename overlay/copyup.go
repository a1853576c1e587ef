package overlay

import (
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// wholeFile is the keep argument of copyUp for all of a file's content.
const wholeFile = -1

// copyUp brings an object into the upper of its claim, with all that leads to
// it. Of a file's content the first keep bytes are taken. A nameless node of a
// lower or of an earlier stack becomes an anonymous copy.
//
// An object appears in the upper by one link or rename, complete: whoever looks
// meanwhile, or after a crash, finds the original or the copy.
//
// Preconditions: gate and tree held shared; n.mu not held.
func (u *Union) copyUp(n *Node, keep int64) error {
	if n.is(anonymous) || n.is(hasUpper) && !n.is(detached) {
		return u.writable(n)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.copyUpLocked(n, keep)
}

// writable says whether the claim of a node takes changes.
func (u *Union) writable(n *Node) error {
	if l := u.cur.layer(n.claim); (l == nil || l.ro) && !n.is(anonymous) {
		return unix.EROFS
	}
	return nil
}

func (u *Union) copyUpLocked(n *Node, keep int64) error {
	if n.is(anonymous) || n.is(hasUpper) && !n.is(detached) {
		return u.writable(n)
	}
	l := u.cur.layer(n.claim)
	if l == nil || l.ro {
		return unix.EROFS
	}
	if n.is(detached) {
		return u.copyAnonymous(n, l, keep)
	}
	if n.is(multi) {
		return u.copyUpLinks(n, l, keep)
	}
	parent := n.first.parent
	if parent == nil {
		return unix.ENOENT
	}
	if err := u.copyUp(parent, wholeFile); err != nil {
		return err
	}
	up, err := u.dir(parent, upper)
	if err != nil {
		return err
	}
	defer u.fds.release(up)
	return u.copyInto(n, l, parent, up, n.first.name, keep)
}

// copyInto copies a node to a name in an upper directory.
func (u *Union) copyInto(n *Node, l *layer, parent *Node, up *handle, name string, keep int64) error {
	if !n.IsDir() {
		if err := u.markImpure(parent, up); err != nil {
			return err
		}
	}
	var fd int
	err := keepTimes(up.fd, func() error {
		var err error
		fd, err = u.copyOriginal(n, l, at{up.fd, name}, keep)
		return err
	})
	if err != nil {
		return err
	}
	n.set(hasUpper, 0)
	if n.IsDir() {
		n.set(impureKnown, impure|synth)
	} else {
		n.set(0, hasLower)
	}
	if fd >= 0 {
		u.fds.release(u.fds.put(n, upper, l, fd, true))
		u.fds.drop(n, lower)
	}
	u.noteCopied(n)
	return nil
}

// noteCopied lets lookups under way look again, and a switch that is being
// prepared.
func (u *Union) noteCopied(n *Node) {
	u.copies.Add(1)
	u.tab.mu.Lock()
	u.tab.noteLocked(n)
	u.tab.mu.Unlock()
}

// keepTimes restores a directory's times after fn: that an object below was
// copied up is nothing that the view shows.
func keepTimes(dir int, fn func() error) error {
	var st Attr
	if err := (at{dir, ""}).stat(&st); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	ts := [2]unix.Timespec{timespec(st.Atime), timespec(st.Mtime)}
	return at{dir, ""}.utimes(&ts)
}

// markImpure notes in an upper directory that listing it must ask for numbers.
func (u *Union) markImpure(dir *Node, up *handle) error {
	if dir.is(impureKnown) && dir.is(impure) {
		return nil
	}
	if err := (at{up.fd, ""}).setxattr(xattrImpure, []byte("y"), 0); err != nil {
		return err
	}
	u.setImpure(dir, true)
	return nil
}

// copyOriginal copies the lower object of a node to dst; of a regular file it
// returns a descriptor of the copy.
func (u *Union) copyOriginal(n *Node, l *layer, dst at, keep int64) (int, error) {
	if n.typ == unix.S_IFREG {
		src, err := u.lowerFile(n)
		if err != nil {
			return -1, err
		}
		defer u.fds.release(src)
		fd, err := copyFile(l, src.fd, n, keep)
		if err != nil {
			return -1, err
		}
		if err := linkFD(fd, dst); err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	ll := u.layerOf(n, lower)
	o, h, err := u.placeLocked(n, lower, ll)
	if err != nil {
		return -1, err
	}
	if h != nil {
		defer u.fds.release(h)
	} else {
		dir, name := splitPath(o.name)
		fd, err := ll.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		o = at{fd, name}
	}
	tmp, err := copySpecial(l, o, n)
	if err != nil {
		return -1, err
	}
	err = unix.Renameat2(tmp.fd, tmp.name, dst.fd, dst.name, unix.RENAME_NOREPLACE)
	if err == unix.EEXIST && n.is(synth) {
		err = overWhiteout(tmp, dst, true) // the directory was deleted before its overlay was added
	}
	if err != nil {
		removeTree(tmp.fd, tmp.name)
		return -1, err
	}
	return -1, nil
}

func splitPath(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

// lowerFile opens the lower object of a regular file. n.mu is held.
func (u *Union) lowerFile(n *Node) (*handle, error) {
	l := u.layerOf(n, lower)
	if h := u.fds.get(n, lower, l, false); h != nil {
		return h, nil
	}
	fd, err := u.openNode(n, lower, l, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return u.fds.put(n, lower, l, fd, false), nil
}

// copyFile makes a nameless copy of a file in the work directory.
func copyFile(l *layer, src int, n *Node, keep int64) (_ int, err error) {
	var st Attr
	if err := (at{src, ""}).stat(&st); err != nil {
		return -1, err
	}
	dst, err := openBeneath(l.work.fd, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(dst)
		}
	}()
	if size := int64(st.Size); size > 0 && keep != 0 {
		if err := copyData(dst, src, size); err != nil {
			return -1, err
		}
	}
	return dst, copyMetaIno(at{dst, ""}, at{src, ""}, &st, n.ino)
}

// copyData shares the content (both lie on one btrfs) or, elsewhere, copies it
// and waits until it is on disk: a name must never lead to content that a crash
// would lose. A reflink is metadata of the same transaction as the name.
func copyData(dst, src int, size int64) error {
	err := unix.IoctlFileClone(dst, src)
	if err == nil || err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO {
		return err
	}
	for off := int64(0); off < size; {
		in, out := off, off
		n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(size-off, 1<<30)), 0)
		if err != nil || n == 0 {
			if err == unix.EINTR {
				continue
			}
			return copyPlain(dst, src, off, size)
		}
		off += int64(n)
	}
	return unix.Fdatasync(dst)
}

func copyPlain(dst, src int, off, size int64) error {
	buf := make([]byte, 1<<20)
	for off < size {
		n, err := unix.Pread(src, buf, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			m, err := unix.Pwrite(dst, b, off)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if m == 0 {
				return io.ErrShortWrite
			}
			b, off = b[m:], off+int64(m)
		}
	}
	if err := unix.Ftruncate(dst, size); err != nil {
		return err
	}
	return unix.Fdatasync(dst)
}

// linkFD gives a nameless file a name, and makes the descriptor one of that name.
//
// Without the latter an fsync through it is lost: btrfs logs the new directories
// above the descriptor's dentry, and that of a file born nameless stays in the
// directory of its birth (integration/crashtest's TestCrashView and TestTmpfileFsync;
// kernel 6.18).
func linkFD(fd int, dst at) error {
	var st Attr
	if err := (at{fd, ""}).stat(&st); err != nil {
		return err
	}
	err := unix.Linkat(fd, "", dst.fd, dst.name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT || err == unix.EPERM { // no CAP_DAC_READ_SEARCH
		err = unix.Linkat(unix.AT_FDCWD, procPath(at{fd, ""}), dst.fd, dst.name, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil || st.Nlink > 0 {
		return err
	}
	named, err := openBeneath(dst.fd, dst.name, unix.O_RDWR, 0)
	if err == nil {
		err = unix.Dup3(named, fd, unix.O_CLOEXEC)
		unix.Close(named)
	}
	if err != nil {
		unix.Unlinkat(dst.fd, dst.name, 0)
	}
	return err
}

// copySpecial makes a copy of anything but a regular file in the work directory;
// of a directory without what is in it.
func copySpecial(l *layer, src at, n *Node) (tmp at, err error) {
	var st Attr
	if err := src.stat(&st); err != nil {
		return at{}, err
	}
	tmp = l.work.temp()
	switch n.typ {
	case unix.S_IFDIR:
		err = unix.Mkdirat(tmp.fd, tmp.name, 0o700)
	case unix.S_IFLNK:
		var target string
		if target, err = src.readlink(); err == nil {
			err = unix.Symlinkat(target, tmp.fd, tmp.name)
		}
	default:
		err = unix.Mknodat(tmp.fd, tmp.name, uint32(st.Mode), int(unix.Mkdev(st.Rdev_major, st.Rdev_minor)))
	}
	if err != nil {
		return at{}, err
	}
	if n.IsDir() {
		err = copyMeta(tmp, src, &st) // keeps the base's number by being merged with it
	} else {
		err = copyMetaIno(tmp, src, &st, n.ino)
	}
	if err != nil {
		removeTree(tmp.fd, tmp.name)
		return at{}, err
	}
	return tmp, nil
}

func copyMetaIno(dst, src at, st *Attr, ino uint64) error {
	if fromBase(ino) {
		g := origin{ino >> inoLayerBits, st.Btime}
		if err := dst.setxattr(xattrIno, g.bytes(), 0); err != nil {
			return err
		}
	}
	return copyMeta(dst, src, st)
}

// copyMeta gives dst the owner, mode, extended attributes (ACLs are among them)
// and times of src, whose attributes are st.
func copyMeta(dst, src at, st *Attr) error {
	if st.Uid != 0 || st.Gid != 0 {
		if err := dst.chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := dst.chmod(uint32(st.Mode) & 0o7777); err != nil {
			return err
		}
	}
	names, err := src.xattrNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		if private(name) || name == "btrfs.compression" {
			continue
		}
		val, err := src.xattrValue(name)
		if err == unix.ENODATA {
			continue
		}
		if err == nil {
			err = dst.setxattr(name, val, 0)
		}
		if err != nil && err != unix.ENOTSUP {
			return err
		}
	}
	ts := [2]unix.Timespec{timespec(st.Atime), timespec(st.Mtime)}
	return dst.utimes(&ts)
}

// copyAnonymous turns a detached node into a copy without a name.
func (u *Union) copyAnonymous(n *Node, l *layer, keep int64) error {
	var fd int
	var err error
	switch n.typ {
	case unix.S_IFREG:
		var src *handle
		if src, err = u.lowerFileDetached(n); err == nil {
			fd, err = copyFile(l, src.fd, n, keep)
			u.fds.release(src)
		}
	case unix.S_IFDIR:
		err = unix.ESTALE // what could still be listed in it would be gone
	default:
		fd, err = copySpecialAnonymous(l, n)
	}
	if err != nil {
		return err
	}
	h := u.fds.put(n, upper, l, fd, n.typ == unix.S_IFREG)
	u.fds.pin(h)
	n.set(anonymous, detached|hasUpper|hasLower)
	u.fds.release(h)
	u.fds.drop(n, lower)
	old := n.ext.where.layer
	n.ext.where = where{}
	u.detachedCount.Add(-1)
	u.releaseLayer(old)
	u.noteCopied(n)
	return nil
}

// copySpecialAnonymous returns an O_PATH descriptor of a copy of a detached device, FIFO, socket or symlink.
func copySpecialAnonymous(l *layer, n *Node) (int, error) {
	w := &n.ext.where
	src, err := w.layer.open(w.path, unix.O_PATH, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(src)
	tmp, err := copySpecial(l, at{src, ""}, n)
	if err != nil {
		return -1, err
	}
	defer unix.Unlinkat(tmp.fd, tmp.name, 0)
	return openBeneath(tmp.fd, tmp.name, unix.O_PATH, 0)
}

func (u *Union) lowerFileDetached(n *Node) (*handle, error) {
	l := n.ext.where.layer
	fd, err := l.open(n.ext.where.path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return u.fds.put(n, lower, l, fd, false), nil
}
