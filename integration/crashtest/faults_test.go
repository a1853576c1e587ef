package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

// codeSpace is the exit code of cmd/btrovl for a lack of space.
const codeSpace = 10

// fill takes the free space of the file system at mnt but for about leave bytes, and
// returns what it took.
func fill(t testing.TB, mnt string, leave int64) (file string) {
	t.Helper()
	file = filepath.Join(mnt, "fill")
	f, err := os.Create(file)
	testenv.Must(t, err)
	defer f.Close()
	for chunk, end := int64(32<<20), int64(0); chunk >= 64<<10; {
		// Allocated, so that it is not merged and not compressed; without writing it.
		if err := unix.Fallocate(int(f.Fd()), 0, end, chunk); err != nil {
			chunk /= 2
			continue
		}
		end += chunk
	}
	st, err := f.Stat()
	testenv.Must(t, err)
	testenv.Must(t, f.Truncate(max(0, st.Size()-leave)))
	testenv.Must(t, syncfs(mnt))
	return file
}

// On a file system with ever more room left, update either is refused before it starts,
// fails, or succeeds; the pool is old or new, and nothing is left over.
func TestFullUpdate(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	img := grownUp(t, s)
	slot := newSlot(t)
	tab := &table{}
	defer tab.print(t, "Update on a full file system")
	var refused, failed, done int
	for _, leave := range []int64{0, 1 << 20, 2 << 20, 8 << 20, 64 << 20} {
		pool := mountPool(t, slot, img)
		old, err := readPool(pool)
		testenv.Must(t, err)
		file := fill(t, filepath.Dir(pool), leave)
		out, err := run(t, pool, "update", s.file("2-3.btrovl"))
		have, rerr := readPool(pool)
		testenv.Must(t, rerr)
		which, _ := differ(have, old)
		switch code := exitCode(err); {
		case code == 0:
			done++
			which = 1
			if have.Bases["3"] == "" {
				t.Errorf("%d bytes left: update succeeded and base 3 is not there", leave)
			}
		case code != codeSpace:
			t.Errorf("%d bytes left: exit code %d, want %d: %s", leave, code, codeSpace, out)
		case which != 0:
			t.Errorf("%d bytes left: update failed, and the pool is not the old one:\n%v\n%v", leave, have, old)
		case strings.Contains(out, "needed"):
			refused++
		default:
			t.Logf("%d bytes left: %s", leave, out)
			failed++
		}
		tab.add(fmt.Sprintf("update, %d KiB left", leave>>10), which)
		if parts, _ := filepath.Glob(pool + "/bases/*.partial"); len(parts) > 0 {
			t.Errorf("%d bytes left: a stage is left over: %v", leave, parts)
		}
		// With room again, the same command does it.
		testenv.Must(t, os.Remove(file))
		testenv.Must(t, syncfs(filepath.Dir(pool)))
		if which == 0 {
			if _, err := run(t, pool, "update", s.file("2-3.btrovl")); err != nil {
				t.Errorf("%d bytes left: not even afterwards: %v", leave, err)
			}
		}
		testenv.Must(t, slot.Unmount())
	}
	t.Logf("%d refused with figures before they began, %d failed, %d succeeded", refused, failed, done)
	if refused == 0 || done == 0 {
		t.Error("want both: refusals and successes")
	}
}

// On a full disk a reset must work: it is what a person does about it.
func TestFullReset(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	slot := newSlot(t)
	pool := mountPool(t, slot, grownUp(t, s))
	// The space is taken by what the reset throws away.
	old, err := readPool(pool)
	testenv.Must(t, err)
	file := fill(t, filepath.Dir(pool), 0)
	if err := os.WriteFile(filepath.Join(filepath.Dir(pool), "more"), make([]byte, 1<<20), 0o600); err == nil {
		t.Log("the file system was not quite full")
	}
	for _, args := range [][]string{{"reset", "--keep", "data", "--yes"}, {"rollback"}, {"reset", "--yes"}, {"gc"}} {
		if _, err := run(t, pool, args...); err != nil {
			t.Errorf("on a full disk: %v", err)
		}
	}
	have, err := readPool(pool)
	testenv.Must(t, err)
	if have.Active == old.Active {
		t.Error("the reset did nothing")
	}
	testenv.Must(t, os.Remove(file))
	testenv.Must(t, slot.Unmount())
}

// Through a view of a full file system: writes fail with ENOSPC at the write, copy up
// leaves no half file, and what is there stays readable.
func TestFullView(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	slot := newSlot(t)
	pool := mountPool(t, slot, grownUp(t, s))
	view := viewDir(t)
	mountView(view)(t, pool)
	testenv.Must(t, os.WriteFile(view+"/etc/before", []byte("kept"), 0o644))
	testenv.Must(t, syncPath(view+"/etc/before"))
	file := fill(t, filepath.Dir(pool), 0)

	f, err := os.Create(view + "/etc/large")
	if err == nil {
		var werr error
		block := bytes.Repeat([]byte("x"), 1<<20)
		for i := 0; i < 512 && werr == nil; i++ {
			_, werr = f.Write(block)
		}
		if werr == nil {
			werr = f.Sync()
		}
		if !errors.Is(werr, unix.ENOSPC) {
			t.Errorf("512 MiB written to a full disk: %v, want ENOSPC", werr)
		}
		f.Close()
	} else if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("create on a full disk: %v", err)
	}
	// Copy up shares blocks, so it may succeed; if not, the file is the old one, whole.
	want, err := os.ReadFile(s.file("tree2/usr/lib/stays11"))
	testenv.Must(t, err)
	werr := create(view+"/usr/lib/stays11", []byte("tail"), os.O_APPEND)
	have, err := os.ReadFile(view + "/usr/lib/stays11")
	if err != nil || !(bytes.Equal(have, want) || bytes.Equal(have, append(bytes.Clone(want), "tail"...))) {
		t.Errorf("after an append that ended with %v: %d bytes, %v", werr, len(have), err)
	}
	if b, err := os.ReadFile(view + "/etc/before"); err != nil || string(b) != "kept" {
		t.Errorf("a file from before: %q, %v", b, err)
	}
	// Room again: the view works on without a remount.
	testenv.Must(t, os.Remove(file))
	os.Remove(view + "/etc/large")
	testenv.Must(t, syncfs(filepath.Dir(pool)))
	if err := create(view+"/etc/after", []byte("works"), os.O_CREATE); err != nil {
		t.Errorf("with room again: %v", err)
	}
	umountView(view)(t, pool)
	testenv.Must(t, slot.Unmount())
}

// Commands on a disk whose n-th write fails, and all after it: an error is reported, and
// on the disk is the old pool or the new one.
func TestFaultCommands(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	img := grownUp(t, s)
	slot := newSlot(t)
	tab := &table{}
	defer tab.print(t, "Failing blocks")
	b := newBudget(t, 4*time.Second)
	skips := []int{0, 3, 12, 30}
	if want(t) > 0 {
		skips = nil
		for n := range 12 {
			skips = append(skips, n*n)
		}
	}
	view := viewDir(t)
	all := age(s, view)
	pick := []step{{row: "update", args: []string{"update", s.file("2-3.btrovl")}, again: []int{codeExists}},
		{row: "reset --keep data", args: []string{"reset", "--keep", "data", "--yes"}},
		{row: "backup create", args: []string{"backup", "create"}}, all[5]}
	for i := range pick {
		w := window{step: &pick[i], done: "done"}
		n := 0
		for _, skip := range skips {
			for _, f := range []crashdisk.Fault{
				{On: "write", Skip: skip, Errno: syscall.EIO},
				{On: "write", Skip: skip, Count: 1, Errno: syscall.EIO},
				{On: "flush", Skip: skip / 4, Errno: syscall.EIO},
			} {
				if n++; n > 3 && b.spent(n) { // each kind once at least
					break
				}
				which, err := w.faulty(t, slot, img, f)
				tab.add(w.row, which)
				if err != nil {
					t.Errorf("%s, %+v: %v", w.row, f, err)
				}
			}
		}
	}
}

// faulty runs the step on a failing disk and examines what the disk then holds.
func (w *window) faulty(t testing.TB, slot *crashdisk.Slot, img *crashdisk.Image, f crashdisk.Fault) (which int, err error) {
	t.Helper()
	rec, err := crashdisk.Record(img)
	if err != nil {
		return -1, err
	}
	defer rec.Close() // its errors are those that were asked for
	mnt, err := rec.Mount()
	if err != nil {
		return -1, err
	}
	pool := poolDir(mnt)
	if w.old == nil {
		if w.old, err = readPool(pool); err != nil {
			return -1, err
		}
		// The new state, on a disk that works.
		p := mountPool(t, slot, img)
		if _, err := run(t, p, w.argv(p)...); err != nil {
			return -1, err
		}
		if w.new, err = readPool(p); err != nil {
			return -1, err
		}
		if err := slot.Unmount(); err != nil {
			return -1, err
		}
	}
	if err := rec.Fault(f); err != nil {
		return -1, err
	}
	var cmdErr error
	if err := rec.Step(w.row, limit+time.Minute, func() error { _, cmdErr = run(t, pool, w.argv(pool)...); return nil }); err != nil {
		return -1, err
	}
	ops, err := rec.Ops()
	if err != nil {
		return -1, err
	}
	rec.Abort() // the machine is switched off: nothing more is written
	after, err := rec.Content()
	if err != nil {
		return -1, err
	}
	rec.Close()
	s := crashdisk.State{Image: after, At: len(ops), What: "after the fault"}
	if cmdErr == nil {
		s.Phase = w.done
	}
	return examine(t, slot, *w, s)
}

// A disk that stops answering in the middle of an update: whoever waits for it gets an
// error when the disk is gone, and after a restart the pool is the old one or the new one.
func TestFaultStall(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	img := grownUp(t, s)
	slot := newSlot(t)
	p := mountPool(t, slot, img)
	w := window{step: &step{row: "update", args: []string{"update", s.file("2-3.btrovl")}, again: []int{codeExists}}, done: "done"}
	var err error
	w.old, err = readPool(p)
	testenv.Must(t, err)
	_, err = run(t, p, w.argv(p)...)
	testenv.Must(t, err)
	w.new, err = readPool(p)
	testenv.Must(t, err)
	testenv.Must(t, slot.Unmount())

	rec, err := crashdisk.Record(img)
	testenv.Must(t, err)
	defer rec.Close() // its errors are those that were asked for
	mnt, err := rec.Mount()
	testenv.Must(t, err)
	testenv.Must(t, rec.Fault(crashdisk.Fault{On: "write", Skip: 5, Count: 1, Stall: true}))
	done := make(chan error, 1)
	go func() { _, err := run(t, poolDir(mnt), w.argv(poolDir(mnt))...); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("the update ended on a disk that does not answer: %v", err)
	case <-time.After(700 * time.Millisecond):
	}
	rec.Abort()
	select {
	case err := <-done:
		if err == nil {
			t.Error("the update succeeded on a dead disk")
		}
	case <-time.After(time.Minute):
		t.Fatal("the update hangs although the disk has gone")
	}
	ops, err := rec.Ops()
	testenv.Must(t, err)
	after, err := rec.Content()
	testenv.Must(t, err)
	rec.Close() // again, when the test ends: harmless
	if which, err := examine(t, slot, w, crashdisk.State{Image: after, At: len(ops), What: "after the disk stopped"}); err != nil || which != 0 {
		t.Errorf("state %d: %v", which, err)
	}
}

// Programs that write through a view on a failing disk get an error, at the write or at
// fsync; what was acknowledged before is there after a restart.
func TestFaultView(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	slot := newSlot(t)
	rec, err := crashdisk.Record(grownUp(t, s))
	testenv.Must(t, err)
	defer rec.Close() // its errors are those that were asked for
	mnt, err := rec.Mount()
	testenv.Must(t, err)
	pool, view := poolDir(mnt), viewDir(t)
	testenv.Must(t, rec.Step("mount", limit, func() error { mountView(view)(t, pool); return nil }))
	testenv.Must(t, rec.Step("write", limit, func() error { return create(view+"/usr/kept", []byte("acknowledged"), os.O_CREATE) }))
	testenv.Must(t, rec.Fault(crashdisk.Fault{On: "write", Errno: syscall.EIO}))
	err = rec.Step("write on failing blocks", limit, func() error {
		return create(view+"/usr/bin/changes10", bytes.Repeat([]byte("lost "), 50000), os.O_TRUNC)
	})
	if err == nil {
		t.Error("fsync on failing blocks succeeded")
	}
	t.Logf("the program got: %v", err)
	rec.Abort()
	killViews(t, pool)
	window{step: &step{view: view}}.clear(t, pool)
	after, err := rec.Content()
	testenv.Must(t, err)
	rec.Close()

	mnt, err = slot.Mount(after)
	testenv.Must(t, err)
	if _, err := readPool(poolDir(mnt)); err != nil {
		t.Error(err)
	}
	merged, unmount, err := merge(poolDir(mnt))
	testenv.Must(t, err)
	if b, err := os.ReadFile(merged + "/usr/kept"); err != nil || string(b) != "acknowledged" {
		t.Errorf("what was acknowledged is %q now, %v", b, err)
	}
	want, err := os.ReadFile(s.file("tree2/usr/bin/changes10"))
	testenv.Must(t, err)
	if b, err := os.ReadFile(merged + "/usr/bin/changes10"); err != nil || !(bytes.Equal(b, want) || len(b) == 0 || zeroOr(b, bytes.Repeat([]byte("lost "), 50000))) {
		t.Errorf("the file whose write failed has %d bytes, %v", len(b), err)
	}
	unmount()
	testenv.Must(t, slot.Unmount())
}
