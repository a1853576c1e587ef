package fusefs

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// calm is what a connection does while one short request follows the other: a
// program creates, renames or removes many files. Then most of a request's time is
// not work but the waking of threads on other processors (docs/performance.md). So one
// reader serves all, on the program's processor (follower), and nobody is sent to read
// while it works. Instead a watch looks once in watchTick whether somebody is still at
// the same request, and sends another reader then.
//
// Any sign of trouble (the watch had to act, requests that may take long, programs that
// take turns) ends the calm, and connection does what it always does.
//
// To look for the next request for a while instead of sleeping makes it worse: creating
// files took 7.6 times as long as on kernel overlayfs instead of 3.1 (idle machine, two
// processors; with two readers 6.1).
type calm struct {
	level    atomic.Int32  // grows with each short request
	taken    atomic.Uint32 // counts requests
	caller   atomic.Uint32 // who sent the last one
	watching atomic.Bool   // the watch is awake
	busy     chan struct{} // wakes it; room for one
	follower atomic.Pointer[follower]
}

const (
	calmFrom = 64  // level from which it is calm
	calmMost = 128 // the level grows no further
	calmLoss = 8   // what a request takes that may be long
	turnLoss = 2   // what a request takes that is another thread's than the one before

	watchTick = 4 * time.Millisecond
	watchIdle = 20 // ticks without a request after which the watch sleeps
	smallSize = 64 << 10
	smallRead = 16 << 10 // larger ones are read-ahead: several come at once
)

// note lets a request count.
func (c *calm) note(request []byte) {
	c.taken.Add(1)
	if quick(request) {
		return
	}
	level := c.level.Load()
	pid := (*fuse.InHeader)(unsafe.Pointer(&request[0])).Pid
	switch {
	case !short(request):
		c.level.Store(max(level-calmLoss, 0))
	case c.caller.Load() != pid:
		c.caller.Store(pid)
		c.level.Store(max(level-turnLoss, 0))
	case level < calmMost:
		c.level.Store(level + 1) // two readers may count as one
	}
}

func (c *calm) is() bool { return c.level.Load() >= calmFrom }
func (c *calm) end()     { c.level.Store(0) }

// short says whether a request is usually answered at once, or after one wait for the
// disk, and comes alone from its program.
func short(request []byte) bool {
	switch h := (*fuse.InHeader)(unsafe.Pointer(&request[0])); h.Opcode {
	case opcodeLookup, opcodeGetattr, opcodeReadlink, opcodeStatfs, opcodeIoctl, opcodeLseek, opcodeReaddir, opcodeReaddirplus,
		opcodeGetxattr, opcodeSetxattr, opcodeListxattr, opcodeRemovexattr, opcodeCreate, opcodeMknod, opcodeMkdir, opcodeSymlink, opcodeLink, opcodeUnlink, opcodeRmdir, opcodeRename, opcodeRename2:
		return true
	case opcodeSetattr:
		in, _ := arguments[fuse.SetAttrIn](request)
		return in != nil && in.Valid&fuse.FATTR_SIZE == 0
	case opcodeRead:
		in, _ := arguments[fuse.ReadIn](request)
		return in != nil && in.Size <= smallRead
	case opcodeWrite:
		return binary.NativeEndian.Uint32(request) <= smallSize
	}
	return false
}

const ( // of linux/fuse.h
	opcodeReadlink    = 5
	opcodeSymlink     = 6
	opcodeMknod       = 8
	opcodeLink        = 13
	opcodeStatfs      = 17
	opcodeSetxattr    = 21
	opcodeListxattr   = 23
	opcodeRemovexattr = 24
	opcodeReaddir     = 28
	opcodeReaddirplus = 44
	opcodeLseek       = 46
)

// wakeWatch is called by a reader that leaves nobody behind who reads, or follows.
func (c *calm) wakeWatch() {
	if !c.watching.Load() && c.watching.CompareAndSwap(false, true) {
		select {
		case c.busy <- struct{}{}:
		default:
		}
	}
}

// watch sends a reader when the only one does not come back.
func (c *connection) watch() {
	for {
		select {
		case <-c.calm.busy:
		case <-c.ended:
			return
		}
		tick := time.NewTimer(watchTick) // not a Ticker: two looks in a row see no progress
		w := watch{taken: c.calm.taken.Load()}
		for idle := 0; idle < watchIdle; {
			select {
			case <-tick.C:
			case <-c.ended:
				tick.Stop()
				return
			}
			nobody := w.release(&c.calm)
			now := c.calm.taken.Load()
			if idle++; now != w.taken || !nobody {
				idle = 0
			}
			if now == w.taken && c.reading.Load() == 0 {
				c.calm.end()
				c.relieve()
			}
			w.taken = now
			tick.Reset(watchTick)
		}
		tick.Stop()
		// Who leaves nobody behind, or follows, from here on wakes the watch again; who did
		// before may have relied on it.
		c.calm.watching.Store(false)
		if c.calm.follower.Load() != nil {
			c.calm.wakeWatch()
		}
		if c.reading.Load() == 0 {
			c.calm.end()
			c.relieve()
		}
	}
}
