package fusefs

import (
	"encoding/binary"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
)

// Open is refused once, for good (no-open): reads and writes then come by node,
// and copying up waits for the first change.
func (f *rawFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.c.count(opOpen)
	return fuse.ENOSYS
}

// Flush is refused once, for good: data were written when write returned.
func (f *rawFS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	f.c.count(opFlush)
	return fuse.ENOSYS
}

func (f *rawFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.c.count(opRelease) }

func (f *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (res fuse.ReadResult, st fuse.Status) {
	r := f.c.begin(opRead, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	got, err := f.u.Read(n, buf, int64(in.Offset))
	if err != nil {
		return nil, f.status(err)
	}
	return inPlace(buf[:got]), fuse.OK
}

func (f *rawFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, st fuse.Status) {
	r := f.c.begin(opWrite, &in.InHeader)
	defer f.c.end(r, &st)
	return f.write(in, data, int64(in.Offset))
}

func (f *rawFS) write(in *fuse.WriteIn, data []byte, off int64) (uint32, fuse.Status) {
	n := f.node(in.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	how := uint32(0)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		how |= overlay.WriteKill
		if err := f.dropSetgid(n, &in.InHeader); err != nil {
			return 0, f.status(err)
		}
	}
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		how |= overlay.WriteMapped
	}
	put, err := f.u.Write(n, data, off, how)
	return uint32(put), f.status(err)
}

// Writev is Write for data in pieces.
func (f *rawFS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (written uint32, st fuse.Status) {
	r := f.c.begin(opWrite, &in.InHeader)
	defer f.c.end(r, &st)
	for _, d := range data {
		put, code := f.write(in, d, int64(in.Offset)+int64(written))
		written += put
		if code != fuse.OK {
			if written > 0 {
				return written, fuse.OK
			}
			return 0, code
		}
		if int(put) < len(d) {
			break
		}
	}
	return written, fuse.OK
}

func (f *rawFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) (st fuse.Status) {
	r := f.c.begin(opFsync, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.status(f.u.Sync(n, in.FsyncFlags&1 != 0))
}

func (f *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) (st fuse.Status) {
	r := f.c.begin(opLseek, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	off, err := f.u.Seek(n, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return f.status(err)
}

func (f *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) (st fuse.Status) {
	r := f.c.begin(opFallocate, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	kill, err := f.killed(n, &in.InHeader)
	if err != nil {
		return f.status(err)
	}
	return f.status(f.u.Allocate(n, in.Mode, int64(in.Offset), int64(in.Length), kill))
}

func (f *rawFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (written uint32, st fuse.Status) {
	r := f.c.begin(opCopyRange, &in.InHeader)
	defer f.c.end(r, &st)
	src, dst := f.node(in.NodeId), f.node(in.NodeIdOut)
	if src == nil || dst == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	kill, err := f.killed(dst, &in.InHeader)
	if err != nil {
		return 0, f.status(err)
	}
	n, err := f.u.CopyRange(src, int64(in.OffIn), dst, int64(in.OffOut), int(min(in.Len, 1<<30)), kill)
	return uint32(n), f.status(err)
}

// Ioctl serves chattr and lsattr, and what else asks for the flags of inodes. Linux makes of FS_IOC_SETFLAGS a
// FS_IOC_FSGETXATTR, for the flags that were, and then the former.
func (f *rawFS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, data []byte, out *fuse.IoctlOut, reply []byte) (st fuse.Status) {
	r := f.c.begin(opIoctl, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	var x overlay.FSXAttr
	switch {
	case in.Cmd == uint32(unix.FS_IOC_GETFLAGS) && len(reply) >= 4:
		flags, err := f.u.Flags(n)
		binary.NativeEndian.PutUint32(reply, uint32(flags))
		return f.status(err)
	case in.Cmd == uint32(unix.FS_IOC_SETFLAGS) && len(data) >= 4:
		return f.status(f.u.SetFlags(n, int(binary.NativeEndian.Uint32(data))))
	case in.Cmd == overlay.FSGetXAttr && len(reply) >= int(unsafe.Sizeof(x)):
		err := f.u.FSXAttr(n, &x)
		binary.Encode(reply, binary.NativeEndian, &x)
		return f.status(err)
	case in.Cmd == overlay.FSSetXAttr && len(data) >= int(unsafe.Sizeof(x)):
		binary.Decode(data, binary.NativeEndian, &x)
		return f.status(f.u.SetFSXAttr(n, &x))
	}
	return fuse.Status(unix.ENOTTY)
}

func (f *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (size uint32, st fuse.Status) {
	r := f.c.begin(opGetxattr, h)
	defer f.c.end(r, &st)
	n := f.node(h.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	k, err := f.u.Getxattr(n, attr, dest)
	return uint32(k), f.status(err)
}

func (f *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (size uint32, st fuse.Status) {
	r := f.c.begin(opListxattr, h)
	defer f.c.end(r, &st)
	n := f.node(h.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	names, err := f.u.Listxattr(n)
	if err != nil {
		return 0, f.status(err)
	}
	total := 0
	for _, name := range names {
		if total+len(name)+1 <= len(dest) {
			copy(dest[total:], name)
			dest[total+len(name)] = 0
		}
		total += len(name) + 1
	}
	if total > len(dest) && len(dest) > 0 {
		return uint32(total), fuse.ERANGE
	}
	return uint32(total), fuse.OK
}

func (f *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) (st fuse.Status) {
	r := f.c.begin(opSetxattr, &in.InHeader)
	defer f.c.end(r, &st)
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	kill := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	return f.status(f.u.Setxattr(n, attr, data, int(in.Flags), kill))
}

func (f *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) (st fuse.Status) {
	r := f.c.begin(opRemovexattr, h)
	defer f.c.end(r, &st)
	n := f.node(h.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	return f.status(f.u.Removexattr(n, attr))
}
