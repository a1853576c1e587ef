package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// While one reader serves all, a request that does not come back must not keep the
// others: again and again, since the watch sleeps between.
func TestCalmEnds(t *testing.T) {
	p := newPool(t)
	s := p.mountWith(request{FreezeMax: time.Minute, Layers: layers{Base: p.base("", "mkdir d; echo x >d/x; for i in $(seq 50); do echo $i >f$i; done"), Uppers: []upperDir{p.upper("sys", "/")}}})
	for round := range 5 {
		for i := range 100 { // short requests, one after the other
			name := filepath.Join(s.mnt, "d", fmt.Sprintf("n%d", i))
			fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY|unix.O_EXCL, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, []byte("x")); err != nil {
				t.Error(err)
			}
			unix.Close(fd)
		}
		time.Sleep(time.Duration(round) * 10 * time.Millisecond) // the watch is awake, or asleep
		s.call(request{Op: "freeze"})
		held := make(chan error, 1)
		go func() { held <- os.Chmod(filepath.Join(s.mnt, "d", "n0"), 0o600) }()
		time.Sleep(10 * time.Millisecond)
		read := make(chan error, 1)
		go func() {
			var errs []error
			for i := range 10 {
				_, err := os.ReadFile(filepath.Join(s.mnt, fmt.Sprintf("f%d", round*10+i+1)))
				errs = append(errs, err)
			}
			read <- errors.Join(errs...)
		}()
		select {
		case err := <-read:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the view does not answer while one change waits")
		}
		select {
		case err := <-held:
			t.Errorf("a change did not wait: %v", err)
		default:
		}
		s.call(request{Op: "thaw"})
		select {
		case err := <-held:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a change waits after thaw")
		}
		for i := range 100 {
			if err := unix.Unlink(filepath.Join(s.mnt, "d", fmt.Sprintf("n%d", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCalmLevel(t *testing.T) {
	from := func(pid, opcode uint32) []byte { return words(80, opcode, 1, 0, 1, 0, 0, 0, pid, 0) }
	lookup, fsync, forget := from(7, opcodeLookup), from(7, 20), from(0, opcodeForget)
	var c calm
	for range calmFrom + 1 { // the first one is another caller's
		if c.is() {
			t.Fatal("calm too early")
		}
		c.note(lookup)
		c.note(forget)
	}
	if !c.is() {
		t.Error("not calm after many short requests")
	}
	c.note(fsync)
	if c.is() {
		t.Error("calm while there are slow requests")
	}
	for range 10 * calmMost {
		c.note(lookup)
	}
	for range 3 {
		c.note(fsync)
	}
	if !c.is() {
		t.Error("a few slow requests end the calm")
	}
	c.end()
	if c.is() {
		t.Error("calm after its end")
	}
	for i := range uint32(10 * calmMost) {
		c.note(from(7+i%2, opcodeLookup))
	}
	if c.is() {
		t.Error("calm while two programs take turns")
	}
	for i := range uint32(10 * calmMost) { // as a shell's loop that runs programs
		c.note(from(7+i/5, opcodeLookup))
	}
	if !c.is() {
		t.Error("not calm while programs come one after the other")
	}
}

func TestShortRequests(t *testing.T) {
	setattr := func(valid uint32) []byte {
		return append(words(128, opcodeSetattr, 1, 0, 1, 0, 0, 0, 0, 0), append(words(valid), make([]byte, 84)...)...)
	}
	write := func(size uint32) []byte { return words(size, opcodeWrite, 1, 0, 1, 0, 0, 0, 0, 0) }
	for _, q := range []struct {
		what    string
		request []byte
		want    bool
	}{
		{"chmod", setattr(fuse.FATTR_MODE), true},
		{"truncate", setattr(fuse.FATTR_SIZE), false},
		{"a small read", words(80, opcodeRead, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4096, 0, 0, 0, 0, 0), true},
		{"reading ahead", words(80, opcodeRead, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128<<10, 0, 0, 0, 0, 0), false},
		{"a small write", write(4096 + 80), true},
		{"a large write", write(1<<20 + 80), false},
		{"whether it is a terminal", words(72, opcodeIoctl, 1, 0, 1, 0, 0, 0, 0, 0), true},
		{"fallocate", words(72, 43, 1, 0, 1, 0, 0, 0, 0, 0), false},
		{"fsync", words(56, 20, 1, 0, 1, 0, 0, 0, 0, 0), false},
	} {
		if got := short(q.request); got != q.want {
			t.Errorf("%s: %v", q.what, got)
		}
	}
}

// A signal for a program whose request waits must not become a conversation without
// end between the kernel and the server.
func TestInterruptedRequest(t *testing.T) {
	p := newPool(t)
	s := p.mountWith(request{FreezeMax: time.Minute, Layers: layers{Base: p.base("", "echo x >f"), Uppers: []upperDir{p.upper("sys", "/")}}})
	s.call(request{Op: "freeze"})
	cmd := exec.Command("chmod", "600", filepath.Join(s.mnt, "f"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	cmd.Process.Signal(unix.SIGTERM)
	before := cpuTime(t, s.cmd.Process.Pid)
	time.Sleep(time.Second)
	if used := cpuTime(t, s.cmd.Process.Pid) - before; used > 30 {
		t.Errorf("the server used %d ticks in a second of waiting", used)
	}
	s.call(request{Op: "thaw"})
	cmd.Wait()
}

// cpuTime returns a process's time in ticks of 10 ms.
func cpuTime(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return user + system
}
