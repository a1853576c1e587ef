package fusefs

import (
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// op is a kind of request.
type op uint8

const (
	opLookup op = iota
	opGetattr
	opStatx
	opSetattr
	opReadlink
	opMknod
	opMkdir
	opSymlink
	opLink
	opCreate
	opTmpfile
	opUnlink
	opRmdir
	opRename
	opOpen
	opRead
	opWrite
	opFlush
	opRelease
	opFsync
	opLseek
	opFallocate
	opCopyRange
	opIoctl
	opReaddir
	opReaddirplus
	opGetxattr
	opSetxattr
	opListxattr
	opRemovexattr
	opStatfs
	opAccess
	opForget
	opCount
)

var opNames = [opCount]string{"lookup", "getattr", "statx", "setattr", "readlink", "mknod", "mkdir", "symlink", "link", "create",
	"tmpfile", "unlink", "rmdir", "rename", "open", "read", "write", "flush", "release", "fsync", "lseek", "fallocate",
	"copy_file_range", "ioctl", "readdir", "readdirplus", "getxattr", "setxattr", "listxattr", "removexattr", "statfs", "access", "forget"}

type counter struct {
	count, errors, total, max atomic.Uint64
}

// counters count requests and know those that are being served.
type counters struct {
	start time.Time
	ops   [opCount]counter
	next  atomic.Uint32
	slots [128]slot // requests being served, as far as there is room
}

type slot struct {
	since atomic.Int64 // nanoseconds after start, 0 if free
	node  atomic.Uint64
	what  atomic.Uint64 // op<<32 | pid
}

// running is a request being served.
type running struct {
	op   op
	slot int16
	t    int64
}

func (c *counters) begin(o op, h *fuse.InHeader) running {
	r := running{op: o, slot: -1, t: int64(time.Since(c.start)) + 1}
	for range 2 {
		i := c.next.Add(1) % uint32(len(c.slots))
		s := &c.slots[i]
		if s.since.Load() == 0 && s.since.CompareAndSwap(0, r.t) {
			s.node.Store(h.NodeId)
			s.what.Store(uint64(o)<<32 | uint64(h.Pid))
			r.slot = int16(i)
			break
		}
	}
	return r
}

func (c *counters) end(r running, st *fuse.Status) {
	d := uint64(int64(time.Since(c.start)) + 1 - r.t)
	k := &c.ops[r.op]
	k.count.Add(1)
	k.total.Add(d)
	for m := k.max.Load(); d > m && !k.max.CompareAndSwap(m, d); m = k.max.Load() {
	}
	if *st != fuse.OK {
		k.errors.Add(1)
	}
	if r.slot >= 0 {
		c.slots[r.slot].since.Store(0)
	}
}

// count counts what is answered without looking at it.
func (c *counters) count(o op) { c.ops[o].count.Add(1) }

func (c *counters) stats() (ops []OpStats, stuck []Stuck) {
	for i := range c.ops {
		k := &c.ops[i]
		if n := k.count.Load(); n > 0 {
			ops = append(ops, OpStats{Op: opNames[i], Count: n, Errors: k.errors.Load(),
				Total: time.Duration(k.total.Load()), Max: time.Duration(k.max.Load())})
		}
	}
	now := int64(time.Since(c.start))
	for i := range c.slots {
		s := &c.slots[i]
		t := s.since.Load()
		if t == 0 || now-t < int64(time.Second) {
			continue
		}
		what := s.what.Load()
		stuck = append(stuck, Stuck{Op: opNames[min(what>>32, uint64(opCount)-1)], Node: s.node.Load(),
			PID: uint32(what), For: time.Duration(now - t)})
	}
	return ops, stuck
}
