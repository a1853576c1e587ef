package crashtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	keys "github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

// shipped is what the maker delivers: trees, bundles, its key.
type shipped struct{ dir string }

func (s shipped) file(name string) string { return filepath.Join(s.dir, name) }

var made struct {
	ship  sync.Once
	s     shipped
	grown sync.Once
	img   *crashdisk.Image
}

// ship makes three versions of a system, and bundles from each to the next; once for
// all tests.
func ship(t testing.TB) shipped {
	t.Helper()
	testenv.Program(t)
	made.ship.Do(func() {
		s := shipped{testenv.ProcessDir(t)}
		maker := func(args ...string) {
			t.Helper()
			_, err := run(t, "/nonexistent", args...)
			testenv.Must(t, err)
		}
		maker("bundle", "keygen", s.file("vendor"), "--no-password")
		maker("bundle", "keygen", s.file("next"), "--no-password")
		for n := 1; n <= 3; n++ {
			writeTree(t, s.file(fmt.Sprintf("tree%d", n)), n)
		}
		bundle := func(n int, file string, more ...string) {
			t.Helper()
			maker(append([]string{"bundle", "create", "--from", fmt.Sprintf("%d=%s", n, s.file(fmt.Sprintf("tree%d", n))),
				"--to", fmt.Sprintf("%d=%s", n+1, s.file(fmt.Sprintf("tree%d", n+1))),
				"--key", s.file("vendor.key"), "-o", s.file(file)}, more...)...)
		}
		bundle(1, "1-2.btrovl")
		bundle(2, "2-3.btrovl")
		// The vendor's key hands over to the next one.
		ring := new(keys.Keyring)
		testenv.Must(t, ring.AddFile(s.file("vendor.pub")))
		bundle(2, "keys.btrovl", "--add-key", s.file("next.pub"), "--revoke-key", ring.Keys()[0].ID)
		made.s = s
	})
	if made.s.dir == "" {
		t.Fatal("the bundles could not be made: see the first test that needed them")
	}
	return made.s
}

// A step is one command in the life of a device.
type step struct {
	row    string
	args   []string
	before func(t testing.TB, pool string) // prepares; durable before the command begins
	again  []int                           // exit codes of the command when it had been done already (0 is always right)
	repeat func(pool string) error         // what a repetition runs instead of args
	view   string                          // where it mounts a view
	live   string                          // where a view is mounted while it runs
}

// argv is the command line; POOL stands for the pool, BACKUP for the newest backup of
// the overlay data.
func (s *step) argv(pool string) []string {
	args := slices.Clone(s.args)
	for i, a := range args {
		switch a {
		case "POOL":
			args[i] = pool
		case "BACKUP":
			args[i] = newestBackup(pool)
		}
	}
	return args
}

func newestBackup(pool string) string {
	p, err := subvolumes.Open(pool)
	if err != nil {
		return "none"
	}
	defer p.Close()
	b, err := reset.Find(p, "data", "")
	if err != nil {
		return "none"
	}
	return b.Name
}

// loseState takes the record away, and what it was before, as a broken disk may.
func loseState(t testing.TB, pool string) {
	t.Helper()
	for _, name := range []string{"state", "state.old", "state.new"} {
		if err := os.Remove(filepath.Join(pool, name)); !errors.Is(err, os.ErrNotExist) {
			testenv.Must(t, err)
		}
	}
}

// A window is a recorded step: what the pool was before and after, and which
// operations of the recording belong to it.
type window struct {
	*step
	from, to int
	old, new *poolState
	done     string // the mark after which only the new state is right
}

// A life is a recording of many commands, one after another, on one disk.
type life struct {
	plan crashdisk.Plan
	wins []window
}

// poolDir is where the pool lies on a disk that is mounted at mnt.
func poolDir(mnt string) string { return filepath.Join(mnt, "pool") }

// live records the steps, from a disk that holds what img holds.
func live(t testing.TB, img *crashdisk.Image, steps []step) *life {
	t.Helper()
	rec, err := crashdisk.Record(img)
	testenv.Must(t, err)
	closed := false
	defer func() {
		if !closed {
			rec.Close() // after a failure that has been reported
		}
	}()
	mnt, err := rec.Mount()
	testenv.Must(t, err)
	pool := poolDir(mnt)
	l := &life{plan: crashdisk.Plan{Base: img, Seed: 11}}
	mark := func(name string) int {
		t.Helper()
		testenv.Must(t, rec.Mark(name))
		ops, err := rec.Ops()
		testenv.Must(t, err)
		return len(ops)
	}
	state := func() (s *poolState) {
		t.Helper()
		testenv.Must(t, rec.Step("read the pool", limit, func() (err error) { s, err = readPool(pool); return err }))
		return s
	}
	for i := range steps {
		st := &steps[i]
		w := window{step: st, done: fmt.Sprintf("done %d", i)}
		if st.before != nil {
			testenv.Must(t, rec.Step("prepare "+st.row, limit, func() error { st.before(t, pool); return syncfs(mnt) }))
		}
		if st.live != "" {
			testenv.Must(t, rec.Step("mount", limit, func() error { mountView(st.live)(t, pool); return syncfs(mnt) }))
		}
		w.old = state()
		w.from = mark(fmt.Sprintf("begin %d", i))
		testenv.Must(t, rec.Step(st.row, limit+time.Minute, func() error {
			if _, err := run(t, pool, st.argv(pool)...); err != nil {
				return fmt.Errorf("%s: %w", st.row, err)
			}
			return nil
		}))
		mark(w.done)
		w.new = state()
		if dir := st.view + st.live; dir != "" {
			testenv.Must(t, rec.Step("umount", limit, func() error { umountView(dir)(t, pool); return nil }))
		}
		w.to = mark(fmt.Sprintf("end %d", i))
		l.wins = append(l.wins, w)
	}
	testenv.Must(t, rec.Unmount())
	l.plan.Ops, err = rec.Ops()
	testenv.Must(t, err)
	closed = true
	testenv.Must(t, rec.Close())
	return l
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// write puts files into an overlay of the active deployment, as a view would.
func write(overlay, path, content string) func(t testing.TB, pool string) {
	return func(t testing.TB, pool string) {
		t.Helper()
		p, err := subvolumes.Open(pool)
		testenv.Must(t, err)
		defer p.Close()
		r, err := p.Record()
		testenv.Must(t, err)
		ref := r.Active().Overlay(overlay)
		file := filepath.Join(p.OverlayPath(*ref), "upper", path)
		testenv.Must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		testenv.Must(t, os.WriteFile(file, []byte(content), 0o644))
	}
}

func both(fns ...func(testing.TB, string)) func(testing.TB, string) {
	return func(t testing.TB, pool string) {
		for _, f := range fns {
			f(t, pool)
		}
	}
}

// mountView and umountView have a view of the pool at dir while a step runs.
func mountView(dir string) func(testing.TB, string) {
	return func(t testing.TB, pool string) {
		_, err := run(t, pool, "mount", dir)
		testenv.Must(t, err)
	}
}

func umountView(dir string) func(testing.TB, string) {
	return func(t testing.TB, pool string) {
		_, err := run(t, pool, "umount", dir)
		testenv.Must(t, err)
	}
}

// bootOnly is what boot does to the pool, without the mount.
func bootOnly(pool string) error {
	p, err := subvolumes.Open(pool)
	if err != nil {
		return err
	}
	defer p.Close()
	w, err := p.Lock(context.Background(), "test", time.Minute)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.EnsureDeployment(context.Background(), ""); err != nil {
		return err
	}
	_, err = w.Boot(context.Background())
	return err
}

// exitCode returns the exit code that an error carries, -1 if it has none.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// attack examines the states of one window and adds them to the table under the
// step's row. It returns states that a second crash can begin with.
func (l *life) attack(t testing.TB, slot *crashdisk.Slot, w window, max int, b budget, tab *table) (mid []crashdisk.State) {
	t.Helper()
	plan, err := l.plan.Window(w.from, w.to)
	testenv.Must(t, err)
	plan.Max = max
	states, err := plan.States()
	testenv.Must(t, err)
	n := 0
	for s := range states {
		which, err := examine(t, slot, w, s)
		tab.add(w.row, which)
		if err != nil {
			t.Errorf("%s, %v: %v", w.row, s, err)
			if t.Failed() && n > 20 {
				return mid
			}
		}
		if which == 0 && s.Phase != w.done && len(mid) < 64 {
			mid = append(mid, s)
		}
		if n++; b.spent(n) {
			break
		}
	}
	return mid
}

// examine mounts one state and checks all that is promised of it. It returns which
// state it is: 0 old, 1 new, -1 neither.
func examine(t testing.TB, slot *crashdisk.Slot, w window, s crashdisk.State) (int, error) {
	t.Helper()
	return onDisk(slot, s.Image, func(pool string, have *poolState) (int, error) {
		which, diff := differ(have, w.old, w.new)
		switch {
		case diff != "":
			return -1, errors.New("neither old nor new:\n" + diff)
		case which == 0 && s.Phase == w.done && w.old.String() != w.new.String():
			return -1, errors.New("the command had returned, and its work is lost")
		}
		return which, w.recover(t, pool, have, which, s.At)
	})
}

// recover does what a person may do after a crash, and checks that it works: the
// command again, another command, garbage collection; in three orders, by turns.
func (w window) recover(t testing.TB, pool string, have *poolState, which, turn int) error {
	t.Helper()
	if have.Roles == noPool || have.Roles == stateLost {
		_, err := w.doAgain(t, pool, which)
		return err
	}
	if err := sound(pool); err != nil {
		return err
	}
	switch {
	case turn%3 == 1: // garbage first
		if err := w.collect(t, pool, have); err != nil {
			return err
		}
	case turn%3 == 2 && have.Active != "": // something else instead
		if _, err := run(t, pool, "reset", "--keep", "data", "--yes"); err != nil {
			return fmt.Errorf("another command afterwards: %w", err)
		}
		after, err := readPool(pool)
		if err != nil {
			return fmt.Errorf("after a reset: %w", err)
		}
		return w.collect(t, pool, after)
	}
	after, err := w.doAgain(t, pool, which)
	if err != nil {
		return err
	}
	return w.collect(t, pool, after)
}

// collect removes garbage: all of it, and nothing else.
func (w window) collect(t testing.TB, pool string, before *poolState) error {
	t.Helper()
	if _, err := run(t, pool, "gc"); err != nil {
		return err
	}
	after, err := readPool(pool)
	if err != nil {
		return fmt.Errorf("after gc: %w", err)
	}
	if err := kept(before, after); err != nil {
		return fmt.Errorf("gc: %w", err)
	}
	return noGarbage(pool)
}

// doAgain repeats the command after a crash. From the old state it must lead to the new.
func (w window) doAgain(t testing.TB, pool string, which int) (*poolState, error) {
	t.Helper()
	var err error
	if w.repeat != nil {
		err = w.repeat(pool)
	} else {
		_, err = run(t, pool, w.argv(pool)...)
	}
	if code := exitCode(err); code != 0 && (which == 0 || !slices.Contains(w.again, code)) {
		return nil, fmt.Errorf("the command repeated in state %d (exit code %d): %w", which, code, err)
	}
	after, err := readPool(pool)
	if err != nil {
		return nil, fmt.Errorf("after the command was repeated: %w", err)
	}
	if which == 0 {
		if err := kept(w.new, after); err != nil { // garbage may have been collected before
			return nil, fmt.Errorf("the command repeated does not lead to the new state: %w", err)
		}
		if after.Roles != w.new.Roles {
			return nil, fmt.Errorf("the command repeated leads to %s, the first time to %s", after.Roles, w.new.Roles)
		}
	}
	return after, nil
}

// sound fails if the pool's own check finds an error in it.
func sound(pool string) error {
	p, err := subvolumes.Open(pool)
	if err != nil {
		return err
	}
	defer p.Close()
	findings, err := p.Check(context.Background(), false)
	if err != nil {
		return fmt.Errorf("doctor: %w", err)
	}
	for _, f := range findings {
		if f.Severity == "error" {
			return fmt.Errorf("doctor finds an error: %+v", f)
		}
	}
	return nil
}

// noGarbage fails if garbage collection has left something.
func noGarbage(pool string) error {
	p, err := subvolumes.Open(pool)
	if err != nil {
		return err
	}
	defer p.Close()
	left, err := p.Garbage(context.Background())
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("gc has left %+v", left)
	}
	if parts, _ := filepath.Glob(filepath.Join(pool, "bases", "*.partial")); len(parts) > 0 {
		return fmt.Errorf("gc has left %v", parts)
	}
	return nil
}
