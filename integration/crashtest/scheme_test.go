package crashtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

// What updaters do that trust stock tools: receive the new version, exchange it with
// the current one by rename, make the rename durable by fsync of the directory. The
// names are then on the disk while the files' data is not: some states show neither
// version. This is why btrovl's order has a syncfs and a digest in it, and it shows that
// this harness would see it if they were left out.
func TestCrashStockScheme(t *testing.T) {
	testenv.FUSE(t)
	tool := testenv.Command(t, "btrfs")
	btrfs := func(args ...string) {
		t.Helper()
		testenv.Must(t, crashdisk.Command(limit, tool, args...))
	}
	disk, err := crashdisk.Format(256<<20, "-m", "single")
	testenv.Must(t, err)
	slot := newSlot(t)

	// The maker: two versions, and the stream between them.
	dir, err := slot.Mount(disk)
	testenv.Must(t, err)
	stream := filepath.Join(testenv.Dir(t), "stream")
	full := stream + ".full"
	btrfs("-q", "subvolume", "create", dir+"/work")
	writeTree(t, dir+"/work", 1)
	btrfs("-q", "subvolume", "snapshot", "-r", dir+"/work", dir+"/1")
	testenv.Must(t, os.RemoveAll(dir+"/work/usr/lib/v1"))
	writeTree2(t, dir+"/work")
	btrfs("-q", "subvolume", "snapshot", "-r", dir+"/work", dir+"/2")
	btrfs("-q", "send", "-f", full, dir+"/1")
	btrfs("-q", "send", "-p", dir+"/1", "-f", stream, dir+"/2")
	testenv.Must(t, slot.Unmount())

	// The device: version 1 as "current".
	disk, err = crashdisk.Format(256<<20, "-m", "single")
	testenv.Must(t, err)
	dir, err = slot.Mount(disk)
	testenv.Must(t, err)
	btrfs("-q", "receive", "-f", full, dir)
	testenv.Must(t, os.Rename(dir+"/1", dir+"/current"))
	old := treeDigest(t, dir+"/current")
	unix.Sync()
	testenv.Must(t, slot.Remount())
	disk, err = slot.Content()
	testenv.Must(t, err)
	testenv.Must(t, slot.Unmount())

	tab := &table{}
	for range 5 {
		// Whoever calls sync(2) on this machine at the wrong moment saves the scheme, and
		// another test may: so it gets several chances to fail.
		attackScheme(t, slot, disk, stream, old, tab)
		if tab.total().neither > 0 {
			break
		}
	}
	tab.print(t, "Comparison: without the order of durable steps")
	if tab.total().neither == 0 {
		if want(t) == 0 { // thinned: a sync by another process can hide the defect in a recording
			t.Log("the plain scheme survived the few states of this run; make test-crash insists")
			return
		}
		t.Error("the plain scheme survived every state: this harness does not see what it must see")
	}
}

// attackScheme records the scheme once and examines its states.
func attackScheme(t *testing.T, slot *crashdisk.Slot, disk *crashdisk.Image, stream, old string, tab *table) {
	t.Helper()
	rec, err := crashdisk.Record(disk)
	testenv.Must(t, err)
	defer func() { testenv.Must(t, rec.Close()) }()
	mnt, err := rec.Mount()
	testenv.Must(t, err)
	testenv.Must(t, rec.Mark("receive"))
	begin, err := rec.Ops()
	testenv.Must(t, err)
	testenv.Must(t, rec.Step("update", limit, func() error {
		if err := crashdisk.Command(limit, "btrfs", "-q", "receive", "-f", stream, mnt); err != nil {
			return err
		}
		if err := unix.Renameat2(unix.AT_FDCWD, mnt+"/2", unix.AT_FDCWD, mnt+"/current", unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		d, err := os.Open(mnt)
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Sync()
	}))
	testenv.Must(t, rec.Mark("done"))
	new := treeDigest(t, mnt+"/current")
	testenv.Must(t, rec.Unmount()) // writes what was left: states within that count as well
	ops, err := rec.Ops()
	testenv.Must(t, err)

	max, budget := 40, newBudget(t, 3*time.Second)
	if want(t) > 0 {
		max = 256
	}
	states, err := crashdisk.Plan{Base: disk, Ops: ops, From: len(begin), Max: max, Seed: 5}.States()
	testenv.Must(t, err)
	n := 0
	for s := range states {
		tab.add("stock `btrfs receive`, rename exchange, fsync", judgeScheme(t, slot, s, old, new))
		if n++; budget.spent(n) {
			break
		}
	}
}

// judgeScheme says what "current" is in a state: 0 the old version, 1 the new one, -1 neither.
func judgeScheme(t *testing.T, slot *crashdisk.Slot, s crashdisk.State, old, new string) int {
	t.Helper()
	dir, err := slot.Mount(s.Image)
	if err != nil {
		return -1
	}
	defer func() { testenv.Must(t, slot.Unmount()) }()
	switch sum, err := openDigest(dir + "/current"); {
	case err != nil:
	case sum == old:
		return 0
	case sum == new:
		return 1
	}
	return -1
}

// writeTree2 turns version 1 into version 2, with new files instead of overwritten ones.
func writeTree2(t testing.TB, dir string) {
	t.Helper()
	for _, d := range []string{"usr/bin", "usr/share", "etc/release", "usr/lib", "var", "home", "etc"} {
		testenv.Must(t, os.RemoveAll(filepath.Join(dir, d)))
	}
	writeTree(t, dir, 2)
}

func treeDigest(t testing.TB, dir string) string {
	t.Helper()
	sum, err := openDigest(dir)
	testenv.Must(t, err)
	return sum
}

func openDigest(dir string) (string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return "", fmt.Errorf("no tree: %w", err)
	}
	defer f.Close()
	return digest(f)
}
