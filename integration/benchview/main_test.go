package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// All work runs on all targets, and the table has a figure for each. The ratios are not
// judged here: of this machine, now, they say little.
func TestAllWork(t *testing.T) {
	testenv.Root(t)
	testenv.FUSE(t)
	testenv.Command(t, "mkfs.btrfs")
	testenv.Command(t, "git")
	var out strings.Builder
	o := options{out: &out, dir: filepath.Join(testenv.Dir(t), "bench"), btrovl: testenv.Program(t), rounds: 1,
		only: regexp.MustCompile(""), small: true}
	if err := bench(t.Context(), &o); err != nil {
		t.Fatal(err)
	}
	table := out.String()
	t.Log("\n" + table)
	if path := os.Getenv("BTROVL_BENCH_TABLE"); path != "" {
		testenv.Must(t, os.WriteFile(path, []byte(table), 0o644))
	}
	head := regexp.MustCompile(`(?m)^\| work \| overlayfs \| btrfs \|.* view \| aim`).FindString(table)
	if head == "" {
		t.Fatalf("a target is missing:\n%s", table)
	}
	for _, w := range allWork {
		if w.debian {
			continue
		}
		line := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(w.name) + ` \|.*$`).FindString(table)
		if line == "" || strings.Contains(line, "| 0.00 |") || strings.Count(line, "–") > strings.Count(line, "| – |  |") {
			t.Errorf("%s: no figures: %q", w.name, line)
		}
	}
}

// A line whose aim is missed says so, one that has none says nothing.
func TestVerdicts(t *testing.T) {
	r := &results{byWork: map[string]map[string][]float64{}}
	targets := []*target{{name: "btrfs"}, {name: measure}, {name: "view"}}
	for _, c := range []struct {
		work         string
		native, view float64
		want         string
	}{
		{"find -ls, warm", 0.9, 1.0, "| 0.90 | 1.00 | 1.1 | met |"},
		{"find -ls, cold", 0.9, 1.6, "| 0.90 | 1.60 | 1.5 | **missed** |"},
		{"find -ls, second time", 0.9, 3, "| 0.90 | 3.00 | – |  |"},
	} {
		for _, x := range []float64{1, 100, 1} { // the median, not the mean
			r.add(c.work, measure, x)
		}
		r.add(c.work, "btrfs", c.native)
		r.add(c.work, "view", c.view)
		if table := r.table(3, targets); !strings.Contains(table, c.want) {
			t.Errorf("%s: want %q in\n%s", c.work, c.want, table)
		}
	}
}
