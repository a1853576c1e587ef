package inittest

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// What systemd hears of a view in the foreground (Type=notify, WatchdogSec=): ready when
// the mount answers, a sign of life again and again while it does, none while it does not,
// and that it stops.
func TestNotify(t *testing.T) {
	testenv.FUSE(t)
	dir, run := pool(t)
	tree := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(tree, "f"), []byte("x"), 0o644))
	run("base", "import", "1", tree)
	mnt := testenv.Dir(t)
	addr := filepath.Join(t.TempDir(), "notify")
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	testenv.Must(t, err)
	defer sock.Close()

	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	testenv.Must(t, err)
	defer log.Close()
	cmd := exec.Command(testenv.Program(t), "mount", "--foreground", mnt)
	cmd.Env = append(os.Environ(), append(poolEnv(dir), "NOTIFY_SOCKET="+addr, "WATCHDOG_USEC=600000")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.Must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ended := false
	defer func() {
		if !ended {
			cmd.Process.Kill()
			<-done
		}
	}()

	// hear returns the next message; "" if none comes in time.
	hear := func(limit time.Duration) string {
		t.Helper()
		b := make([]byte, 4096)
		testenv.Must(t, sock.SetReadDeadline(time.Now().Add(limit)))
		n, err := sock.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ""
		}
		testenv.Must(t, err)
		return string(b[:n])
	}
	const patience = time.Minute
	ready := hear(patience)
	if !strings.HasPrefix(ready, "READY=1\n") || !strings.Contains(ready, "MAINPID="+strconv.Itoa(cmd.Process.Pid)+"\n") {
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("not ready: %q\n%s", ready, text)
	}
	if _, err := os.Stat(filepath.Join(mnt, "f")); err != nil {
		t.Errorf("ready, and the view does not answer: %v", err)
	}
	for range 4 {
		if m := hear(patience); m != "WATCHDOG=1" {
			t.Fatalf("%q instead of a sign of life", m)
		}
	}

	// The view is covered by a file system that does not answer: as that is what the daemon
	// asks, it is as good as stuck itself, and the watchdog must hear nothing.
	dead := deadMount(t, mnt)
	for hear(time.Second) != "" { // what was on its way
	}
	if m := hear(2 * time.Second); m != "" {
		t.Errorf("%q while the mount point answers nothing", m)
	}
	dead()
	if m := hear(patience); m != "WATCHDOG=1" {
		t.Errorf("%q after it answers again", m)
	}

	testenv.Must(t, cmd.Process.Signal(unix.SIGTERM))
	for {
		m := hear(patience)
		if m == "STOPPING=1" {
			break
		}
		if m != "WATCHDOG=1" {
			t.Fatalf("%q instead of STOPPING=1", m)
		}
	}
	select {
	case err := <-done:
		ended = true
		testenv.Must(t, err)
	case <-time.After(patience):
		t.Error("it does not end")
	}
}

// deadMount covers a directory by a FUSE file system without a server. The function that
// it returns takes that away.
func deadMount(t testing.TB, dir string) (undo func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	testenv.Must(t, err)
	testenv.Must(t, unix.Mount("dead", dir, "fuse", 0, "fd="+strconv.Itoa(fd)+",rootmode=40000,user_id=0,group_id=0"))
	gone := false
	undo = func() {
		if !gone {
			gone = true
			unix.Close(fd) // whoever waits for an answer gets an error
			testenv.Must(t, unix.Unmount(dir, unix.MNT_DETACH))
		}
	}
	t.Cleanup(undo)
	return undo
}
