package crashtest

import (
	"errors"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

// The power goes again while the first cut is being recovered from: while the disk is
// mounted, the command repeated, the garbage collected.
func TestCrashTwice(t *testing.T) {
	testenv.FUSE(t)
	s := ship(t)
	tab := &table{}
	defer tab.print(t, "A second cut during recovery")
	b := newBudget(t, 4*time.Second)
	every, max := 6, 6 // of the windows, and states of each recovery
	if n := want(t); n > 0 {
		every, max = 1, n/50
	}
	t.Run("lives", func(t *testing.T) {
		t.Run("youth", func(t *testing.T) {
			t.Parallel()
			cutTwice(t, newDisk(t), youth(s, viewDir(t)), every, max, b, tab)
		})
		t.Run("age", func(t *testing.T) {
			t.Parallel()
			cutTwice(t, grownUp(t, s), age(s, viewDir(t)), every, max, b, tab)
		})
	})
}

func cutTwice(t *testing.T, img *crashdisk.Image, steps []step, every, max int, b budget, tab *table) {
	l := live(t, img, steps)
	slot := newSlot(t)
	for i, w := range l.wins {
		if i%every != every/2 || w.view+w.live != "" {
			continue
		}
		// The first cut: in the middle of the command, with half of its writes.
		plan, err := l.plan.Window(w.from, w.to)
		testenv.Must(t, err)
		plan.From, plan.Max = plan.From+(w.to-w.from)/2, 1
		states, err := plan.States()
		testenv.Must(t, err)
		for first := range states {
			w.cutRecovery(t, slot, first, max, b, tab)
		}
	}
}

// cutRecovery records the recovery from one state, and examines the states of that.
func (w window) cutRecovery(t *testing.T, slot *crashdisk.Slot, first crashdisk.State, max int, b budget, tab *table) {
	t.Helper()
	rec, err := crashdisk.Record(first.Image)
	testenv.Must(t, err)
	defer func() { testenv.Must(t, rec.Close()) }()
	mnt, err := rec.Mount()
	testenv.Must(t, err)
	pool := poolDir(mnt)
	var was, again, clean *poolState
	testenv.Must(t, rec.Step("recover", 2*limit, func() (err error) {
		if was, err = readPool(pool); err != nil {
			return err
		}
		which, diff := differ(was, w.old, w.new)
		if diff != "" {
			return errors.New(diff)
		}
		if again, err = w.doAgain(t, pool, which); err != nil {
			return err
		}
		if err := rec.Mark("repeated"); err != nil {
			return err
		}
		if _, err := run(t, pool, "gc"); err != nil {
			return err
		}
		if clean, err = readPool(pool); err != nil {
			return err
		}
		return rec.Mark("clean")
	}))
	testenv.Must(t, rec.Unmount())
	ops, err := rec.Ops()
	testenv.Must(t, err)
	states, err := crashdisk.Plan{Base: first.Image, Ops: ops, Max: max, Seed: 17}.States()
	testenv.Must(t, err)
	n := 0
	for s := range states {
		may := map[string][]*poolState{"": {was, again, clean}, "repeated": {again, clean}, "clean": {clean}}[s.Phase]
		which, err := w.examineTwice(t, slot, s, may)
		tab.add(w.row, which)
		if err != nil {
			t.Errorf("%s, first %v, then %v (%q): %v", w.row, first, s, s.Phase, err)
		}
		if n++; b.spent(n) {
			break
		}
	}
}

func (w window) examineTwice(t testing.TB, slot *crashdisk.Slot, s crashdisk.State, may []*poolState) (int, error) {
	t.Helper()
	return onDisk(slot, s.Image, func(pool string, have *poolState) (int, error) {
		if _, diff := differ(have, may...); diff != "" {
			return -1, errors.New(diff)
		}
		which := 1 // what gc has made of the new state counts as new
		if i, diff := differ(have, w.old, w.new); diff == "" {
			which = i
		}
		return which, w.recover(t, pool, have, which, s.At)
	})
}
