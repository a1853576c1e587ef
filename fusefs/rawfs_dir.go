package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
)

func (f *rawFS) spec(h *fuse.InHeader, mode, umask uint32) *overlay.Spec {
	return &overlay.Spec{Mode: mode, Umask: umask, UID: h.Uid, GID: h.Gid}
}

// entry answers a request that made something.
func (f *rawFS) entry(n *overlay.Node, a *overlay.Attr, err error, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return f.status(err)
	}
	fillEntry(n, a, out)
	return fuse.OK
}

func (f *rawFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) (st fuse.Status) {
	r := f.c.begin(opMknod, &in.InHeader)
	defer f.c.end(r, &st)
	dir := f.node(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	s := f.spec(&in.InHeader, in.Mode, in.Umask)
	s.Rdev = unix.Mkdev(in.Rdev>>8&0xfff, in.Rdev&0xff|in.Rdev>>12&0xfff00)
	var a overlay.Attr
	n, err := f.u.Mknod(dir, name, s, &a)
	return f.entry(n, &a, err, out)
}

func (f *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) (st fuse.Status) {
	r := f.c.begin(opMkdir, &in.InHeader)
	defer f.c.end(r, &st)
	dir := f.node(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	n, err := f.u.Mkdir(dir, name, f.spec(&in.InHeader, in.Mode, in.Umask), &a)
	return f.entry(n, &a, err, out)
}

func (f *rawFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) (st fuse.Status) {
	r := f.c.begin(opSymlink, h)
	defer f.c.end(r, &st)
	dir := f.node(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	n, err := f.u.Symlink(dir, name, target, f.spec(h, 0o777, 0), &a)
	return f.entry(n, &a, err, out)
}

func (f *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) (st fuse.Status) {
	r := f.c.begin(opLink, &in.InHeader)
	defer f.c.end(r, &st)
	dir, n := f.node(in.NodeId), f.node(in.Oldnodeid)
	if dir == nil || n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	err := f.u.Link(n, dir, name, &a)
	return f.entry(n, &a, err, out)
}

func (f *rawFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) (st fuse.Status) {
	r := f.c.begin(opCreate, &in.InHeader)
	defer f.c.end(r, &st)
	dir := f.node(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	n, err := f.u.Create(dir, name, f.spec(&in.InHeader, in.Mode, in.Umask), in.Flags&unix.O_EXCL != 0, &a)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return f.entry(n, &a, err, &out.EntryOut)
}

func (f *rawFS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) (st fuse.Status) {
	r := f.c.begin(opTmpfile, &in.InHeader)
	defer f.c.end(r, &st)
	dir := f.node(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	var a overlay.Attr
	n, err := f.u.Tmpfile(dir, f.spec(&in.InHeader, in.Mode, in.Umask), &a)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return f.entry(n, &a, err, &out.EntryOut)
}

func (f *rawFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) (st fuse.Status) {
	r := f.c.begin(opUnlink, h)
	defer f.c.end(r, &st)
	dir := f.node(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	err := f.u.Unlink(dir, name)
	f.release(err, dir, name)
	return f.status(err)
}

func (f *rawFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) (st fuse.Status) {
	r := f.c.begin(opRmdir, h)
	defer f.c.end(r, &st)
	dir := f.node(h.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	err := f.u.Rmdir(dir, name)
	f.release(err, dir, name)
	return f.status(err)
}

func (f *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) (st fuse.Status) {
	r := f.c.begin(opRename, &in.InHeader)
	defer f.c.end(r, &st)
	from, to := f.node(in.NodeId), f.node(in.Newdir)
	if from == nil || to == nil {
		return fuse.Status(unix.ESTALE)
	}
	err := f.u.Rename(from, oldName, to, newName, in.Flags)
	f.release(err, from, oldName)
	f.release(err, to, newName)
	return f.status(err)
}

// release ends that a mount holds a name (overlay.HeldName): the kernel has dropped the name, mount and all, because
// somebody changed it in whose mount namespace nothing is mounted there.
func (f *rawFS) release(err error, dir *overlay.Node, name string) {
	if err == nil || err == unix.ENOENT {
		f.u.ReleaseName(dir, name)
	}
}

// OpenDir is refused once, for good: the kernel then opens directories without
// asking and keeps their lists.
func (f *rawFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.c.count(opOpen)
	return fuse.ENOSYS
}

func (f *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) (st fuse.Status) {
	r := f.c.begin(opReaddir, &in.InHeader)
	defer f.c.end(r, &st)
	dir := f.node(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.status(f.u.ReadDir(dir, in.Offset, func(e *overlay.Entry) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Type << 12, Off: e.Cookie})
	}))
}

// ReadDirPlus is what the kernel asks for always (see fuseOptions); which entries come
// with their nodes is decided by overlay.ReadDirPlus.
func (f *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) (st fuse.Status) {
	r := f.c.begin(opReaddirplus, &in.InHeader)
	defer f.c.end(r, &st)
	dir := f.node(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	var place *fuse.EntryOut
	return f.status(f.u.ReadDirPlus(dir, in.Offset, func(e *overlay.Entry) bool {
		place = out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Type << 12, Off: e.Cookie})
		return place != nil
	}, func(n *overlay.Node, a *overlay.Attr) { fillEntry(n, a, place) }))
}

// FsyncDir makes names durable.
func (f *rawFS) FsyncDir(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return f.Fsync(c, in) }
