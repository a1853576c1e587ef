package crashdisk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

var formatted struct {
	sync.Once
	img *Image
	err error
}

// fresh returns a new file system; all tests share one mkfs.
func fresh(t testing.TB) *Image {
	t.Helper()
	testenv.FUSE(t)
	testenv.Command(t, "mkfs.btrfs")
	formatted.Do(func() { formatted.img, formatted.err = Format(256<<20, "-m", "single") })
	if formatted.err != nil {
		t.Fatal(formatted.err)
	}
	return formatted.img.Clone()
}

func record(t testing.TB, img *Image) *Recorder {
	t.Helper()
	r, err := Record(img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !r.aborted.Load() && r.alive() {
			t.Error(err)
		}
	})
	return r
}

func writeSync(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// What was recorded, replayed, is what the disk holds; writes, flushes, discards and
// marks are all there. After an acknowledged fsync no state lacks the file.
func TestRecordAndEnumerate(t *testing.T) {
	base := fresh(t)
	r := record(t, base)
	mnt, err := r.Mount()
	testenv.Must(t, err)
	before, err := r.Ops()
	testenv.Must(t, err)
	want := bytes.Repeat([]byte("acknowledged "), 5000)
	testenv.Must(t, r.Step("workload", StepLimit, func() error {
		if err := writeSync(filepath.Join(mnt, "old"), bytes.Repeat([]byte("x"), 1<<20)); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(mnt, "old")); err != nil {
			return err
		}
		return writeSync(filepath.Join(mnt, "f"), want)
	}))
	testenv.Must(t, r.Mark("synced"))
	testenv.Must(t, r.Step("fstrim", StepLimit, func() error { return Command(StepLimit, "fstrim", mnt) }))
	testenv.Must(t, r.Unmount())
	ops, err := r.Ops()
	testenv.Must(t, err)

	count := map[Kind]int{}
	replay := base.Clone()
	for _, op := range ops {
		count[op.Kind]++
		testenv.Must(t, op.apply(replay))
	}
	for _, k := range []Kind{Write, Flush, Discard, Mark} {
		if count[k] == 0 {
			t.Errorf("no %v was recorded", k)
		}
	}
	content, err := r.Content()
	testenv.Must(t, err)
	if content.Sum() != replay.Sum() {
		t.Error("the replayed record differs from the disk")
	}
	testenv.Must(t, r.Close())

	slot, err := NewSlot()
	testenv.Must(t, err)
	defer slot.Close()
	start, n := time.Now(), 0
	for s := range states(t, Plan{Base: base, Ops: ops, From: len(before), Max: 60, Seed: 1}) {
		dir, err := slot.Mount(s.Image)
		if err != nil {
			t.Fatalf("%v: %v", s, err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "f"))
		switch {
		case s.Phase == "synced" && !bytes.Equal(got, want):
			t.Errorf("%v: after the fsync: %d bytes, %v", s, len(got), err)
		case err == nil && len(got) > 0 && !bytes.Equal(got, want) && !bytes.HasPrefix(want, got):
			t.Errorf("%v: wrong content", s)
		}
		testenv.Must(t, slot.Unmount())
		n++
	}
	t.Logf("%d operations (%v), %d states, %v each", len(ops), count, n, time.Since(start)/time.Duration(n))
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault Fault
		want  error
	}{
		{"every write", Fault{On: "write", Errno: syscall.EIO}, syscall.EIO},
		{"the third write", Fault{On: "write", Skip: 2, Count: 1, Errno: syscall.EIO}, syscall.EIO},
		{"flush", Fault{On: "flush", Count: 1, Errno: syscall.EIO}, syscall.EIO},
		{"no space beneath", Fault{On: "write", Errno: syscall.ENOSPC}, syscall.ENOSPC},
		{"elsewhere", Fault{On: "write", From: 255 << 20, Errno: syscall.EIO}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := record(t, fresh(t))
			mnt, err := r.Mount()
			testenv.Must(t, err)
			testenv.Must(t, r.Fault(tt.fault))
			err = r.Step("write", StepLimit, func() error {
				return writeSync(filepath.Join(mnt, "f"), make([]byte, 300000))
			})
			if (err == nil) != (tt.want == nil) {
				t.Errorf("fsync: %v, want %v", err, tt.want)
			}
			testenv.Must(t, r.Clear())
			r.Unmount()
			testenv.Must(t, r.Close())
		})
	}
}

// A fault rule counts what it skips and what it fails.
func TestFaultRules(t *testing.T) {
	d := &disk{size: 1 << 20, log: &logWriter{}}
	f, err := memFile()
	testenv.Must(t, err)
	defer f.Close()
	d.log.f = f
	d.faults = []Fault{
		{On: "write", Skip: 1, Count: 2, Errno: syscall.EIO},
		{On: "read", From: 4096, To: 8192, Errno: syscall.EIO},
	}
	try := func(on string, off int64) string {
		s := d.enterLocked(on, off, 512)
		d.mu.Unlock()
		return s.String()
	}
	got := []string{try("write", 0), try("write", 0), try("write", 0), try("write", 0),
		try("read", 0), try("read", 4096), try("read", 8192), try("flush", 0)}
	if s := fmt.Sprint(got); s != "[OK 5=input/output error 5=input/output error OK OK 5=input/output error OK OK]" {
		t.Error(s)
	}
	if ops, _, err := readLog(f, 0); err != nil || len(ops) != 3 {
		t.Errorf("%d refusals recorded, %v", len(ops), err)
	}
}

// A disk that stops answering makes a step fail at its time limit, and nothing stays
// behind.
func TestHangingDiskIsAborted(t *testing.T) {
	r := record(t, fresh(t))
	mnt, err := r.Mount()
	testenv.Must(t, err)
	testenv.Must(t, r.Stall())
	start := time.Now()
	err = r.Step("write to a dead disk", time.Second, func() error {
		return writeSync(filepath.Join(mnt, "f"), make([]byte, 1<<20))
	})
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("got %v, want the time limit", err)
	}
	if d := time.Since(start); d > 9*time.Second {
		t.Errorf("the step took %v", d)
	}
	r.Close()
	gone(t, r)
}

// The server is killed beneath a mounted, dirty file system: all fails, nothing hangs.
func TestKilledServer(t *testing.T) {
	r := record(t, fresh(t))
	mnt, err := r.Mount()
	testenv.Must(t, err)
	testenv.Must(t, os.WriteFile(filepath.Join(mnt, "f"), make([]byte, 1<<20), 0o644))
	r.Kill()
	if err := r.Step("sync", 20*time.Second, func() error {
		return writeSync(filepath.Join(mnt, "g"), make([]byte, 1<<20))
	}); err == nil || errors.Is(err, ErrTimeout) {
		t.Errorf("fsync on a dead disk: %v", err)
	}
	r.Close()
	gone(t, r)
}

// The parent is killed: the server takes everything down by itself, and what the
// server leaves is swept.
func TestKilledParent(t *testing.T) {
	img := fresh(t)
	if os.Getenv("CRASHDISK_TEST_VICTIM") == "1" {
		r := record(t, img)
		mnt, err := r.Mount()
		testenv.Must(t, err)
		testenv.Must(t, os.WriteFile(filepath.Join(mnt, "f"), make([]byte, 1<<20), 0o644))
		fmt.Println("MOUNTED", r.dir)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	self, err := os.Executable()
	testenv.Must(t, err)
	out, err := Output(60*time.Second, []string{"CRASHDISK_TEST_VICTIM=1"}, self, "-test.run=^TestKilledParent$")
	_, dir, ok := strings.Cut(out, "MOUNTED ")
	if !ok {
		t.Fatalf("the victim did not come so far: %v\n%s", err, out)
	}
	home := filepath.Dir(strings.TrimSpace(dir))
	for i := 0; ; i++ {
		left := fmt.Sprint(mountsBelow(home))
		for _, f := range loops() {
			if strings.HasPrefix(f, home+"/") {
				left += " " + f
			}
		}
		if left == "[]" {
			break
		}
		if i == 300 {
			t.Fatalf("left behind: %s", left)
		}
		time.Sleep(100 * time.Millisecond)
	}
	os.RemoveAll(home)
}

func gone(t *testing.T, r *Recorder) {
	t.Helper()
	if m := mountsBelow(r.dir); len(m) > 0 {
		t.Errorf("still mounted: %v", m)
	}
	for num, f := range loops() {
		if strings.HasPrefix(f, r.dir+"/") {
			t.Errorf("still attached: /dev/loop%d on %s", num, f)
		}
	}
}

// A recorder serves any file system, not only btrfs: raw requests on the device.
func TestRawDevice(t *testing.T) {
	testenv.FUSE(t)
	r := record(t, NewImage(8<<20))
	err := r.Step("raw", StepLimit, func() error {
		f, err := os.OpenFile(r.Device(), os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		buf, err := unix.Mmap(-1, 0, 2*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		defer unix.Munmap(buf)
		for i := range buf {
			buf[i] = 'z'
		}
		if _, err := f.WriteAt(buf, PageSize); err != nil {
			return err
		}
		return f.Sync()
	})
	testenv.Must(t, err)
	ops, err := r.Ops()
	testenv.Must(t, err)
	if s := fmt.Sprint(ops); !strings.HasSuffix(s, "write 4096+8192 flush]") { // setting the loop device up flushes, too
		t.Errorf("recorded %s", s)
	}
}
