package crashdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTimeout says that a step did not end within its limit.
var ErrTimeout = errors.New("time limit exceeded")

// Environment of the child process.
const (
	envRole = "BTROVL_CRASHDISK"     // "serve": a recorder's server; "trace": a tracer
	envDir  = "BTROVL_CRASHDISK_DIR" // the parent's directory: what to detach if it dies
)

// ServeIfChild runs a recorder's server or a tracer and exits, if this process was
// started as one; otherwise it does nothing. Every program that uses a [Recorder] or
// [KillAt] calls it first thing, before it touches anything.
func ServeIfChild() {
	var err error
	switch os.Getenv(envRole) {
	case "serve":
		err = serve()
	case "trace":
		err = traceMain()
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crashdisk:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func prefix() string { return filepath.Join(os.TempDir(), "btrovl-crash-") }

// home returns this process's directory, which carries its id.
func home() (string, error) {
	dir := prefix() + strconv.Itoa(os.Getpid())
	return dir, os.MkdirAll(dir, 0o700)
}

func memName(pid int) string { return "btrovl-crash-" + strconv.Itoa(pid) }

// memFile returns a new memory file. Its name shows as backing file of a loop device.
func memFile() (*os.File, error) {
	fd, err := unix.MemfdCreate(memName(os.Getpid()), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), "memfd"), nil
}

// bounded runs f and waits for it no longer than limit; then it calls abort (which
// makes what f waits for fail) and waits a little more. A step that is still not
// back stays behind, asleep in the kernel: the caller gets an error and goes on.
func bounded(limit time.Duration, what string, abort func(), f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
	}
	err := fmt.Errorf("%s: %w (%v)", what, ErrTimeout, limit)
	if abort != nil {
		abort()
		t.Reset(10 * time.Second)
		select {
		case ferr := <-done:
			return errors.Join(err, ferr)
		case <-t.C:
		}
	}
	return fmt.Errorf("%w, and it still hangs", err)
}

// abortConnection makes all requests of the FUSE connection fail, now and later. dir
// is the directory below which mountCtl may have mounted fusectl.
func abortConnection(dir string, id uint32) error {
	var err error
	for _, ctl := range []string{"/sys/fs/fuse/connections", filepath.Join(dir, "fusectl")} {
		f := filepath.Join(ctl, strconv.FormatUint(uint64(id), 10), "abort")
		if err = os.WriteFile(f, []byte("1"), 0); err == nil {
			return nil
		}
	}
	return fmt.Errorf("cannot abort FUSE connection %d: %w", id, err)
}

// mountCtl makes abortConnection work where the machine has not mounted fusectl.
func mountCtl() error {
	if ents, _ := os.ReadDir("/sys/fs/fuse/connections"); len(ents) > 0 {
		return nil
	}
	dir, err := home()
	if err != nil {
		return err
	}
	ctl := filepath.Join(dir, "fusectl")
	if err := os.MkdirAll(ctl, 0o700); err != nil {
		return err
	}
	for _, m := range mountsBelow(ctl) {
		if m.point == ctl {
			return nil
		}
	}
	if err := unix.Mount("none", ctl, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("cannot mount fusectl, without which a hanging disk cannot be aborted: %w", err)
	}
	return nil
}

type mountPoint struct {
	point, fsType, source string
	minor                 uint32
}

// mountsBelow returns what is mounted at or below dir, in the order of mounting.
func mountsBelow(dir string) []mountPoint {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var out []mountPoint
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		p := strings.NewReplacer(`\040`, " ", `\134`, `\`).Replace(f[4])
		if p != dir && !strings.HasPrefix(p, dir+"/") {
			continue
		}
		m := mountPoint{point: p}
		for i := 6; i < len(f)-2; i++ {
			if f[i] == "-" {
				m.fsType, m.source = f[i+1], f[i+2]
				break
			}
		}
		if _, minor, ok := strings.Cut(f[2], ":"); ok {
			n, _ := strconv.ParseUint(minor, 10, 32)
			m.minor = uint32(n)
		}
		out = append(out, m)
	}
	return out
}

// owner returns the process that a directory of [home] belongs to.
func owner(dir string) (pid int, ok bool) {
	pid, err := strconv.Atoi(strings.TrimPrefix(dir, prefix()))
	return pid, err == nil
}

// detachAll takes down what the owner of dir has set up, whatever state it is in:
// file systems on loop devices, the loop devices, the FUSE mounts.
func detachAll(dir string) {
	pid, ok := owner(dir)
	if !ok {
		return
	}
	isFuse := func(m mountPoint) bool { return strings.HasPrefix(m.fsType, "fuse") }
	for _, fuse := range []bool{false, true} {
		mounts := mountsBelow(dir)
		for i := len(mounts) - 1; i >= 0; i-- {
			if m := mounts[i]; isFuse(m) == fuse {
				if fuse && m.fsType != "fusectl" {
					abortConnection(dir, m.minor)
				}
				if unix.Unmount(m.point, 0) != nil {
					unix.Unmount(m.point, unix.MNT_DETACH)
				}
			}
		}
		if !fuse {
			for num, file := range loops() {
				if strings.HasPrefix(file, dir+"/") || strings.HasPrefix(file, "/memfd:"+memName(pid)+" ") {
					(&loop{num: num}).detach()
				}
			}
		}
	}
}

var swept sync.Once

// Sweep removes what processes left that were killed: mounts, loop devices,
// directories. Call it before the first recorder or slot is made.
func Sweep() {
	swept.Do(func() {
		dirs, _ := filepath.Glob(prefix() + "*")
		for _, dir := range dirs {
			if pid, ok := owner(dir); !ok || alive(pid) {
				continue
			}
			// Its server may be at it already. A hung disk must not hang this process.
			if bounded(15*time.Second, "sweep "+dir, nil, func() error { detachAll(dir); return nil }) == nil {
				os.RemoveAll(dir)
			}
		}
	})
}

// Leave removes this process's directory. It fails if something is still mounted
// or attached there, which it takes down.
func Leave() error {
	dir := prefix() + strconv.Itoa(os.Getpid())
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	var left []string
	for _, m := range mountsBelow(dir) {
		if m.fsType != "fusectl" {
			left = append(left, m.point)
		}
	}
	err := bounded(20*time.Second, "detach "+dir, nil, func() error { detachAll(dir); return nil })
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left mounted: %s", strings.Join(left, ", ")))
	}
	return err
}

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
