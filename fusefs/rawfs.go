package fusefs

import (
	"log/slog"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
)

// rawFS answers requests. It keeps nothing per open file: OPEN and OPENDIR are
// refused with ENOSYS, after which the kernel opens without asking.
type rawFS struct {
	fuse.RawFileSystem // ENOSYS for all that is not here
	u                  *overlay.Union
	log                *slog.Logger
	c                  counters
	handshake          atomic.Bool // the file that teaches the kernel no-open can be found
}

var _ fuse.RawFileSystem = (*rawFS)(nil)

func (f *rawFS) String() string               { return "btrovl" }
func (f *rawFS) Init(*fuse.Server)            {}
func (f *rawFS) SetDebug(bool)                {}
func (f *rawFS) OnUnmount()                   {}
func (f *rawFS) node(id uint64) *overlay.Node { return f.u.Node(id) }

// Nothing changes but through this server, so the kernel may keep what it knows.
const forever = 10 * 365 * 86400 // seconds

const (
	handshakeName = ".btrovl.handshake"
	handshakeID   = 1 << 62
)

func fillAttr(a *overlay.Attr, out *fuse.Attr) {
	out.Ino = a.Ino
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Atime, out.Atimensec = uint64(a.Atime.Sec), a.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(a.Mtime.Sec), a.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(a.Ctime.Sec), a.Ctime.Nsec
	out.Mode = uint32(a.Mode)
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.Uid, a.Gid
	// new_encode_dev: 12 bits of major number between 8 and 12 bits of minor
	out.Rdev = a.Rdev_minor&0xff | a.Rdev_major<<8 | a.Rdev_minor&^0xff<<12
	out.Blksize = a.Blksize
	out.Flags = 0
}

func fillEntry(n *overlay.Node, a *overlay.Attr, out *fuse.EntryOut) {
	out.NodeId = n.ID()
	out.Generation = 0 // an id is never used again
	out.EntryValid, out.AttrValid = forever, forever
	out.EntryValidNsec, out.AttrValidNsec = 0, 0
	fillAttr(a, &out.Attr)
}

func fillAttrOut(a *overlay.Attr, out *fuse.AttrOut) {
	out.AttrValid, out.AttrValidNsec = forever, 0
	fillAttr(a, &out.Attr)
}

func (f *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) (st fuse.Status) {
	r := f.c.begin(opLookup, h)
	defer f.c.end(r, &st)
	dir := f.node(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	switch name {
	case ".", "..":
		return f.lookupDot(dir, name, out)
	case handshakeName:
		if h.NodeId == 1 && f.handshake.Load() {
			*out = fuse.EntryOut{NodeId: handshakeID}
			out.Mode, out.Nlink, out.Ino = unix.S_IFREG|0o400, 1, handshakeID
			return fuse.OK
		}
	}
	var a overlay.Attr
	n, err := f.u.Lookup(dir, name, &a)
	switch {
	case err == nil:
		fillEntry(n, &a, out)
	case err == unix.ENOENT:
		*out = fuse.EntryOut{EntryValid: forever} // a negative entry
	default:
		return f.status(err)
	}
	return fuse.OK
}

// lookupDot serves open_by_handle_at.
func (f *rawFS) lookupDot(n *overlay.Node, name string, out *fuse.EntryOut) fuse.Status {
	if f.u.Nameless(n) {
		return fuse.Status(unix.ESTALE) // deleted; who has it open needs no handle
	}
	if name == ".." {
		if n = f.u.Parent(n); n == nil {
			return fuse.Status(unix.ESTALE)
		}
	}
	var a overlay.Attr
	if err := f.u.Getattr(n, &a); err != nil {
		return f.status(err)
	}
	f.u.Remember(n)
	fillEntry(n, &a, out)
	return fuse.OK
}

func (f *rawFS) Forget(id, count uint64) {
	f.c.count(opForget)
	if n := f.node(id); n != nil {
		f.u.Forget(n, count)
	}
}

func (f *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) (st fuse.Status) {
	r := f.c.begin(opGetattr, &in.InHeader)
	defer f.c.end(r, &st)
	if in.NodeId == handshakeID {
		out.Mode, out.Nlink, out.Ino = unix.S_IFREG|0o400, 1, handshakeID
		return fuse.OK
	}
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	if err := f.u.Getattr(n, &a); err != nil {
		return f.status(err)
	}
	fillAttrOut(&a, out)
	return fuse.OK
}

func (f *rawFS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) (st fuse.Status) {
	r := f.c.begin(opStatx, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	if err := f.u.Birth(n, &a); err != nil {
		return f.status(err)
	}
	out.FromStatx(&a)
	out.Mask &= unix.STATX_BASIC_STATS | unix.STATX_BTIME
	out.AttrValid = forever
	return fuse.OK
}

func (f *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) (st fuse.Status) {
	r := f.c.begin(opSetattr, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	s := overlay.SetAttr{Mode: in.Mode, UID: in.Uid, GID: in.Gid, Size: int64(in.Size),
		Atime: unix.StatxTimestamp{Sec: int64(in.Atime), Nsec: in.Atimensec},
		Mtime: unix.StatxTimestamp{Sec: int64(in.Mtime), Nsec: in.Mtimensec}}
	for _, m := range [...]struct{ wire, ours uint32 }{
		{fuse.FATTR_MODE, overlay.SetMode}, {fuse.FATTR_UID, overlay.SetUID}, {fuse.FATTR_GID, overlay.SetGID},
		{fuse.FATTR_SIZE, overlay.SetSize}, {fuse.FATTR_ATIME, overlay.SetAtime}, {fuse.FATTR_MTIME, overlay.SetMtime},
		{fuse.FATTR_ATIME_NOW, overlay.SetAtimeNow}, {fuse.FATTR_MTIME_NOW, overlay.SetMtimeNow},
		{fuse.FATTR_KILL_SUIDGID, overlay.KillPriv},
	} {
		if in.Valid&m.wire != 0 {
			s.Valid |= m.ours
		}
	}
	if in.Valid&fuse.FATTR_FH == 0 {
		s.Valid |= overlay.ByPath
	}
	// Before a change of content by somebody without privileges the kernel sends a SETATTR
	// of nothing, and keeps the mode that it answers. With a new owner it asks to take set-id bits, whoever gives it.
	if s.Valid&overlay.KillPriv != 0 && s.Valid&overlay.SetMode == 0 || s.Valid&^overlay.ByPath == 0 {
		if err := f.dropSetgid(n, &in.InHeader); err != nil {
			return f.status(err)
		}
	}
	var a overlay.Attr
	if err := f.u.Setattr(n, &s, &a); err != nil {
		return f.status(err)
	}
	fillAttrOut(&a, out)
	return fuse.OK
}

func (f *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) (out []byte, st fuse.Status) {
	r := f.c.begin(opReadlink, h)
	defer f.c.end(r, &st)
	n := f.node(h.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	target, err := f.u.Readlink(n)
	return []byte(target), f.status(err)
}

// Access is never asked: the kernel checks permissions (default_permissions).
func (f *rawFS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	f.c.count(opAccess)
	return fuse.ENOSYS
}

func (f *rawFS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) (st fuse.Status) {
	r := f.c.begin(opStatfs, h)
	defer f.c.end(r, &st)
	n := f.node(h.NodeId)
	if n == nil {
		n = f.u.Root()
	}
	var s unix.Statfs_t
	if err := f.u.Statfs(n, &s); err != nil {
		return f.status(err)
	}
	*out = fuse.StatfsOut{Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		Bsize: uint32(s.Bsize), Frsize: uint32(s.Frsize), NameLen: uint32(s.Namelen)}
	return fuse.OK
}
