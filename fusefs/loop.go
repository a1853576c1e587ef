package fusefs

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// connection is a mount's /dev/fuse: it reads requests, takes them apart (answerHot,
// and go-fuse's ProtocolServer the rare ones), lets rawFS answer, and writes the answers.
// It stands in for fuse.Server because of what a request costs: a thread that reads,
// answers and writes with buffers of its own is woken once a request, by the kernel;
// fuse.Server starts a goroutine for most requests, and wakes a second thread for it.
//
// # Readers
//
// A reader is a goroutine in that loop. While requests are answered at once,
// minReaders of them take turns. But any request may take long (a cold disk, a
// change while the view is frozen), so a reader that leaves nobody behind who reads
// sends another one before it goes to work. There is no upper limit: with one, the last
// reader that waits would be a view that hangs. A reader that comes back and finds enough
// others reading rests. Where requests are short and come one after the other, one
// reader does (see calm).
//
// # Processors
//
// A thread in a system call keeps its processor of the Go scheduler as long as there
// are idle ones, and goes on with it when the call returns. So the scheduler needs more
// processors than there are readers; see enoughProcs.
type connection struct {
	fs      *rawFS
	server  *fuse.ProtocolServer
	debug   bool // the server logs every request
	log     *slog.Logger
	buffers sync.Pool  // *buffer
	logging *logThread // nil: readers do all
	calm    calm
	follow  bool          // readers may follow
	long    time.Duration // a sleep before a request: the reader was woken on another processor, perhaps
	readers sync.WaitGroup
	reading atomic.Int32  // readers in read(2) or on their way there
	resting atomic.Int32  // readers that wait for wake
	wake    chan struct{} // whoever sends has counted the receiver in reading
	ended   chan struct{} // closed when the file system is unmounted
	end     sync.Once

	mu sync.RWMutex // held for reading by notifications, which must not use a closed fd
	fd int          // -1 when closed
}

const (
	minReaders = 2
	maxResting = 6
	headroom   = 4096 // of a request, beside its data
)

// connect mounts a file system and answers the kernel's INIT.
func connect(fs *rawFS, mountpoint string, o *fuse.MountOptions, log *slog.Logger) (*connection, error) {
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open /dev/fuse: %w", err)
	}
	data := append([]string{
		fmt.Sprintf("fd=%d", fd), fmt.Sprintf("rootmode=%o", st.Mode&unix.S_IFMT),
		fmt.Sprintf("user_id=%d", os.Geteuid()), fmt.Sprintf("group_id=%d", os.Getegid()),
		fmt.Sprintf("max_read=%d", o.MaxWrite), "allow_other",
	}, o.Options...)
	if err := unix.Mount(o.FsName, mountpoint, "fuse."+o.Name, o.DirectMountFlags, strings.Join(data, ",")); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c := &connection{fs: fs, server: fuse.NewProtocolServer(fs, o), debug: o.Debug, log: log, fd: fd, wake: make(chan struct{}), ended: make(chan struct{})}
	c.calm.busy = make(chan struct{}, 1)
	if c.follow = mayFollow(); c.follow {
		c.long = longSleep()
		relaxTimers()
	}
	size := o.MaxWrite + headroom
	c.buffers.New = func() any { return newBuffer(size) }
	b := newBuffer(size)
	n, err := c.read(b)
	if err == nil {
		var size int
		if size, err = c.handle(b, n); err == nil {
			err = c.send(b, size)
		}
	}
	if err != nil {
		unix.Unmount(mountpoint, unix.MNT_DETACH)
		unix.Close(fd)
		return nil, fmt.Errorf("cannot greet the kernel: %w", err)
	}
	threads := minReaders
	if fs.groupsFsyncs() {
		c.logging = startLogThread(c)
		threads++
	}
	enoughProcs(threads)
	return c, nil
}

// enoughProcs gives the scheduler two processors more than there are readers (and a logThread),
// unless the environment says how many. Without them a request waits for the
// scheduler's monitor, which takes processors away from threads in read(2): 40 µs
// instead of 10.
func enoughProcs(threads int) {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < threads+2 {
		runtime.GOMAXPROCS(threads + 2)
	}
}

// buffer holds a request and its answer. The data of a WRITE, and of the answer to
// a READ, lie on a page behind their headers: that is what O_DIRECT wants, and what
// copies fastest.
type buffer struct {
	request, reply []byte
	size           int // of the request, for a logThread
}

const (
	requestHeader = 40 + 40 // struct fuse_in_header, struct fuse_write_in
	replyHeader   = 16      // struct fuse_out_header
)

func newBuffer(size int) *buffer {
	behind := func(header int) []byte {
		b := make([]byte, size+4096)
		skip := int(-(uintptr(unsafe.Pointer(&b[0])) + uintptr(header)) & 4095)
		return b[skip : skip+size : skip+size]
	}
	return &buffer{request: behind(requestHeader), reply: behind(replyHeader)}
}

// serve answers requests until the file system is unmounted everywhere and the
// last one is answered.
func (c *connection) serve() {
	c.reading.Store(minReaders)
	for range minReaders {
		c.readers.Go(c.reader)
	}
	c.readers.Go(c.watch)
	c.readers.Wait()
	c.logging.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	unix.Close(c.fd)
	c.fd = -1
}

// reader begins counted in c.reading.
func (c *connection) reader() {
	b, _ := c.buffers.Get().(*buffer)
	defer func() { c.buffers.Put(b) }()
	f := follower{calm: &c.calm}
	defer f.end()
	for {
		before := time.Now()
		n, err := c.read(b)
		long := time.Since(before) > c.long
		left := c.reading.Add(-1)
		if err != nil {
			if err != unix.ENODEV {
				c.log.Error("requests cannot be read any more", "error", err)
			}
			c.end.Do(func() { close(c.ended) })
			return
		}
		if c.logging.take(b, n) {
			c.reading.Add(1)
			b, _ = c.buffers.Get().(*buffer)
			continue
		}
		request := b.request[:n]
		c.calm.note(request)
		if calm := c.calm.is() && short(request); calm || !quick(request) {
			if calm {
				c.calm.wakeWatch()
				if c.follow {
					f.begin()
				}
			} else {
				f.end()
			}
			if left == 0 && !calm {
				c.relieve()
			}
		}
		size, err := c.handle(b, n)
		// The answer wakes who asked, and he may ask again before the write returns:
		// this reader counts as reading by then.
		goesOn := c.goesOn()
		if err == nil {
			err = c.send(b, size)
		}
		c.refused(err)
		f.slept(long)
		if !goesOn {
			if f.end(); !c.rest() {
				return
			}
		}
	}
}

func (c *connection) refused(err error) {
	if err != nil && err != unix.ENOENT { // ENOENT: the caller was killed, or the mount is gone
		c.log.Warn("an answer was refused by the kernel", "error", err)
	}
}

// quick says whether a request is answered without waiting for anything. The
// kernel sends FORGETs in thousands and waits for none of them.
func quick(request []byte) bool {
	op := binary.NativeEndian.Uint32(request[4:])
	return op == opcodeForget || op == opcodeBatchForget || op == opcodeInterrupt
}

const ( // of linux/fuse.h
	opcodeForget      = 2
	opcodeInterrupt   = 36
	opcodeBatchForget = 42
)

// relieve sends somebody to read while the caller works.
func (c *connection) relieve() {
	c.reading.Add(1)
	select {
	case c.wake <- struct{}{}:
	default:
		c.readers.Go(c.reader)
	}
}

// goesOn counts the caller as a reader, unless enough others read.
func (c *connection) goesOn() bool {
	enough := int32(minReaders)
	if c.calm.is() {
		enough = 1
	}
	for r := c.reading.Load(); r < enough; r = c.reading.Load() {
		if c.reading.CompareAndSwap(r, r+1) {
			return true
		}
	}
	return false
}

// rest waits until the caller is needed, and says whether it ever is.
func (c *connection) rest() bool {
	defer c.resting.Add(-1)
	if c.resting.Add(1) > maxResting {
		return false
	}
	select {
	case <-c.wake:
		return true
	case <-c.ended:
		return false
	}
}

// read waits for a request.
func (c *connection) read(b *buffer) (int, error) {
	for {
		n, err := unix.Read(c.fd, b.request)
		switch {
		case err == unix.EINTR || err == unix.ENOENT: // ENOENT: it was taken back meanwhile
		case err == nil && n < 40:
			return 0, fmt.Errorf("a request of %d bytes", n)
		default:
			return n, err
		}
	}
}

// handle serves the request in the first n bytes and returns the size of the answer.
func (c *connection) handle(b *buffer, n int) (int, error) {
	if size, ok := c.answerHot(b.request[:n], b.reply); ok {
		return size, nil
	}
	size, st := c.server.HandleRequest([][]byte{b.request[:n]}, [][]byte{b.reply})
	if st != fuse.OK {
		return 0, syscall.Errno(st)
	}
	return size, nil
}

// send writes an answer; FORGET and its like have none.
func (c *connection) send(b *buffer, size int) error {
	if size == 0 {
		return nil
	}
	_, err := unix.Write(c.fd, b.reply[:size])
	return err
}

// inPlace is the answer to a READ that was read to where it is sent from.
type inPlace []byte

func (r inPlace) Size() int                          { return len(r) }
func (r inPlace) Done()                              {}
func (r inPlace) Bytes([]byte) ([]byte, fuse.Status) { return r, fuse.OK }
func (r inPlace) Readv(to [][]byte) (int, fuse.Status) {
	if len(r) > 0 && len(to) == 1 && &to[0][0] == &r[0] {
		return len(r), fuse.OK
	}
	n := 0
	for _, b := range to {
		n += copy(b, r[n:])
	}
	return n, fuse.OK
}
