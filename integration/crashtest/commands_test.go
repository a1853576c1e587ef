package crashtest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

// Exit codes of cmd/btrovl (docs/cli.md) that a repeated command may end with.
const (
	codeUsage   = 2
	codeUnknown = 8
	codeExists  = 9
)

// youth is a device from the factory to its first resets.
func youth(s shipped, view string) []step {
	return []step{
		{row: "init", args: []string{"init", "POOL"}, again: []int{codeExists}},
		{row: "base import", args: []string{"base", "import", "1", s.file("tree1")}, again: []int{codeExists}},
		{row: "overlay add", args: []string{"overlay", "add", "system", "--path", "/"}, again: []int{codeExists}},
		{row: "overlay add", args: []string{"overlay", "add", "data", "--path", "/var/lib/app", "--path", "/home"}, again: []int{codeExists}},
		{row: "overlay add", args: []string{"overlay", "add", "conf", "--path", "/etc", "--follow-base"}, again: []int{codeExists}},
		{row: "key add", args: []string{"key", "add", s.file("vendor.pub")}},
		{row: "mount (first deployment)", args: []string{"mount", view}, view: view, repeat: bootOnly},
		{row: "update", args: []string{"update", s.file("1-2.btrovl")}, again: []int{codeExists},
			before: both(write("data", "var/lib/app/db", "rows"), write("system", "usr/bin/local", "#!/bin/sh"), write("conf", "etc/app.conf", "a = 1"))},
		{row: "boot (counts a try)", args: []string{"boot", view}, view: view, repeat: bootOnly},
		{row: "mark-good", args: []string{"mark-good"}, before: write("conf", "etc/app.conf", "a = 2")},
		{row: "backup create", args: []string{"backup", "create"}, before: write("data", "var/lib/app/db", "more rows")},
		{row: "reset --keep data", args: []string{"reset", "--keep", "data", "--yes"}},
		{row: "restore", args: []string{"restore", "data"}, before: write("data", "var/lib/app/db", "broken")},
		{row: "rollback", args: []string{"rollback"}},
		{row: "rollback", args: []string{"rollback"}},
	}
}

// age is the same device later: an update beneath a live view that fails to prove
// itself, and what housekeeping there is.
func age(s shipped, view string) []step {
	return []step{
		{row: "update (live view)", args: []string{"update", s.file("2-3.btrovl")}, again: []int{codeExists},
			before: write("data", "home/letter", "dear"), live: view},
		{row: "boot (counts a try)", args: []string{"boot", view}, view: view, repeat: bootOnly},
		{row: "boot (counts a try)", args: []string{"boot", view}, view: view, repeat: bootOnly},
		{row: "boot (last try)", args: []string{"boot", view}, view: view, repeat: bootOnly},
		{row: "boot (falls back)", args: []string{"boot", view}, view: view, repeat: bootOnly},
		{row: "overlay remove", args: []string{"overlay", "remove", "conf", "--yes"}, again: []int{codeUnknown}},
		{row: "gc", args: []string{"gc"}, before: write("system", "etc/motd", "hello")},
		{row: "base import", args: []string{"base", "import", "4", s.file("tree3")}, again: []int{codeExists}},
		{row: "base remove", args: []string{"base", "remove", "4"}, again: []int{codeUnknown}},
		{row: "reset --to-factory", args: []string{"reset", "--to-factory", "--yes"}},
		{row: "rollback", args: []string{"rollback"}},
		{row: "update --next-boot", args: []string{"update", "--next-boot", s.file("2-3.btrovl")}, again: []int{codeExists},
			live: view},
		{row: "rollback (ends a trial)", args: []string{"rollback"}},
		{row: "gc", args: []string{"gc"}},
		{row: "key revoke", args: []string{"key", "revoke", "0123456789ABCDEF", "--reason", "a test"}},
		{row: "update (brings keys)", args: []string{"update", s.file("keys.btrovl")}, again: []int{codeExists}},
		{row: "backup remove", args: []string{"backup", "remove", "data", "BACKUP", "--yes"}, again: []int{codeUnknown}},
		{row: "doctor --rebuild", args: []string{"doctor", "--rebuild"}, before: loseState, again: []int{codeUsage}},
	}
}

// grownUp returns a disk with the device of youth after its first backup.
func grownUp(t testing.TB, s shipped) *crashdisk.Image {
	t.Helper()
	made.grown.Do(func() {
		slot, err := crashdisk.NewSlot()
		testenv.Must(t, err)
		defer slot.Close()
		mnt, err := slot.Mount(newDisk(t))
		testenv.Must(t, err)
		pool := poolDir(mnt)
		for _, st := range youth(s, "") {
			if st.before != nil {
				st.before(t, pool)
			}
			if st.repeat != nil {
				testenv.Must(t, st.repeat(pool))
			} else {
				_, err := run(t, pool, st.argv(pool)...)
				testenv.Must(t, err)
			}
			if st.row == "backup create" {
				break
			}
		}
		testenv.Must(t, slot.Remount())
		img, err := slot.Content()
		testenv.Must(t, err)
		testenv.Must(t, slot.Unmount())
		made.img = img
	})
	if made.img == nil {
		t.Fatal("the device could not be made: see the first test that needed it")
	}
	return made.img.Clone()
}

func newDisk(t testing.TB) *crashdisk.Image {
	t.Helper()
	// Metadata once: a second copy would hide what a torn write does.
	img, err := crashdisk.Format(256<<20, "-m", "single")
	testenv.Must(t, err)
	return img
}

// Every command that changes a pool, cut at every point.
func TestCrashCommands(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	tab := &table{}
	defer tab.print(t, "Power cuts")
	b := newBudget(t, 9*time.Second)
	max := 7
	if n := want(t); n > 0 {
		max = n / 7 // many commands have fewer states than that
	}
	// Two disks, each with an identity of its own, so that both cores work.
	t.Run("lives", func(t *testing.T) {
		t.Run("youth", func(t *testing.T) {
			t.Parallel()
			attackLife(t, newDisk(t), youth(s, viewDir(t)), max, b, tab)
		})
		t.Run("age", func(t *testing.T) {
			t.Parallel()
			attackLife(t, grownUp(t, s), age(s, viewDir(t)), max, b, tab)
		})
	})
	if total := tab.total(); total.neither > 0 {
		t.Errorf("%d of %d states are neither old nor new", total.neither, total.states)
	}
}

func viewDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(testenv.Dir(t), "view")
	testenv.Must(t, os.Mkdir(dir, 0o755))
	return dir
}

func attackLife(t *testing.T, img *crashdisk.Image, steps []step, max int, b budget, tab *table) {
	l := live(t, img, steps)
	slot := newSlot(t)
	for _, w := range l.wins {
		start := time.Now()
		l.attack(t, slot, w, max, b, tab)
		t.Logf("%s: %d operations, %v", w.row, w.to-w.from, time.Since(start).Round(time.Millisecond))
	}
}
