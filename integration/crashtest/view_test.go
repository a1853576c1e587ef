package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes"
)

// A viewOp is one thing that a program does through a view and then makes durable.
type viewOp struct {
	name string
	path string // what it changes
	do   func(root string) error
	// may says whether the path may look like that (nil: it is not there) before the
	// operation was acknowledged; afterwards it must look like done.
	may  func(old, have []byte) bool
	done func(old []byte) []byte
}

// syncPath makes a file or directory durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func create(path string, data []byte, flags int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o640)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// viewOps touch different files, so that each can be judged by itself.
func viewOps() []viewOp {
	big := bytes.Repeat([]byte("new content "), 9000)
	same := func(old []byte) []byte { return old }
	patch := func(old []byte) []byte {
		b := bytes.Clone(old)
		copy(b[50000:], "PATCHED IN PLACE")
		return b
	}
	oldOrNew := func(done func([]byte) []byte) func(old, have []byte) bool {
		return func(old, have []byte) bool {
			n := done(old)
			return equal(have, old) || equal(have, n)
		}
	}
	return []viewOp{
		{name: "create", path: "etc/created",
			do: func(r string) error {
				return errors.Join(create(r+"/etc/created", big, os.O_CREATE|os.O_EXCL), syncPath(r+"/etc"))
			},
			may: func(_, have []byte) bool { return have == nil || bytes.HasPrefix(big, have) || zeroOr(have, big) }, done: func([]byte) []byte { return big }},
		{name: "overwrite in place (copy up)", path: "usr/bin/changes10",
			do: func(r string) error {
				f, err := os.OpenFile(r+"/usr/bin/changes10", os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				if _, err := f.WriteAt([]byte("PATCHED IN PLACE"), 50000); err != nil {
					return err
				}
				return f.Sync()
			},
			may: oldOrNew(patch), done: patch},
		{name: "append (copy up)", path: "usr/bin/changes09",
			do: func(r string) error {
				return create(r+"/usr/bin/changes09", []byte("appended"), os.O_APPEND)
			},
			may:  func(old, have []byte) bool { return bytes.HasPrefix(have, old) && len(have) <= len(old)+8 },
			done: func(old []byte) []byte { return append(bytes.Clone(old), "appended"...) }},
		{name: "rename over", path: "usr/bin/changes11",
			do: func(r string) error {
				tmp := r + "/usr/bin/.tmp"
				return errors.Join(create(tmp, big, os.O_CREATE|os.O_EXCL), os.Rename(tmp, r+"/usr/bin/changes11"), syncPath(r+"/usr/bin"))
			},
			may: oldOrNew(func([]byte) []byte { return big }), done: func([]byte) []byte { return big }},
		{name: "unlink", path: "usr/lib/stays10",
			do: func(r string) error {
				return errors.Join(os.Remove(r+"/usr/lib/stays10"), syncPath(r+"/usr/lib"))
			},
			may: oldOrNew(func([]byte) []byte { return nil }), done: func([]byte) []byte { return nil }},
		{name: "new directory", path: "srv/a/b/file",
			do: func(r string) error {
				if err := os.MkdirAll(r+"/srv/a/b", 0o755); err != nil {
					return err
				}
				return errors.Join(create(r+"/srv/a/b/file", big, os.O_CREATE), syncPath(r+"/srv/a/b"), syncPath(r+"/srv/a"), syncPath(r+"/srv"), syncPath(r))
			},
			may: func(_, have []byte) bool { return have == nil || bytes.HasPrefix(big, have) || zeroOr(have, big) }, done: func([]byte) []byte { return big }},
		{name: "truncate and rewrite", path: "usr/lib/stays09",
			do: func(r string) error { return create(r+"/usr/lib/stays09", []byte("short"), os.O_TRUNC) },
			may: func(old, have []byte) bool {
				return equal(have, old) || (have != nil && bytes.HasPrefix([]byte("short"), have))
			},
			done: func([]byte) []byte { return []byte("short") }},
		{name: "chmod (copy up)", path: "usr/lib/stays08",
			do: func(r string) error {
				return errors.Join(os.Chmod(r+"/usr/lib/stays08", 0o600), syncPath(r+"/usr/lib/stays08"))
			},
			may: oldOrNew(same), done: same},
		{name: "replace a directory", path: "usr/share/doc/03",
			do: func(r string) error {
				d := r + "/usr/share/doc"
				if err := os.RemoveAll(d); err != nil {
					return err
				}
				return errors.Join(os.Mkdir(d, 0o755), create(d+"/03", big, os.O_CREATE), syncPath(d), syncPath(r+"/usr/share"))
			},
			may: func(old, have []byte) bool {
				return equal(have, old) || have == nil || bytes.HasPrefix(big, have) || zeroOr(have, big)
			},
			done: func([]byte) []byte { return big }},
	}
}

func equal(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// zeroOr says whether have is a part of want in which blocks not yet written are zero.
func zeroOr(have, want []byte) bool {
	if len(have) > len(want) {
		return false
	}
	for i := range have {
		if have[i] != want[i] && have[i] != 0 {
			return false
		}
	}
	return true
}

// Programs write through a view and fsync; no cut loses what was acknowledged, and no
// file shows a half-made copy up. The kernel's overlayfs reads the layers back.
func TestCrashView(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	slot := newSlot(t)
	mnt, err := slot.Mount(newDisk(t))
	testenv.Must(t, err)
	for _, args := range [][]string{{"init", poolDir(mnt)}, {"base", "import", "1", s.file("tree1")}, {"overlay", "add", "system", "--path", "/"}} {
		_, err := run(t, poolDir(mnt), args...)
		testenv.Must(t, err)
	}
	testenv.Must(t, bootOnly(poolDir(mnt)))
	testenv.Must(t, slot.Remount())
	img, err := slot.Content()
	testenv.Must(t, err)
	testenv.Must(t, slot.Unmount())

	ops := viewOps()
	old := map[string][]byte{}
	for _, op := range ops {
		if b, err := os.ReadFile(s.file("tree1/" + op.path)); err == nil {
			old[op.path] = b
		}
	}
	plan, from := recordView(t, img, ops)
	plan.Max = 40
	if n := want(t); n > 0 {
		plan.Max = n / 8
	}
	states, err := plan.States()
	testenv.Must(t, err)
	tab, b, n := &table{}, newBudget(t, 3*time.Second), 0
	for st := range states {
		acked := -1
		fmt.Sscanf(st.Phase, "ack %d", &acked)
		which, err := judgeView(slot, st, ops, old, acked)
		tab.add("writes through a view", which)
		if err != nil {
			t.Errorf("%v (%s): %v", st, st.Phase, err)
		}
		if n++; b.spent(n) {
			break
		}
	}
	tab.print(t, "Writes through a view (new: all that was acknowledged is there)")
	t.Logf("%d operations recorded", len(plan.Ops)-from)
}

// recordView does the operations through a view, and marks each when it is acknowledged.
func recordView(t *testing.T, img *crashdisk.Image, ops []viewOp) (crashdisk.Plan, int) {
	t.Helper()
	rec, err := crashdisk.Record(img)
	testenv.Must(t, err)
	defer func() {
		if err := rec.Close(); err != nil {
			t.Error(err)
		}
	}()
	mnt, err := rec.Mount()
	testenv.Must(t, err)
	view := viewDir(t)
	testenv.Must(t, rec.Step("mount", limit, func() error { mountView(view)(t, poolDir(mnt)); return syncfs(mnt) }))
	testenv.Must(t, rec.Mark("mounted"))
	before, err := rec.Ops()
	testenv.Must(t, err)
	for i, op := range ops {
		if err := rec.Step(op.name, limit, func() error { return op.do(view) }); err != nil {
			t.Errorf("%s: %v", op.name, err)
		}
		testenv.Must(t, rec.Mark(fmt.Sprintf("ack %d", i)))
	}
	testenv.Must(t, rec.Step("umount", limit, func() error { umountView(view)(t, poolDir(mnt)); return nil }))
	all, err := rec.Ops()
	testenv.Must(t, err)
	return crashdisk.Plan{Base: img, Ops: all, From: len(before), Seed: 3}, len(before)
}

// judgeView reads one state's layers through the kernel's overlayfs.
func judgeView(slot *crashdisk.Slot, st crashdisk.State, ops []viewOp, old map[string][]byte, acked int) (which int, err error) {
	mnt, err := slot.Mount(st.Image)
	if err != nil {
		return -1, err
	}
	defer func() {
		if uerr := slot.Unmount(); err == nil {
			err = uerr
		}
	}()
	merged, unmount, err := merge(poolDir(mnt))
	if err != nil {
		return -1, err
	}
	defer unmount()
	which = 0
	for i, op := range ops {
		have, err := os.ReadFile(filepath.Join(merged, op.path))
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			have = nil
		case err != nil:
			return -1, fmt.Errorf("%s: %w", op.name, err)
		case have == nil:
			have = []byte{}
		}
		was := old[op.path]
		switch {
		case i <= acked:
			which = 1
			if !equal(have, op.done(was)) {
				return -1, fmt.Errorf("%s was acknowledged; %s has %d bytes now, had %d before", op.name, op.path, len(have), len(was))
			}
		case !op.may(was, have) && !equal(have, op.done(was)):
			return -1, fmt.Errorf("%s was under way; %s has %d bytes now, had %d before: it shows something in between", op.name, op.path, len(have), len(was))
		}
	}
	return which, nil
}

// merge mounts the active deployment with the kernel's overlayfs, read-only.
func merge(pool string) (dir string, unmount func(), err error) {
	p, err := subvolumes.Open(pool)
	if err != nil {
		return "", nil, err
	}
	defer p.Close()
	r, err := p.Record()
	if err != nil {
		return "", nil, err
	}
	d := r.Active()
	if d == nil {
		return "", nil, errors.New("no deployment")
	}
	lower := p.OverlayPath(*d.Overlay("system")) + "/upper:" + p.BasePath(d.Base)
	dir = filepath.Join(filepath.Dir(pool), "merged")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir="+lower); err != nil {
		return "", nil, fmt.Errorf("overlayfs does not mount the layers: %w", err)
	}
	return dir, func() { unix.Unmount(dir, 0) }, nil
}
