// Benchview times the same work on a view, on kernel overlayfs over the same base, on
// plain btrfs and on fuse-overlayfs, and writes the table of docs/performance.md.
//
//	go run ./integration/benchview                       what `make bench-view` does
//	go run ./integration/benchview -rounds 5 -only 'git|find'
//
// Everything happens in a btrfs image of its own, below -dir: a pool with one base (a part
// of the host's /usr, the Go toolchain as a git repository, a directory of 50,000 files, two
// large files), and one empty upper layer for each target. No network is needed but for
// -debian, which adds a Debian tree and the installation of packages in it, and one that boots in a container. What was made and mounted is removed at the end, and after an interrupt.
//
// A round runs every piece of work on every target, the targets one right after the
// other and in turned order every second time, so that what else the machine does hits all
// alike; what is short and can be repeated three times. The table shows medians, as ratios to kernel overlayfs. Times of different
// machines, or of different runs, are not to be compared; ratios may be.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchview:", err)
		os.Exit(1)
	}
}

type options struct {
	out    io.Writer // for the table
	dir    string
	btrovl string
	rounds int
	only   *regexp.Regexp
	skip   *regexp.Regexp
	update string
	raw    string
	hold   bool
	debian bool
	small  bool
}

func run() error {
	o := options{out: os.Stdout}
	var only, skip string
	flag.StringVar(&o.dir, "dir", "build/bench-view", "work below this directory (8 GiB are used)")
	flag.StringVar(&o.btrovl, "btrovl", "build/btrovl", "the program to measure")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds")
	flag.StringVar(&only, "only", "", "only work and targets whose names match this regular expression")
	flag.StringVar(&skip, "skip", "", "leave out work whose name matches")
	flag.StringVar(&o.update, "update", "", "write the table into this file, between its <!-- bench-view --> marks")
	flag.StringVar(&o.raw, "raw", "", "write every measurement to this file, as JSON")
	flag.BoolVar(&o.debian, "debian", false, "also install packages in a Debian tree that debootstrap makes, and boot another: needs the network")
	flag.BoolVar(&o.small, "small", false, "a tenth of everything: to see that it works, and a rough look; no figures to compare")
	flag.BoolVar(&o.hold, "hold", false, "after the rounds, leave all targets mounted until an interrupt: for perf, strace and btrovl status")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return err
	}
	if skip != "" {
		if o.skip, err = regexp.Compile(skip); err != nil {
			return err
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("mounting needs root")
	}
	if o.btrovl, err = filepath.Abs(o.btrovl); err != nil {
		return err
	}
	if _, err := os.Stat(o.btrovl); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return bench(ctx, &o)
}

func bench(ctx context.Context, o *options) (err error) {
	note("making the base (a minute)")
	m, err := newMachine(ctx, o)
	defer func() {
		if cerr := m.close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return err
	}
	targets, err := m.mountAll(ctx)
	if err != nil {
		return err
	}
	r := &results{byWork: map[string]map[string][]float64{}}
	for round := range o.rounds {
		for _, w := range allWork {
			if w.debian && !o.debian || !o.only.MatchString(w.name) || o.skip != nil && o.skip.MatchString(w.name) {
				continue
			}
			for run := range max(1, w.runs) {
				if o.small && run > 0 {
					break
				}
				for i := range targets {
					t := targets[i]
					if (round+run)%2 == 1 {
						t = targets[len(targets)-1-i]
					}
					if err := ctx.Err(); err != nil {
						return err
					}
					if w.debian && t.name == slowest {
						continue // more than ten minutes
					}
					cost, err := w.run(&job{ctx: ctx, m: m, t: t, dir: t.root, round: round})
					if err != nil {
						return fmt.Errorf("%s on %s: %w", w.name, t.name, err)
					}
					r.add(w.name, t.name, cost)
				}
			}
			note("round %d: %s: %s", round+1, w.name, r.line(w.name, targets))
		}
	}
	table := r.table(o.rounds, targets)
	if o.small {
		table = "A tenth of the work that the lines name: a rough look, no figures to compare.\n\n" + table
	}
	fmt.Fprint(o.out, table)
	if o.hold {
		for _, t := range targets {
			note("%s at %s, served by %d", t.name, t.root, t.pid)
		}
		<-ctx.Done()
	}
	if o.raw != "" {
		b, err := json.MarshalIndent(r.byWork, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.raw, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if o.update != "" {
		return updateFile(o.update, table)
	}
	return nil
}

func note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
