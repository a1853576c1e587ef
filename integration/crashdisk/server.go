package crashdisk

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Descriptors that the parent hands to the child.
const (
	fdControl = 3 // socket: a JSON request a line, a JSON answer a line
	fdLog     = 4
	fdDisk    = 5 // memory file with the content
	fdFuse    = 6 // /dev/fuse, mounted by the parent's request
)

const (
	rootInode = fuse.FUSE_ROOT_ID
	diskInode = 2
	diskName  = "disk"
)

// Fault is a rule by which the disk refuses requests.
type Fault struct {
	On    string        // "write", "read", "flush", "discard", or "" for all
	From  int64         // only requests that touch [From, To) …
	To    int64         // … where To = 0 means the end of the disk
	Skip  int           // so many matching requests pass first
	Count int           // then so many fail; 0 means all that follow
	Errno syscall.Errno // EIO, ENOSPC, …
	Stall bool          // instead of failing, the disk stops answering until Resume
}

type request struct {
	Do    string // mark, fault, clear, stall, resume, stop
	Name  string
	Fault Fault
}

type answer struct {
	Ops int // records in the log, this request's included
	Err string
}

// disk is the file system with one file. It embeds a raw file system that answers
// ENOSYS to all that a loop device does not need.
type disk struct {
	fuse.RawFileSystem
	size int64
	data *os.File
	log  *logWriter

	mu     sync.Mutex // guards what follows, and the order of log and data
	faults []Fault
	stall  chan struct{} // closed by resume; nil: answering
}

// serve runs the child process. It returns when the connection is gone.
func serve() error {
	// A handler that is killed by its terminal, or by a closed pipe, would leave the
	// loop device without a disk.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT)
	// The kernel may wait for this disk to free memory: do not wait for the kernel.
	unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
	debug.SetGCPercent(400)

	data := os.NewFile(fdDisk, "disk")
	st, err := data.Stat()
	if err != nil {
		return err
	}
	d := &disk{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		size:          st.Size(),
		data:          data,
		log:           &logWriter{f: os.NewFile(fdLog, "log")},
	}
	server, err := fuse.NewServer(d, fmt.Sprintf("/dev/fd/%d", fdFuse), &fuse.MountOptions{
		MaxWrite:      1 << 20,
		DisableSplice: true,
		DisableXAttrs: true,
		Logger:        log.New(io.Discard, "", 0),
	})
	if err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { // ends with the connection
		defer close(gone)
		server.Serve()
	}()

	control := os.NewFile(fdControl, "control")
	if err := d.control(control); err != nil {
		return err
	}
	// The parent has closed its end. It has detached everything, or it is dead and
	// will not: then this process is the only one left who knows of the loop device.
	d.resume()
	select {
	case <-gone:
		return nil
	case <-time.After(100 * time.Millisecond):
	}
	done := make(chan struct{})
	go func() { // does not outlive this process, which ends after the time limit
		defer close(done)
		detachAll(os.Getenv(envDir))
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
	}
	return nil
}

// control answers requests until the parent closes the socket.
func (d *disk) control(c io.ReadWriter) error {
	in := json.NewDecoder(bufio.NewReader(c))
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return nil
		}
		var a answer
		if err := d.do(r, &a); err != nil {
			a.Err = err.Error()
		}
		b, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return nil
		}
	}
}

func (d *disk) do(r request, a *answer) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.Do {
	case "mark":
		a.Ops, err = d.log.append(Mark, 0, 0, []byte(r.Name))
	case "fault":
		d.faults = append(d.faults, r.Fault)
	case "clear":
		d.faults = nil
	case "stall":
		if d.stall == nil {
			d.stall = make(chan struct{})
		}
	case "resume":
		d.resumeLocked()
	default:
		err = fmt.Errorf("unknown request %q", r.Do)
	}
	return err
}

func (d *disk) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resumeLocked()
}

// Preconditions: d.mu is held.
func (d *disk) resumeLocked() {
	if d.stall != nil {
		close(d.stall)
		d.stall = nil
	}
}

// enterLocked waits while the disk is stalled, and says whether a fault rule refuses
// the request. It returns with d.mu held.
func (d *disk) enterLocked(on string, off, length int64) fuse.Status {
	d.mu.Lock()
	d.waitLocked()
	for i := range d.faults {
		f := &d.faults[i]
		to := f.To
		if to == 0 {
			to = d.size
		}
		if (f.On != "" && f.On != on) || (on != "flush" && (off >= to || off+length <= f.From)) || f.Count < 0 {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Count > 0 {
			if f.Count--; f.Count == 0 {
				f.Count = -1 // used up
			}
		}
		if f.Stall {
			d.stall = make(chan struct{})
			return d.waitLocked()
		}
		d.log.append(Failed, off, length, nil)
		return fuse.Status(f.Errno)
	}
	return fuse.OK
}

// waitLocked waits until the disk answers (again). Preconditions: d.mu is held.
func (d *disk) waitLocked() fuse.Status {
	for d.stall != nil {
		stall := d.stall
		d.mu.Unlock()
		<-stall // ends with resume, or with this process
		d.mu.Lock()
	}
	return fuse.OK
}

func (d *disk) attr(ino uint64, a *fuse.Attr) {
	*a = fuse.Attr{Ino: ino, Mode: unix.S_IFDIR | 0o700, Nlink: 2, Blksize: PageSize}
	if ino == diskInode {
		a.Mode, a.Nlink, a.Size, a.Blocks = unix.S_IFREG|0o600, 1, uint64(d.size), uint64(d.size/512)
	}
}

// Lookup implements [fuse.RawFileSystem], as do the methods below.
func (d *disk) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != rootInode || name != diskName {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation = diskInode, 1
	out.SetEntryTimeout(time.Hour)
	out.SetAttrTimeout(time.Hour)
	d.attr(diskInode, &out.Attr)
	return fuse.OK
}

func (d *disk) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	d.attr(in.NodeId, &out.Attr)
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (d *disk) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.Valid&fuse.FATTR_SIZE != 0 && int64(in.Size) != d.size {
		return fuse.EPERM // a disk does not change its size
	}
	d.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (d *disk) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	// No page cache above the recorder: the loop device's requests arrive as they are.
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (d *disk) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	s := d.enterLocked("read", int64(in.Offset), int64(in.Size))
	d.mu.Unlock()
	if s != fuse.OK {
		return nil, s
	}
	n, err := d.data.ReadAt(buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil && err != io.EOF {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (d *disk) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	s := d.enterLocked("write", int64(in.Offset), int64(len(data)))
	defer d.mu.Unlock()
	if s != fuse.OK {
		return 0, s
	}
	if _, err := d.log.append(Write, int64(in.Offset), int64(len(data)), data); err != nil {
		return 0, fuse.EIO
	}
	if _, err := d.data.WriteAt(data, int64(in.Offset)); err != nil {
		return 0, fuse.EIO
	}
	return uint32(len(data)), fuse.OK
}

func (d *disk) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	s := d.enterLocked("flush", 0, d.size)
	defer d.mu.Unlock()
	if s != fuse.OK {
		return s
	}
	if _, err := d.log.append(Flush, 0, 0, nil); err != nil {
		return fuse.EIO
	}
	return fuse.OK
}

func (d *disk) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const zeroing = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if in.Mode&zeroing == 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	s := d.enterLocked("discard", int64(in.Offset), int64(in.Length))
	defer d.mu.Unlock()
	if s != fuse.OK {
		return s
	}
	if _, err := d.log.append(Discard, int64(in.Offset), int64(in.Length), nil); err != nil {
		return fuse.EIO
	}
	err := unix.Fallocate(int(d.data.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(in.Offset), int64(in.Length))
	return fuse.ToStatus(err)
}

func (d *disk) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (d *disk) Release(<-chan struct{}, *fuse.ReleaseIn) {}

func (d *disk) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Blocks, out.NameLen = PageSize, uint64(d.size/PageSize), 255
	return fuse.OK
}

func (d *disk) String() string { return "crashdisk" }
