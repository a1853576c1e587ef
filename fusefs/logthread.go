package fusefs

import (
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// logThread is the one thread that answers FSYNC, and RENAME and LINK of what was fsynced, while it has time: whoever
// else asks for them meanwhile is answered by his reader.
//
// They write to btrfs's log tree. When two threads did so since it was last written, btrfs
// expects more and waits for a tick of the kernel's clock, 4 ms at 250 Hz, to write all at once
// (BTRFS_ROOT_MULTI_LOG_TASKS in fs/btrfs/tree-log.c) – unless it is mounted with "ssd". A program that fsyncs
// and renames file after file is one thread and never waits; served by readers that take turns it waited up to
// every other time (docs/performance.md).
type logThread struct {
	c    *connection
	fd   int         // an eventfd, which wakes it
	busy atomic.Bool // whoever sets it gives it a request
	next atomic.Pointer[buffer]
	stop atomic.Bool
	done sync.WaitGroup
}

// startLogThread returns nil if there can be none.
func startLogThread(c *connection) *logThread {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil
	}
	l := &logThread{c: c, fd: fd}
	l.done.Go(l.serve)
	return l
}

// serve answers what it is given. Its goroutine has a thread of its own, which waits in read(2) and not in Go's
// scheduler, so that a reader wakes it without detours.
func (l *logThread) serve() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	count := make([]byte, 8)
	for !l.stop.Load() {
		unix.Read(l.fd, count)
		if b := l.next.Swap(nil); b != nil {
			size, err := l.c.handle(b, b.size)
			l.busy.Store(false) // who gets the answer may ask again before the write returns
			if err == nil {
				err = l.c.send(b, size)
			}
			l.c.refused(err)
			l.c.buffers.Put(b)
		}
	}
}

func (l *logThread) wake() {
	one := make([]byte, 8)
	binary.NativeEndian.PutUint64(one, 1)
	unix.Write(l.fd, one)
}

// close waits for what is being answered. Nobody may give it anything any more.
func (l *logThread) close() {
	if l == nil {
		return
	}
	l.stop.Store(true)
	l.wake()
	l.done.Wait()
	unix.Close(l.fd)
}

// take gives a request to the thread, buffer and all, if it is one of its kind and the thread has time.
func (l *logThread) take(b *buffer, n int) bool {
	if l == nil || !l.c.logs(b.request[:n]) || !l.busy.CompareAndSwap(false, true) {
		return false
	}
	b.size = n
	l.next.Store(b)
	l.wake()
	return true
}

// logs says whether a request writes to the log tree.
func (c *connection) logs(request []byte) bool {
	h := (*fuse.InHeader)(unsafe.Pointer(&request[0]))
	var rest []byte
	switch h.Opcode {
	case opcodeFsync, opcodeFsyncdir:
		return true
	case opcodeLink:
		in, _ := arguments[fuse.LinkIn](request)
		return in != nil && c.fs.u.Fsynced(c.fs.node(in.Oldnodeid), "")
	case opcodeRename:
		_, rest = arguments[renameIn](request)
	case opcodeRename2:
		_, rest = arguments[fuse.RenameIn](request)
	default:
		return false
	}
	name, _, fits := cutName(rest)
	return fits && c.fs.u.Fsynced(c.fs.node(h.NodeId), name)
}

const ( // of linux/fuse.h
	opcodeFsync    = 20
	opcodeFsyncdir = 30
)

// groupsFsyncs says whether the layers lie on a btrfs that makes the fsyncs of several threads wait for one another.
func (f *rawFS) groupsFsyncs() bool {
	id, err := f.u.MountID()
	if err != nil {
		return false
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		if m, ok := parseMount(line); ok && m.id == strconv.FormatUint(id, 10) {
			options := strings.Split(m.super, ",")
			return m.fstype == "btrfs" && !slices.Contains(options, "ssd") && !slices.Contains(options, "ssd_spread")
		}
	}
	return false
}
