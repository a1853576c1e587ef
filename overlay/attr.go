package overlay

import (
	"golang.org/x/sys/unix"
)

// Getattr gives an object's attributes.
func (u *Union) Getattr(n *Node, a *Attr) error {
	u.tree.RLock()
	defer u.tree.RUnlock()
	return u.getattr(n, a)
}

func (u *Union) getattr(n *Node, a *Attr) error {
	if err := u.with(n, func(o at) error { return o.stat(a) }); err != nil {
		return err
	}
	a.Ino = n.ino
	if n.is(detached) {
		a.Nlink = 0
	}
	return nil
}

// Birth returns when an object was born: with a copy that is when the original was.
func (u *Union) Birth(n *Node, a *Attr) error {
	u.tree.RLock()
	defer u.tree.RUnlock()
	if err := u.getattr(n, a); err != nil {
		return err
	}
	if n.is(hasUpper|anonymous) && fromBase(n.ino) && n != u.root {
		return u.with(n, func(o at) error {
			if g, ok := readOrigin(o); ok {
				a.Btime = g.btime
			}
			return nil
		})
	}
	return nil
}

// Which fields of a SetAttr count.
const (
	SetMode = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
	KillPriv // an unprivileged caller truncates: clear set-id bits
	ByPath   // truncate, not ftruncate: changes no time if it changes no size
)

// SetAttr is a change of attributes.
type SetAttr struct {
	Valid        uint32
	Mode         uint32
	UID, GID     uint32
	Size         int64
	Atime, Mtime unix.StatxTimestamp
}

// Setattr changes attributes and gives the new ones.
func (u *Union) Setattr(n *Node, s *SetAttr, a *Attr) error {
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	if s.Valid&SetSize != 0 && n.typ != unix.S_IFREG {
		u.tree.RUnlock()
		return unix.EINVAL
	}
	keep := int64(wholeFile)
	if s.Valid&SetSize != 0 {
		keep = s.Size
		// FUSE does not tell truncate to 0 from open with O_TRUNC, which changes times.
		if s.Valid&ByPath != 0 && s.Size != 0 {
			if err := u.getattr(n, a); err != nil {
				u.tree.RUnlock()
				return err
			}
			if int64(a.Size) == s.Size { // as the kernel has it, this changes no times
				t := *s
				t.Valid &^= SetSize
				s, keep = &t, wholeFile
			}
		}
	}
	if err := u.copyUp(n, keep); err != nil {
		u.tree.RUnlock()
		return err
	}
	if n.typ != unix.S_IFREG {
		defer u.tree.RUnlock()
		return u.with(n, func(o at) error { return u.applyAttr(n, o, s, a) })
	}
	h, err := u.file(n, true)
	u.tree.RUnlock() // a truncation may take long
	if err != nil {
		return err
	}
	defer u.fds.release(h)
	return u.applyAttr(n, at{h.fd, ""}, s, a)
}

func (u *Union) applyAttr(n *Node, o at, s *SetAttr, a *Attr) error {
	// Nothing to set is chown(-1, -1), which is not nothing: set-id bits go. Or it is
	// what the kernel sends after it has taken a file's capabilities away before a
	// write, where whoever must not keep set-id bits is marked in the write.
	nothing := s.Valid&^ByPath == 0 && !n.IsDir() && !n.is(capsTaken)
	n.set(0, capsTaken)
	if s.Valid&(SetUID|SetGID) != 0 || nothing {
		uid, gid := -1, -1
		if s.Valid&SetUID != 0 {
			uid = int(s.UID)
		}
		if s.Valid&SetGID != 0 {
			gid = int(s.GID)
		}
		// The kernel takes set-id bits away here, as for the caller's own chown.
		if err := o.chown(uid, gid); err != nil {
			return err
		}
	}
	if s.Valid&(SetSize|KillPriv) == KillPriv && n.is(setID) {
		if err := u.dropSetID(n, o); err != nil {
			return err
		}
	}
	if s.Valid&SetSize != 0 {
		if s.Valid&KillPriv != 0 && n.is(setID) {
			if err := u.dropSetID(n, o); err != nil {
				return err
			}
		}
		if err := unix.Ftruncate(o.fd, s.Size); err != nil {
			return err
		}
	}
	if s.Valid&SetMode != 0 {
		if err := o.chmod(s.Mode & 0o7777); err != nil {
			return err
		}
		if s.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			n.set(setID, 0)
		}
	}
	if s.Valid&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) != 0 {
		ts := [2]unix.Timespec{pickTime(s.Valid, SetAtime, SetAtimeNow, s.Atime), pickTime(s.Valid, SetMtime, SetMtimeNow, s.Mtime)}
		if err := o.utimes(&ts); err != nil {
			return err
		}
	}
	if err := o.stat(a); err != nil {
		return err
	}
	a.Ino = n.ino
	return nil
}

func pickTime(valid, set, now uint32, t unix.StatxTimestamp) unix.Timespec {
	switch {
	case valid&now != 0:
		return utime(unix.UTIME_NOW)
	case valid&set != 0:
		return timespec(t)
	}
	return utime(unix.UTIME_OMIT)
}

// dropSetID does what the kernel does when somebody without CAP_FSETID changes a
// file's content: setuid goes, setgid goes where the group may execute (without
// that bit it once meant mandatory locks, and stays).
func (u *Union) dropSetID(n *Node, o at) error {
	var st Attr
	if err := o.stat(&st); err != nil {
		return err
	}
	mode := uint32(st.Mode) & 0o7777
	drop := mode & unix.S_ISUID
	if mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID|unix.S_IXGRP {
		drop |= unix.S_ISGID
	}
	if drop != 0 {
		if err := o.chmod(mode &^ drop); err != nil {
			return err
		}
	}
	if (mode&^drop)&(unix.S_ISUID|unix.S_ISGID) == 0 {
		n.set(0, setID)
	}
	return nil
}

// Readlink returns a symlink's target.
func (u *Union) Readlink(n *Node) (target string, err error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	err = u.with(n, func(o at) error {
		target, err = o.readlink()
		return err
	})
	return target, err
}

// Statfs gives the figures of the file system that holds the node's overlay.
func (u *Union) Statfs(n *Node, st *unix.Statfs_t) error {
	u.tree.RLock()
	defer u.tree.RUnlock()
	l := u.cur.layer(n.claim)
	if l == nil {
		l = u.cur.base
	}
	return unix.Fstatfs(l.root, st)
}
