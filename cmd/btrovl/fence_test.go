package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// landlockABI is 0 where the kernel has no Landlock.
func landlockABI() int {
	n, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(nil)), 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(n)
}

// A fenced process opens nothing outside, by whatever thread, runs nothing, signals
// nobody and has no network; inside it works as before. (That "update" fences itself
// before it reads is in testdata/keys.txt.)
func TestFence(t *testing.T) {
	testenv.Kernel(t, 6, 2) // truncating
	if abi := landlockABI(); abi < 3 {
		testenv.Need(t, "the kernel's Landlock has version %d; this test needs 3", abi)
	}
	pool := t.TempDir()
	for _, dir := range []string{"pool/a", "pool/b", "outside", "named/below", "temp/mine", "temp/full/x"} {
		if err := os.MkdirAll(filepath.Join(pool, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"outside/secret", "named/pending", "named/old", "named/below/secret", "temp/file"} {
		if err := os.WriteFile(filepath.Join(pool, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../outside", filepath.Join(pool, "pool/link")); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestFencedProcess$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "BTROVL_FENCED="+pool,
		"TMPDIR="+filepath.Join(pool, "pool")) // which it must be able to clear at its end
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestFencedProcess(t *testing.T) {
	dir := os.Getenv("BTROVL_FENCED")
	if dir == "" {
		t.Skip("runs only as a child of TestFence")
	}
	pool, outside := filepath.Join(dir, "pool"), filepath.Join(dir, "outside")
	named, temp := filepath.Join(dir, "named"), filepath.Join(dir, "temp")
	handle, err := os.Open(pool)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	ln, err := net.Listen("unix", filepath.Join(outside, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if err := fence(fenced{write: []string{pool}, rename: []string{named}, rmdir: []string{temp}}); err != nil {
		t.Fatal(err)
	}
	open := func(path string, flags int) error {
		f, err := os.OpenFile(path, flags, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
	refused := map[string]func() error{
		"read a file":        func() error { return open(filepath.Join(outside, "secret"), os.O_RDONLY) },
		"read the passwords": func() error { return open("/etc/passwd", os.O_RDONLY) },
		"list a directory":   func() error { return open("/", os.O_RDONLY) },
		"write a file":       func() error { return open(filepath.Join(outside, "secret"), os.O_WRONLY|os.O_TRUNC) },
		"truncate":           func() error { return os.Truncate(filepath.Join(outside, "secret"), 0) },
		"create":             func() error { return open(filepath.Join(outside, "new"), os.O_WRONLY|os.O_CREATE) },
		"remove":             func() error { return os.Remove(filepath.Join(outside, "secret")) },
		"link in":            func() error { return os.Link(filepath.Join(outside, "secret"), filepath.Join(pool, "secret")) },
		"through a symbolic link": func() error {
			return open(filepath.Join(pool, "link/secret"), os.O_RDONLY)
		},
		"through a descriptor": func() error {
			fd, err := unix.Openat(int(handle.Fd()), "../outside/secret", unix.O_RDONLY, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
		"device": func() error { return open("/dev/null", os.O_RDONLY) },
		"run":    func() error { return exec.Command("/bin/true").Run() },

		"read beside an output":     func() error { return open(filepath.Join(named, "old"), os.O_RDONLY) },
		"write beside an output":    func() error { return open(filepath.Join(named, "old"), os.O_WRONLY) },
		"create beside an output":   func() error { return open(filepath.Join(named, "new"), os.O_WRONLY|os.O_CREATE) },
		"link beside an output":     func() error { return os.Symlink("/etc", filepath.Join(named, "etc")) },
		"move an output elsewhere":  func() error { return os.Rename(filepath.Join(named, "pending"), filepath.Join(named, "below/x")) },
		"move into the pool":        func() error { return os.Rename(filepath.Join(named, "pending"), filepath.Join(pool, "a/x")) },
		"read temporary files":      func() error { return open(filepath.Join(temp, "file"), os.O_RDONLY) },
		"remove temporary files":    func() error { return os.Remove(filepath.Join(temp, "file")) },
		"make a directory in there": func() error { return os.Mkdir(filepath.Join(temp, "new"), 0o700) },
	}
	if abi := landlockABI(); abi >= 4 {
		refused["connect"] = func() error {
			c, err := net.DialTimeout("tcp", tcp.Addr().String(), time.Second)
			if err == nil {
				c.Close()
			}
			return err
		}
		if abi >= 6 {
			refused["signal"] = func() error { return syscall.Kill(os.Getppid(), 0) }
		}
	}
	for name, try := range refused {
		// EXDEV is what Landlock says to links and renames across its border.
		if err := try(); !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Threads that were there before, and new ones.
	errs := make(chan error)
	const threads = 20
	for range threads {
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			errs <- open("/etc/passwd", os.O_RDONLY)
		}()
	}
	for range threads {
		if err := <-errs; !errors.Is(err, unix.EACCES) {
			t.Errorf("another thread: %v", err)
		}
	}

	for _, step := range []struct {
		name string
		try  func() error
	}{
		{"create", func() error { return os.WriteFile(filepath.Join(pool, "a/x"), []byte("x"), 0o600) }},
		{"link", func() error { return os.Link(filepath.Join(pool, "a/x"), filepath.Join(pool, "b/x")) }},
		{"rename", func() error { return os.Rename(filepath.Join(pool, "b/x"), filepath.Join(pool, "a/y")) }},
		{"fifo", func() error { return unix.Mkfifo(filepath.Join(pool, "a/fifo"), 0o600) }},
		{"name an output", func() error { return os.Rename(filepath.Join(named, "pending"), filepath.Join(named, "old")) }},
		{"sync its directory", func() error { return open(named, os.O_RDONLY) }},
		{"remove a temporary directory", func() error { return os.Remove(filepath.Join(temp, "mine")) }},
		{"mounts", func() error { return open("/proc/self/mountinfo", os.O_RDONLY) }},
		{"by /proc", func() error {
			return open(fmt.Sprintf("/proc/self/fd/%d/a/y", handle.Fd()), os.O_RDONLY)
		}},
		{"views", func() error {
			go func() {
				if c, err := ln.Accept(); err == nil {
					io.WriteString(c, "hello")
					c.Close()
				}
			}()
			c, err := net.DialTimeout("unix", filepath.Join(outside, "sock"), 10*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		}},
	} {
		if err := step.try(); err != nil {
			t.Errorf("inside, %s: %v", step.name, err)
		}
	}
}
