package crashdisk

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var serial atomic.Int64 // numbers the directories below home

// StepLimit is how long one step on a recorder may take before the disk is aborted.
// It is generous: only a hang reaches it.
const StepLimit = 60 * time.Second

// Recorder is a disk on FUSE under a loop device; see the package comment.
type Recorder struct {
	dir   string
	mnt   string
	conn  uint32
	child *exec.Cmd
	dead  chan struct{} // closed when the child has been waited for
	log   *os.File
	data  *os.File
	errs  *os.File
	loop  *loop

	mu      sync.Mutex // guards the control socket
	control *os.File
	in      *bufio.Reader

	read    int64 // end of the log that ops holds
	ops     []Op
	mounted bool
	closed  bool
	aborted atomic.Bool
}

// Record starts a recorder whose disk has the image's content. Close it.
func Record(img *Image) (_ *Recorder, err error) {
	if err := mountCtl(); err != nil {
		return nil, err
	}
	base, err := home()
	if err != nil {
		return nil, err
	}
	r := &Recorder{dir: filepath.Join(base, fmt.Sprintf("r%d", serial.Add(1))), dead: make(chan struct{})}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot record: %w", errors.Join(err, r.Close()))
		}
	}()
	fusePoint := filepath.Join(r.dir, "fuse")
	r.mnt = filepath.Join(r.dir, "mnt")
	for _, d := range []string{fusePoint, r.mnt} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	for _, f := range []**os.File{&r.log, &r.data, &r.errs} {
		if *f, err = memFile(); err != nil {
			return nil, err
		}
	}
	if err := img.Store(r.data); err != nil {
		return nil, err
	}
	if err := r.start(base, fusePoint); err != nil {
		return nil, err
	}
	return r, r.Step("attach the disk", StepLimit, func() error {
		f, err := os.OpenFile(filepath.Join(fusePoint, diskName), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		r.loop, err = attach(f, true)
		return err
	})
}

// start mounts the FUSE file system and starts the child that serves it.
func (r *Recorder) start(base, fusePoint string) error {
	// The child gets the only descriptors of the connection: none is inherited by
	// programs that other goroutines start meanwhile, none stays here.
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", dev.Fd(), 1<<20)
	if err := unix.Mount("crashdisk", fusePoint, "fuse.crashdisk", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("cannot mount FUSE: %w", err)
	}
	for _, m := range mountsBelow(fusePoint) {
		r.conn = m.minor
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r.control = os.NewFile(uintptr(pair[0]), "control")
	r.in = bufio.NewReader(r.control)
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r.child = exec.Command(self)
	r.child.Env = append(os.Environ(), envRole+"=serve", envDir+"="+base, "GOMAXPROCS=2")
	r.child.Dir = "/"
	r.child.ExtraFiles = []*os.File{theirs, r.log, r.data, dev} // fdControl…
	r.child.Stderr = r.errs                                     // a file: whoever waits for the test's output never waits for the child
	r.child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := r.child.Start(); err != nil {
		r.child = nil
		return fmt.Errorf("cannot start the server: %w", err)
	}
	go func() { // ends when the child does
		r.child.Wait()
		close(r.dead)
	}()
	return nil
}

// Step runs f, which touches the disk, with a time limit. When the limit passes,
// the disk is aborted, so that f fails instead of hanging; the error then wraps
// [ErrTimeout].
func (r *Recorder) Step(what string, limit time.Duration, f func() error) error {
	return bounded(limit, what, r.Abort, f)
}

// Device returns the path of the block device.
func (r *Recorder) Device() string { return r.loop.path() }

// Mount mounts the disk's btrfs and returns the mount point.
func (r *Recorder) Mount() (string, error) {
	err := r.Step("mount "+r.Device(), StepLimit, func() error { return mountBtrfs(r.Device(), r.mnt) })
	r.mounted = err == nil
	return r.mnt, err
}

// Unmount unmounts it. What is not yet on the disk is written (and recorded).
func (r *Recorder) Unmount() error {
	if !r.mounted {
		return nil
	}
	err := r.Step("unmount "+r.mnt, StepLimit, func() error { return unmount(r.mnt) })
	r.mounted = err != nil
	return err
}

// Mark notes in the record that the workload is here.
func (r *Recorder) Mark(name string) error { return r.ask(request{Do: "mark", Name: name}) }

// Fault adds a rule. Skip counts from now on.
func (r *Recorder) Fault(f Fault) error { return r.ask(request{Do: "fault", Fault: f}) }

// Clear removes all fault rules.
func (r *Recorder) Clear() error { return r.ask(request{Do: "clear"}) }

// Stall makes the disk stop answering until Resume, Abort or Close.
func (r *Recorder) Stall() error { return r.ask(request{Do: "stall"}) }

// Resume ends Stall.
func (r *Recorder) Resume() error { return r.ask(request{Do: "resume"}) }

// Abort makes every pending and later request of the disk fail, whatever its server
// is doing. The record so far remains.
func (r *Recorder) Abort() {
	if r.conn != 0 && r.aborted.CompareAndSwap(false, true) {
		abortConnection(filepath.Dir(r.dir), r.conn)
	}
}

// Kill kills the server, as a crash of its machine would.
func (r *Recorder) Kill() {
	r.child.Process.Kill()
	<-r.dead
}

func (r *Recorder) ask(q request) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	var a answer
	err = bounded(20*time.Second, "ask the disk", func() { r.control.Close() }, func() error {
		if _, err := r.control.Write(append(b, '\n')); err != nil {
			return err
		}
		line, err := r.in.ReadBytes('\n')
		if err != nil {
			return err
		}
		return json.Unmarshal(line, &a)
	})
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err != nil {
		return fmt.Errorf("cannot %s the disk: %w", q.Do, err)
	}
	return nil
}

// Ops returns what was recorded until now.
func (r *Recorder) Ops() ([]Op, error) {
	ops, end, err := readLog(r.log, r.read)
	r.ops, r.read = append(r.ops, ops...), end
	return r.ops[:len(r.ops):len(r.ops)], err
}

// Content returns what the disk holds now, its cache included.
func (r *Recorder) Content() (*Image, error) { return Load(r.data) }

// Close detaches everything: the file system, the loop device, the server, in this
// order and each with a time limit. It returns what went wrong on the way, and
// leaves nothing attached that can be detached. Closing again does nothing: the loop
// device may be somebody else's by then.
func (r *Recorder) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	var errs []error
	if r.control != nil && r.alive() && !r.aborted.Load() {
		r.Resume() // a stalled disk cannot be unmounted
	}
	if err := r.Unmount(); err != nil {
		errs = append(errs, err)
		r.Abort()
		unix.Unmount(r.mnt, unix.MNT_DETACH)
	}
	if r.loop != nil {
		err := r.Step("detach "+r.Device(), StepLimit, func() error {
			r.loop.forget()
			return r.loop.detach()
		})
		errs = append(errs, err)
	}
	if r.conn != 0 {
		fusePoint := filepath.Join(r.dir, "fuse")
		if err := bounded(10*time.Second, "unmount the disk", r.Abort, func() error { return unmount(fusePoint) }); err != nil {
			errs = append(errs, err)
			r.Abort()
			unix.Unmount(fusePoint, unix.MNT_DETACH)
		}
	}
	if r.control != nil {
		r.control.Close()
	}
	if r.child != nil {
		select {
		case <-r.dead:
		case <-time.After(10 * time.Second):
			r.child.Process.Kill()
			errs = append(errs, errors.New("the disk's server did not end by itself"))
		}
		if b, _ := io.ReadAll(io.NewSectionReader(r.errs, 0, 1<<16)); len(b) > 0 {
			errs = append(errs, fmt.Errorf("the disk's server said: %s", b))
		}
	}
	for _, f := range []*os.File{r.log, r.data, r.errs} {
		if f != nil {
			f.Close()
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(r.dir)
}

func (r *Recorder) alive() bool {
	select {
	case <-r.dead:
		return false
	default:
		return true
	}
}

func mountBtrfs(dev, dir string) error {
	if err := unix.Mount(dev, dir, "btrfs", unix.MS_NOATIME, "user_subvol_rm_allowed"); err != nil {
		return fmt.Errorf("cannot mount %s: %w", dev, err)
	}
	return nil
}

// unmount waits a little for those who are just leaving.
func unmount(dir string) error {
	for i := 0; ; i++ {
		err := unix.Unmount(dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || i == 1000 {
			return fmt.Errorf("cannot unmount %s: %w", dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
