package viewtest

import (
	"bytes"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// iocb is the kernel's struct iocb on a little-endian machine.
type iocb struct {
	data     uint64
	key      uint32
	rwFlags  uint32
	opcode   uint16
	priority int16
	fd       uint32
	buf      uint64
	n        uint64
	off      int64
	reserved uint64
	flags    uint32
	event    uint32
}

const iocbWrite = 1 // IOCB_CMD_PWRITE

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

// What a program writes by O_DIRECT and asynchronously is what another one reads that has
// it in the page cache, also if it read while the write was under way. (Linux drops the
// pages of an asynchronous direct write to FUSE before it, and not again after it;
// generic/451 of xfstests found that. So a view declines FUSE_ASYNC_DIO.)
func TestAsyncDirectWrites(t *testing.T) {
	testenv.FUSE(t)
	for _, target := range []Target{Native(), View()} {
		t.Run(target.Name, func(t *testing.T) {
			writeDirect(t, filepath.Join(mountOnce(t, target, featureBase).Root, "f"))
		})
	}
}

func writeDirect(t *testing.T, path string) {
	const size = 512 << 10
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	testenv.Must(t, err)
	defer unix.Munmap(buf)
	direct, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	testenv.Must(t, err)
	defer unix.Close(direct)
	testenv.Must(t, unix.Ftruncate(direct, size))
	cached, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	testenv.Must(t, err)
	defer unix.Close(cached)
	var ring uint64 // aio_context_t
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ring)), 0); e != 0 {
		t.Fatalf("io_setup: %v", e)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, uintptr(ring), 0, 0)

	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			b := make([]byte, size)
			for !stop.Load() {
				unix.Pread(cached, b, 0)
			}
		})
	}
	defer readers.Wait()
	defer stop.Store(true)
	have, want := make([]byte, size), make([]byte, size)
	for round, end := byte(1), time.Now().Add(time.Second); time.Now().Before(end); round++ {
		for i := range want {
			want[i] = round
		}
		copy(buf, want)
		cb := iocb{opcode: iocbWrite, fd: uint32(direct), buf: uint64(uintptr(unsafe.Pointer(&buf[0]))), n: size}
		list := &cb
		if _, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, uintptr(ring), 1, uintptr(unsafe.Pointer(&list))); e != 0 {
			t.Fatalf("io_submit: %v", e)
		}
		var ev ioEvent
		if _, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, uintptr(ring), 1, 1, uintptr(unsafe.Pointer(&ev)), 0, 0); e != 0 {
			t.Fatalf("io_getevents: %v", e)
		}
		runtime.KeepAlive(&cb)
		if ev.res != size {
			t.Fatalf("the write returned %d", ev.res)
		}
		if n, err := unix.Pread(cached, have, 0); err != nil || n != size {
			t.Fatalf("read: %d bytes, %v", n, err)
		}
		if !bytes.Equal(have, want) {
			i := bytes.IndexFunc(have, func(r rune) bool { return r != rune(round) })
			t.Fatalf("round %d: byte %d is %d: old content from the page cache", round, i, have[max(i, 0)])
		}
	}
}
