package overlay

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Large reads are read-ahead or a program's own large ones, and whoever asked
// keeps the pages: they need not stay in the layer's cache too. Such a read takes
// the same time with O_DIRECT.
const (
	directSize  = 256 << 10
	directAlign = 4096
)

// Read reads from a regular file.
func (u *Union) Read(n *Node, buf []byte, off int64) (int, error) {
	u.tree.RLock()
	var h *handle
	var err error
	if len(buf) >= directSize && off%directAlign == 0 && len(buf)%directAlign == 0 &&
		uintptr(unsafe.Pointer(&buf[0]))%directAlign == 0 {
		h = u.directFile(n)
	}
	if h == nil {
		h, err = u.file(n, false)
	}
	u.tree.RUnlock()
	if err != nil {
		return 0, err
	}
	defer u.fds.release(h)
	if off == 0 && h.side != upper {
		u.reading(n)
	}
	got, err := readAt(h.fd, buf, off)
	if err == unix.EINVAL && h.side == direct {
		u.tree.RLock()
		plain, err := u.file(n, false)
		u.tree.RUnlock()
		if err != nil {
			return 0, err
		}
		defer u.fds.release(plain)
		return readAt(plain.fd, buf, off)
	}
	return got, err
}

// directFile opens a file for reads past the page cache; nil if that cannot be.
// Preconditions: tree held; n.mu not held.
func (u *Union) directFile(n *Node) *handle {
	if n.typ != unix.S_IFREG || n.is(anonymous) {
		return nil
	}
	s := n.top()
	l := u.layerOf(n, s)
	if h := u.fds.get(n, direct, l, false); h != nil {
		return h
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s != n.top() || n.is(anonymous) || l == nil {
		return nil
	}
	fd, err := u.openNode(n, s, l, unix.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return nil
	}
	return u.fds.put(n, direct, l, fd, false)
}

func readAt(fd int, buf []byte, off int64) (int, error) {
	got := 0
	for got < len(buf) {
		m, err := unix.Pread(fd, buf[got:], off+int64(got))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if got > 0 {
				break
			}
			return 0, err
		}
		if m == 0 {
			break
		}
		if got += m; got%directAlign != 0 {
			break // the end of the file, or of what O_DIRECT gives at once
		}
	}
	return got, nil
}

// change copies a regular file up and returns its descriptor for writing; undo
// must be called at the end.
func (u *Union) change(n *Node, kill bool) (h *handle, done func(), err error) {
	u.gate.RLock()
	u.tree.RLock()
	if n.typ != unix.S_IFREG {
		err = unix.EINVAL
	} else if err = u.copyUp(n, wholeFile); err == nil {
		h, err = u.file(n, true)
	}
	u.tree.RUnlock()
	if err == nil && kill && n.is(setID) {
		if err = u.dropSetID(n, at{h.fd, ""}); err != nil {
			u.fds.release(h)
		}
	}
	if err != nil {
		u.gate.RUnlock()
		return nil, nil, err
	}
	return h, func() { u.fds.release(h); u.gate.RUnlock() }, nil
}

// How a Write came about.
const (
	WriteKill   = 1 << iota // by a caller who may not keep set-id bits
	WriteMapped             // through a mapping, which takes no privileges away
)

// Write writes to a regular file.
func (u *Union) Write(n *Node, data []byte, off int64, how uint32) (int, error) {
	h, done, err := u.change(n, how&WriteKill != 0)
	if err != nil {
		return 0, err
	}
	defer done()
	if how&WriteMapped != 0 && !n.is(noCaps) {
		// For the kernel below this is a write like any other: it takes file
		// capabilities away.
		if caps, err := (at{h.fd, ""}).xattrValue(xattrCaps); err == nil {
			defer at{h.fd, ""}.setxattr(xattrCaps, caps, 0)
		}
	}
	put := 0
	for put < len(data) {
		m, err := unix.Pwrite(h.fd, data[put:], off+int64(put))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if put > 0 {
				break
			}
			return 0, err
		}
		if m == 0 {
			break
		}
		put += m
	}
	return put, nil
}

// Allocate is fallocate.
func (u *Union) Allocate(n *Node, mode uint32, off, size int64, kill bool) error {
	h, done, err := u.change(n, kill)
	if err != nil {
		return err
	}
	defer done()
	for {
		if err := unix.Fallocate(h.fd, mode, off, size); err != unix.EINTR {
			return err
		}
	}
}

// CopyRange is copy_file_range: on btrfs a reflink where the offsets allow it.
func (u *Union) CopyRange(src *Node, srcOff int64, dst *Node, dstOff int64, size int, kill bool) (int, error) {
	h, done, err := u.change(dst, kill)
	if err != nil {
		return 0, err
	}
	defer done()
	u.tree.RLock()
	from, err := u.file(src, false)
	u.tree.RUnlock()
	if err != nil {
		return 0, err
	}
	defer u.fds.release(from)
	for {
		n, err := unix.CopyFileRange(from.fd, &srcOff, h.fd, &dstOff, size, 0)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// Seek finds data or holes (SEEK_DATA, SEEK_HOLE).
func (u *Union) Seek(n *Node, off int64, whence int) (int64, error) {
	u.tree.RLock()
	h, err := u.file(n, false)
	u.tree.RUnlock()
	if err != nil {
		return 0, err
	}
	defer u.fds.release(h)
	return unix.Seek(h.fd, off, whence)
}

// Sync puts an object on stable storage: content too with data alone. What the
// base holds is there already.
func (u *Union) Sync(n *Node, dataOnly bool) error {
	u.tree.RLock()
	if !n.is(hasUpper | anonymous) {
		u.tree.RUnlock()
		return nil
	}
	var h *handle
	var err error
	if n.IsDir() {
		if h = u.fds.get(n, upper, u.layerOf(n, upper), false); h == nil {
			h, err = u.dir(n, upper)
		}
	} else {
		h, err = u.file(n, false)
	}
	u.tree.RUnlock()
	if err != nil {
		return err
	}
	defer u.fds.release(h)
	n.set(fsynced, 0)
	for {
		if dataOnly {
			err = unix.Fdatasync(h.fd)
		} else {
			err = unix.Fsync(h.fd)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// Fsynced says whether an object, or what a name in it stands for if it is a directory, was fsynced since it is known.
func (u *Union) Fsynced(n *Node, name string) bool {
	if n == nil || n.is(fsynced) {
		return n != nil
	}
	if name == "" {
		return false
	}
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	l := u.tab.names[linkKey{n, name}]
	return l != nil && l.node.is(fsynced)
}

// MountID returns the number that /proc/self/mountinfo has for the mount in which the layers lie.
func (u *Union) MountID() (uint64, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	var st Attr
	err := unix.Statx(u.cur.base.root, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, err
}

// Flags returns the inode flags of chattr (FS_IOC_GETFLAGS).
func (u *Union) Flags(n *Node) (flags int, err error) {
	err = u.inodeFlags(n, false, func(fd int) error {
		flags, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		return err
	})
	return flags, err
}

// SetFlags sets the inode flags of chattr (FS_IOC_SETFLAGS). EOPNOTSUPP: append-only, because files below are open for
// all that may be written to them.
func (u *Union) SetFlags(n *Node, flags int) error {
	if flags&fsAppendFlag != 0 {
		return unix.EOPNOTSUPP
	}
	return u.inodeFlags(n, true, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags) })
}

// FSXAttr is struct fsxattr of linux/fs.h. Linux asks for it before it sets flags, too.
type FSXAttr struct {
	XFlags, ExtSize, NExtents, ProjID, CowExtSize uint32

	_ [8]byte
}

// FSXAttr returns the inode flags in the form of XFS (FS_IOC_FSGETXATTR).
func (u *Union) FSXAttr(n *Node, x *FSXAttr) error {
	return u.inodeFlags(n, false, func(fd int) error { return ioctlFSXAttr(fd, FSGetXAttr, x) })
}

// SetFSXAttr sets the inode flags in the form of XFS (FS_IOC_FSSETXATTR); see SetFlags.
func (u *Union) SetFSXAttr(n *Node, x *FSXAttr) error {
	if x.XFlags&fsXFlagAppend != 0 {
		return unix.EOPNOTSUPP
	}
	return u.inodeFlags(n, true, func(fd int) error { return ioctlFSXAttr(fd, FSSetXAttr, x) })
}

const ( // of linux/fs.h
	FSGetXAttr = 0x801c581f // FS_IOC_FSGETXATTR
	FSSetXAttr = 0x401c5820 // FS_IOC_FSSETXATTR

	fsAppendFlag  = 0x20 // FS_APPEND_FL
	fsXFlagAppend = 0x10 // FS_XFLAG_APPEND
)

func ioctlFSXAttr(fd int, request uint, x *FSXAttr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(x))); errno != 0 {
		return errno
	}
	return nil
}

// inodeFlags runs fn on a descriptor of the object, after a copy up if it changes something. Then what
// is open for writing is closed: a file that is immutable now must not be written to through it.
func (u *Union) inodeFlags(n *Node, set bool, fn func(fd int) error) error {
	if set {
		u.gate.RLock()
		defer u.gate.RUnlock()
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	if set {
		if err := u.copyUp(n, wholeFile); err != nil {
			return err
		}
	}
	h, err := u.openAny(n)
	if err != nil {
		return err
	}
	err = fn(h.fd)
	u.fds.release(h)
	if set && err == nil && !n.IsDir() && !n.nameless() {
		n.mu.Lock()
		u.fds.drop(n, upper)
		u.fds.drop(n, direct)
		n.mu.Unlock()
	}
	return err
}

func (u *Union) openAny(n *Node) (*handle, error) {
	switch n.typ {
	case unix.S_IFREG:
		return u.file(n, false)
	case unix.S_IFDIR:
		return u.dir(n, n.top())
	}
	return nil, unix.ENOTTY
}
