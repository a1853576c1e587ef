package crashtest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) {
	crashdisk.ServeIfChild()
	crashdisk.Sweep()
	code := testenv.Code(m)
	if err := crashdisk.Leave(); err != nil {
		fmt.Fprintln(os.Stderr, "crashtest:", err)
		code = 1
	}
	os.Exit(code)
}

// newSlot returns a place where disks are mounted, for as long as the test runs.
func newSlot(t testing.TB) *crashdisk.Slot {
	t.Helper()
	slot, err := crashdisk.NewSlot()
	testenv.Must(t, err)
	t.Cleanup(func() { slot.Close() }) // what it leaves fails the run: crashdisk.Leave
	return slot
}

// onDisk mounts a disk, reads the pool on it, and lets check look at both.
func onDisk(slot *crashdisk.Slot, img *crashdisk.Image, check func(pool string, have *poolState) (int, error)) (which int, err error) {
	mnt, err := slot.Mount(img)
	if err != nil {
		return -1, fmt.Errorf("does not mount: %w", err)
	}
	defer func() {
		if uerr := slot.Unmount(); err == nil {
			err = uerr
		}
	}()
	pool := poolDir(mnt)
	have, err := readPool(pool)
	if err != nil {
		return -1, err
	}
	return check(pool, have)
}

// limit is how long one command may take: only a hang reaches it.
const limit = 2 * time.Minute

// run runs the program on the pool and returns what it printed.
func run(t testing.TB, pool string, args ...string) (string, error) {
	t.Helper()
	return crashdisk.Output(limit, env(pool), testenv.Program(t), args...)
}

func env(pool string) []string {
	return []string{"BTROVL_POOL=" + pool, "BTROVL_CONFIG=/nonexistent", "GOMAXPROCS=2"}
}

// want is how many states a full run examines, 0 in a thinned one.
func want(t testing.TB) int {
	s := os.Getenv("BTROVL_CRASH_STATES")
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("BTROVL_CRASH_STATES=%q is not a number", s)
	}
	return n
}

// A budget makes a thinned run end in time on a slow machine: after it has passed,
// only the most telling states are examined. A full run takes the time that it needs.
type budget struct {
	end, late time.Time
	full      bool
}

func newBudget(t testing.TB, d time.Duration) budget {
	return budget{time.Now().Add(d), time.Now().Add(2 * d), want(t) > 0}
}

// spent says whether to stop after n states of one kind: two of them are examined
// however late it is, one if it is very late.
func (b budget) spent(n int) bool {
	now := time.Now()
	return !b.full && (n >= 2 && now.After(b.end) || n >= 1 && now.After(b.late))
}
