package fusefs

import (
	"bytes"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The requests that most work consists of are answered where they lie: the request's
// struct, a view into the buffer, goes to rawFS, and the answer's is filled in the other
// buffer. go-fuse's ProtocolServer, which answers all others, copies both, and allocates
// a request of a kilobyte and a channel for each: a third of this process's time.

// answerHot answers a request in place and returns the size of the answer, 0 if none
// is to be sent; ok is false if the request is for ProtocolServer.
func (c *connection) answerHot(request, reply []byte) (size int, ok bool) {
	h := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	if c.debug || h.TotalExtlen != 0 {
		return 0, false
	}
	f := c.fs
	var st fuse.Status
	// A fault must not take the view down: it is one request's error.
	defer func() {
		if what := recover(); what != nil {
			c.log.Error("a request failed by a fault in btrovl", "fault", what)
			size, ok = finish(h, reply, fuse.EIO, 0), true
		}
	}()
	switch h.Opcode {
	case opcodeLookup:
		if name, _, fits := cutName(request[unsafe.Sizeof(*h):]); fits {
			out, n := answer[fuse.EntryOut](reply)
			st = f.Lookup(nil, h, name, out)
			return finish(h, reply, st, n), true
		}
	case opcodeGetattr:
		if in, _ := arguments[fuse.GetAttrIn](request); in != nil {
			out, n := answer[fuse.AttrOut](reply)
			st = f.GetAttr(nil, in, out)
			return finish(h, reply, st, n), true
		}
	case opcodeSetattr:
		if in, _ := arguments[fuse.SetAttrIn](request); in != nil {
			out, n := answer[fuse.AttrOut](reply)
			st = f.SetAttr(nil, in, out)
			return finish(h, reply, st, n), true
		}
	case opcodeCreate:
		in, rest := arguments[fuse.CreateIn](request)
		if name, _, fits := cutName(rest); in != nil && fits {
			out, n := answer[fuse.CreateOut](reply)
			st = f.Create(nil, in, name, out)
			return finish(h, reply, st, n), true
		}
	case opcodeMkdir:
		in, rest := arguments[fuse.MkdirIn](request)
		if name, _, fits := cutName(rest); in != nil && fits {
			out, n := answer[fuse.EntryOut](reply)
			st = f.Mkdir(nil, in, name, out)
			return finish(h, reply, st, n), true
		}
	case opcodeUnlink:
		if name, _, fits := cutName(request[unsafe.Sizeof(*h):]); fits {
			st = f.Unlink(nil, h, name)
			return finish(h, reply, st, 0), true
		}
	case opcodeRmdir:
		if name, _, fits := cutName(request[unsafe.Sizeof(*h):]); fits {
			st = f.Rmdir(nil, h, name)
			return finish(h, reply, st, 0), true
		}
	case opcodeRename: // rename(2): renameat2 without flags, and without room for them
		in, rest := arguments[renameIn](request)
		if oldName, rest, fits := cutName(rest); in != nil && fits {
			if newName, _, fits := cutName(rest); fits {
				st = f.Rename(nil, &fuse.RenameIn{InHeader: *h, Newdir: in.newdir}, oldName, newName)
				return finish(h, reply, st, 0), true
			}
		}
	case opcodeRename2:
		in, rest := arguments[fuse.RenameIn](request)
		if oldName, rest, fits := cutName(rest); in != nil && fits {
			if newName, _, fits := cutName(rest); fits {
				st = f.Rename(nil, in, oldName, newName)
				return finish(h, reply, st, 0), true
			}
		}
	case opcodeRead:
		if in, _ := arguments[fuse.ReadIn](request); in != nil && int64(in.Size) <= int64(len(reply)-replyHeader) {
			n := 0
			res, st := f.Read(nil, in, reply[replyHeader:replyHeader+int(in.Size)])
			if st == fuse.OK {
				n = res.Size()
			}
			return finish(h, reply, st, n), true
		}
	case opcodeWrite:
		if in, data := arguments[fuse.WriteIn](request); in != nil && int64(in.Size) <= int64(len(data)) {
			out, n := answer[fuse.WriteOut](reply)
			out.Size, st = f.Write(nil, in, data[:in.Size])
			return finish(h, reply, st, n), true
		}
	case opcodeGetxattr:
		in, rest := arguments[fuse.GetXAttrIn](request)
		name, _, fits := cutName(rest)
		if in == nil || !fits || int64(in.Size) > int64(len(reply)-replyHeader) {
			break
		}
		got, st := f.GetXAttr(nil, h, name, reply[replyHeader:replyHeader+int(in.Size)])
		if in.Size > 0 {
			return finish(h, reply, st, int(got)), true
		}
		out, n := answer[fuse.GetXAttrOut](reply)
		out.Size = got
		return finish(h, reply, st, n), true
	case opcodeIoctl: // many programs ask of each file whether it is a terminal, systemd with each line that it reads
		in, data := arguments[fuse.IoctlIn](request)
		out, n := answer[fuse.IoctlOut](reply)
		if in == nil || int64(in.InSize) > int64(len(data)) || int64(in.OutSize) > int64(len(reply)-replyHeader-n) {
			break
		}
		got := reply[replyHeader+n : replyHeader+n+int(in.OutSize)]
		clear(got) // of what an earlier answer left there
		st = f.Ioctl(nil, in, data[:in.InSize], out, got)
		return finish(h, reply, st, n+len(got)), true
	case opcodeForget:
		if in, _ := arguments[fuse.ForgetIn](request); in != nil {
			f.Forget(h.NodeId, in.Nlookup)
			return 0, true
		}
	case opcodeInterrupt:
		// No request stops half-way. Told so, the kernel sends no more of these;
		// any other answer about a request that is still served would bring it again.
		return finish(h, reply, fuse.ENOSYS, 0), true
	}
	return 0, false
}

const ( // of linux/fuse.h
	opcodeLookup   = 1
	opcodeGetattr  = 3
	opcodeSetattr  = 4
	opcodeMkdir    = 9
	opcodeUnlink   = 10
	opcodeRmdir    = 11
	opcodeRename   = 12
	opcodeRead     = 15
	opcodeWrite    = 16
	opcodeGetxattr = 22
	opcodeCreate   = 35
	opcodeIoctl    = 39
	opcodeRename2  = 45
)

// renameIn is struct fuse_rename_in.
type renameIn struct {
	fuse.InHeader
	newdir uint64
}

// arguments returns a request's struct, header and all, and what follows it; nil if
// the request is shorter. The request lies at a multiple of 8.
func arguments[T any](request []byte) (*T, []byte) {
	var in T
	if len(request) < int(unsafe.Sizeof(in)) {
		return nil, nil
	}
	return (*T)(unsafe.Pointer(&request[0])), request[unsafe.Sizeof(in):]
}

// answer returns the zeroed struct of an answer, behind the header, and its size.
func answer[T any](reply []byte) (*T, int) {
	var zero T
	out := (*T)(unsafe.Pointer(&reply[replyHeader]))
	*out = zero
	return out, int(unsafe.Sizeof(zero))
}

// cutName returns the name that b begins with, and what follows its NUL.
func cutName(b []byte) (name string, rest []byte, ok bool) {
	n, rest, ok := bytes.Cut(b, []byte{0})
	return string(n), rest, ok
}

// finish writes the header of an answer with n bytes behind it, which an error has not.
func finish(h *fuse.InHeader, reply []byte, st fuse.Status, n int) int {
	if st != fuse.OK {
		n = 0
	}
	out := (*fuse.OutHeader)(unsafe.Pointer(&reply[0]))
	*out = fuse.OutHeader{Length: uint32(replyHeader + n), Status: -int32(st), Unique: h.Unique}
	return replyHeader + n
}
