package viewtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// The two measures against each other: this finds mistakes of the test itself, and
// tells how exact kernel overlayfs is.
func TestDifferentialOverlayfs(t *testing.T) { differential(t, 2*time.Second, Native(), Overlayfs()) }

// What the test is for: the view behaves like a local file system.
func TestDifferential(t *testing.T) {
	testenv.FUSE(t)
	differential(t, 9*time.Second, Native(), Overlayfs(), View())
}

// A known difference must be found, and nothing but the calls that show it may be
// left of the program.
func TestFindsAndShrinksAKnownDifference(t *testing.T) {
	dir := testenv.Btrfs(t)
	wrong := Target{Name: "wrong", Mount: func(ctx context.Context, l Layers, mnt string) (*Mounted, error) {
		m, err := Native().Mount(ctx, l, mnt)
		if err == nil {
			err = os.Chmod(filepath.Join(m.Root, big), 0o640)
		}
		return m, err
	}}
	differ, err := NewDiffer(t.Context(), dir, Native(), wrong)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := differ.Close(); err != nil {
			t.Error(err)
		}
	}()
	show := []Op{
		{Call: "mkdir", Path: "new", Mode: 0o755},
		{Call: "link", Path: big, Path2: "new/big"},
		{Call: "open", FD: 2, Path: "new/big"},
		{Call: "fstat", FD: 2},
	}
	var program []Op
	for i, o := range show {
		for range 6 + i { // calls that change nothing
			program = append(program, Op{Call: "stat", Path: "."}, Op{Actor: 1, Call: "umask", Mode: 0o22}, Op{Call: "close", FD: 6})
		}
		program = append(program, o)
	}
	program = append(program, Op{Call: "stat", Path: "."})
	f, ok := errors.AsType[*Failure](differ.Run(t.Context(), 1, program))
	if !ok {
		t.Fatal("the difference was not found")
	}
	f = differ.Shrink(t.Context(), f)
	if len(f.Ops) != len(show) {
		t.Fatalf("not shrunk to %d calls:\n%v", len(show), f)
	}
	for i, o := range f.Ops {
		if o.String() != show[i].String() {
			t.Errorf("call %d is %s, expected %s", i, o, show[i])
		}
	}
}

// long tells whether `make test-posix` runs this.
func long() bool { return os.Getenv("BTROVL_LONG") == "1" }

// differential runs programs for the given time, or for BTROVL_DIFF_TIME. The first seed
// is BTROVL_DIFF_SEED; without it `go test` has the same one each time, so that its
// result is about the change under test, and the long run one that no earlier run had.
func differential(t *testing.T, d time.Duration, targets ...Target) {
	dir := testenv.Btrfs(t)
	if long() {
		d = 10 * time.Minute
	}
	if s := os.Getenv("BTROVL_DIFF_TIME"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(1)
	if long() {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	if s := os.Getenv("BTROVL_DIFF_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	n := 400
	if s := os.Getenv("BTROVL_DIFF_OPS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	differ, err := NewDiffer(t.Context(), dir, targets...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := differ.Close(); err != nil {
			t.Error(err)
		}
	}()
	t.Logf("first seed %d (BTROVL_DIFF_SEED), %d calls a program", seed, n)
	runs := 0
	most := 12 // programs, so that a fast machine runs no others than a slow one
	if long() || os.Getenv("BTROVL_DIFF_TIME") != "" {
		most = math.MaxInt
	}
	for start := time.Now(); runs == 0 || time.Since(start) < d && runs < most; runs++ {
		err := differ.Run(t.Context(), seed+uint64(runs), Generate(seed+uint64(runs), n))
		if f, ok := errors.AsType[*Failure](err); ok {
			t.Logf("failed at step %d; shrinking:\n%s", f.Step, f.Detail)
			ctx, cancel := context.WithTimeout(t.Context(), min(max(2*d, 10*time.Second), 2*time.Minute))
			f = differ.Shrink(ctx, f)
			cancel()
			t.Fatalf("%v\nagain: BTROVL_DIFF_SEED=%d BTROVL_DIFF_TIME=1ms go test -run '^%s$'", f, f.Seed, t.Name())
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed+uint64(runs), err)
		}
	}
	t.Logf("%d programs, %d calls; accepted: %s; kernel overlayfs left the comparison at: %s",
		runs, differ.Steps, counts(differ.Accepted), counts(differ.Inexact))
}

func counts(m map[string]int) string {
	s := ""
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s += fmt.Sprintf(" %s %d", k, m[k])
	}
	if s == "" {
		return " none"
	}
	return s
}
