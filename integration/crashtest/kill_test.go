package crashtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

// Every command, killed before its n-th state-changing system call.
func TestKillCommands(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	tab := &table{}
	defer tab.print(t, "SIGKILL before the n-th state-changing system call")
	b := newBudget(t, 7*time.Second)
	max := 5
	if want(t) > 0 {
		max = 30
	}
	t.Run("lives", func(t *testing.T) {
		t.Run("youth", func(t *testing.T) {
			t.Parallel()
			killLife(t, newDisk(t), youth(s, viewDir(t)), max, b, tab)
		})
		t.Run("age", func(t *testing.T) {
			t.Parallel()
			killLife(t, grownUp(t, s), age(s, viewDir(t)), max, b, tab)
		})
	})
}

// killLife goes through a life. Before each step the disk is kept; the step is killed
// again and again on copies of it, then done.
func killLife(t *testing.T, img *crashdisk.Image, steps []step, max int, b budget, tab *table) {
	slot := newSlot(t)
	for i := range steps {
		w := window{step: &steps[i]}
		var err error
		if w.before != nil {
			pool := mountPool(t, slot, img)
			w.before(t, pool)
			testenv.Must(t, slot.Remount())
			img, err = slot.Content()
			testenv.Must(t, err)
			testenv.Must(t, slot.Unmount())
		}
		// The step to its end: how many calls it makes, and what the new state is.
		pool := mountPool(t, slot, img)
		w.old, err = readPool(pool)
		testenv.Must(t, err)
		whole, err := w.killAt(t, pool, 0)
		testenv.Must(t, err)
		if whole.Exit != 0 {
			t.Fatalf("%s: exit code %d\n%s", w.row, whole.Exit, whole.Output)
		}
		w.clear(t, pool)
		w.new, err = readPool(pool)
		testenv.Must(t, err)
		testenv.Must(t, slot.Remount())
		next, err := slot.Content()
		testenv.Must(t, err)
		testenv.Must(t, slot.Unmount())

		for k, n := range killPoints(whole.Calls, max) {
			if b.spent(k) {
				break
			}
			which, call, err := w.killed(t, slot, img, n)
			tab.add(w.row, which)
			if err != nil {
				t.Errorf("%s, killed before call %d of %d (%s): %v", w.row, n, len(whole.Calls), call, err)
			}
		}
		img = next
	}
}

// killPoints chooses among the calls: before and after the renames, which commit
// things, and others spread over all.
func killPoints(calls []string, max int) []int {
	var out []int
	add := func(n int) {
		if n >= 1 && n <= len(calls) && len(out) < max && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	for i, c := range calls {
		if strings.HasPrefix(c, "rename") && len(out) < max*2/3 {
			add(i + 1)
			add(i + 2)
		}
	}
	for k := 1; len(out) < min(len(calls), max); k++ {
		add(1 + (k*7919)%len(calls))
	}
	return out
}

func mountPool(t testing.TB, slot *crashdisk.Slot, img *crashdisk.Image) string {
	t.Helper()
	mnt, err := slot.Mount(img)
	testenv.Must(t, err)
	return poolDir(mnt)
}

func (w window) killAt(t testing.TB, pool string, n int) (crashdisk.Traced, error) {
	if w.live != "" {
		mountView(w.live)(t, pool)
	}
	return crashdisk.KillAt(n, limit, env(pool), testenv.Program(t), w.argv(pool)...)
}

// clear takes down a view that a step has mounted, whoever has died.
func (w window) clear(t testing.TB, pool string) {
	t.Helper()
	dir := w.view + w.live
	if dir == "" {
		return
	}
	run(t, pool, "umount", dir) // fails where the daemon was killed
	for i := 0; i < 100 && unix.Unmount(dir, unix.MNT_DETACH) == nil; i++ {
	}
}

// killed kills the step before its n-th call and checks what is left.
func (w window) killed(t testing.TB, slot *crashdisk.Slot, img *crashdisk.Image, n int) (which int, call string, err error) {
	t.Helper()
	pool := mountPool(t, slot, img)
	defer func() {
		if uerr := slot.Unmount(); err == nil {
			err = uerr
		}
	}()
	defer w.clear(t, pool)
	tr, err := w.killAt(t, pool, n)
	if err != nil {
		return -1, "", err
	}
	if len(tr.Calls) > 0 {
		call = tr.Calls[len(tr.Calls)-1]
	}
	w.clear(t, pool)
	have, err := readPool(pool)
	if err != nil {
		return -1, call, err
	}
	which, diff := differ(have, w.old, w.new)
	if diff != "" {
		return -1, call, errors.New("neither old nor new:\n" + diff)
	}
	if !tr.Killed && which == 0 && w.old.String() != w.new.String() {
		return -1, call, errors.New("it ended by itself, and nothing is done")
	}
	return which, call, w.recover(t, pool, have, which, n)
}

// The daemon of a view is killed while programs write through it. Whatever was
// acknowledged by fsync is there after mounting again.
func TestKillDaemon(t *testing.T) {
	testenv.FUSE(t)
	pool := filepath.Join(testenv.Btrfs(t), "pool")
	view := viewDir(t)
	tree := t.TempDir()
	writeTree(t, tree, 1)
	for _, args := range [][]string{{"init", pool}, {"base", "import", "1", tree}, {"overlay", "add", "system", "--path", "/"},
		{"overlay", "add", "data", "--path", "/home"}, {"mount", view}} {
		_, err := run(t, pool, args...)
		testenv.Must(t, err)
	}
	rounds := 3
	if want(t) > 0 {
		rounds = 20
	}
	acked := &sync.Map{} // path below the view: content
	total := 0
	for round := range rounds {
		var wg sync.WaitGroup
		for worker := range 3 {
			wg.Go(func() { load(view, round, worker, acked) })
		}
		time.Sleep(time.Duration(200+round*37%200) * time.Millisecond)
		testenv.Must(t, killViews(t, pool))
		wg.Wait() // all writers have got their error
		_, err := run(t, pool, "mount", view)
		testenv.Must(t, err)
		n := 0
		acked.Range(func(path, content any) bool {
			n++
			have, err := os.ReadFile(filepath.Join(view, path.(string)))
			if err != nil || !bytes.Equal(have, content.([]byte)) {
				t.Errorf("round %d: %s was acknowledged and has %d bytes now, %d then (%v)", round, path, len(have), len(content.([]byte)), err)
			}
			return true
		})
		if n == total {
			t.Errorf("round %d: nothing was written", round)
		}
		total = n
	}
	t.Logf("killed %d times, %d files acknowledged, none lost", rounds, total)
	_, err := run(t, pool, "umount", view)
	testenv.Must(t, err)
}

// load writes until the view is gone: new files, replaced files, changed base files.
func load(view string, round, worker int, acked *sync.Map) {
	for i := range 10000 {
		name := fmt.Sprintf("home/r%dw%d-%d", round, worker, i%20)
		if i%3 == 1 {
			name = fmt.Sprintf("usr/share/doc/%02d", (worker*7+i)%20)
			if (worker*7+i)%20%3 != worker { // each file has one writer
				continue
			}
		}
		data := bytes.Repeat([]byte(fmt.Sprintf("%s round %d step %d\n", name, round, i)), 1+i*11%900)
		path := filepath.Join(view, name)
		tmp := path + ".tmp"
		acked.Delete(name) // from here on either is right
		if err := errors.Join(create(tmp, data, os.O_CREATE|os.O_TRUNC)); err != nil {
			return
		}
		if os.Rename(tmp, path) != nil || syncPath(filepath.Dir(path)) != nil {
			return
		}
		acked.Store(name, data)
	}
}

// killViews kills all daemons that serve views of the pool.
func killViews(t testing.TB, pool string) error {
	out, err := run(t, pool, "status", "--json")
	if err != nil {
		return err
	}
	var status struct {
		Views []struct {
			PID int `json:"pid"`
		} `json:"views"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &status); err != nil {
		return err
	}
	if len(status.Views) == 0 {
		return errors.New("no view is mounted")
	}
	for _, v := range status.Views {
		if err := syscall.Kill(v.PID, syscall.SIGKILL); err != nil {
			return err
		}
		if err := dead(v.PID); err != nil {
			return err
		}
	}
	return nil
}

// dead waits until a killed process has closed its files.
func dead(pid int) error {
	for range 1000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil
		}
		if _, rest, ok := strings.Cut(string(b), ") "); ok && strings.HasPrefix(rest, "Z") {
			return nil // nobody waits for it, but it holds nothing any more
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d does not die", pid)
}
