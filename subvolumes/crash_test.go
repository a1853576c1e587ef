package subvolumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// Every command that changes a pool is interrupted before each of its steps, in two
// ways: cut (as by SIGKILL or power: nothing of it runs any more) and failed (the step
// returns an error, and the command cleans up). After each,
//
//   - the pool opens and shows exactly the state before or the state after the command,
//     every base with its digest, every overlay with its files;
//   - it boots;
//   - the command, repeated if its change had not happened, succeeds (interrupted once
//     more on its way);
//   - garbage collection leaves the same state and nothing else on disk.
//
// What a cut loses of unwritten pages is the subject of integration/crashdisk; the
// order of the steps is the subject here.

type crashCase struct {
	name string
	// setup runs once, on the standard pool with base 2 sealed but not deployed.
	setup func(t *testing.T, p *Pool, w *Writer)
	// prepare makes what the command removes, after the state was put back.
	prepare func(t *testing.T, p *Pool, w *Writer)
	run     func(w *Writer) error
}

func onTrial(t *testing.T, p *Pool, w *Writer) {
	_, err := w.Deploy(ctx, Deployment{Base: "2", Reason: "update"}, DeployOptions{Trial: 2})
	testenv.Must(t, err)
	put(t, p, "conf", "etc/f", "conf of 2")
}

func deployed(t *testing.T, p *Pool, w *Writer) {
	onTrial(t, p, w)
	_, err := w.MarkGood(ctx)
	testenv.Must(t, err)
}

func crashCases() []crashCase {
	return []crashCase{
		{name: "update", run: func(w *Writer) error {
			s, err := w.NewStage(ctx, "3", "1")
			if _, ok := errors.AsType[*ExistsError](err); !ok {
				if err != nil {
					return err
				}
				defer s.close()
				if err := os.WriteFile(s.Root().Name()+"/etc/release", []byte("3"), 0o644); err != nil {
					return err
				}
				if err := os.Chtimes(s.Root().Name()+"/etc/release", stamp, stamp); err != nil {
					return err
				}
				if _, err := s.Seal(ctx, "", SealOptions{Counter: 3}); err != nil {
					return errors.Join(err, s.Discard())
				}
			}
			_, err = w.Deploy(ctx, Deployment{Base: "3", Reason: "update"}, DeployOptions{Trial: 3})
			return err
		}},
		{name: "mark-good", setup: onTrial, run: func(w *Writer) error { _, err := w.MarkGood(ctx); return err }},
		{name: "boot, a try", setup: onTrial, run: func(w *Writer) error { return bootOf(w, "2", false) }},
		{name: "boot, last try gone", setup: func(t *testing.T, p *Pool, w *Writer) {
			onTrial(t, p, w)
			for range 2 {
				testenv.Must(t, bootOf(w, "2", false))
			}
		}, run: func(w *Writer) error { return bootOf(w, "1", true) }},
		{name: "rollback", setup: deployed, run: func(w *Writer) error { _, err := w.Rollback(ctx, 0, ""); return err }},
		{name: "rollback of a trial", setup: onTrial, run: func(w *Writer) error { _, err := w.Rollback(ctx, 0, "bad"); return err }},
		{name: "reset", run: func(w *Writer) error {
			r, err := w.Record()
			if err != nil {
				return err
			}
			refs := slices.Clone(r.Active().Overlays)
			for i, o := range refs {
				if o.Name != "data" {
					if refs[i], err = w.FreshOverlay(ctx, *r.Overlay(o.Name), ""); err != nil {
						return err
					}
				}
			}
			_, err = w.Deploy(ctx, Deployment{Base: r.Active().Base, Overlays: refs, Reason: "reset"}, DeployOptions{})
			return err
		}},
		{name: "restore", setup: func(t *testing.T, p *Pool, w *Writer) {
			put(t, p, "data", "home/f", "of the backup")
			_, err := w.Backup(ctx, []string{"data"})
			testenv.Must(t, err)
			put(t, p, "data", "home/f", "after the backup")
		}, run: func(w *Writer) error {
			r, err := w.Record()
			if err != nil {
				return err
			}
			list, err := w.p.Backups("data")
			if err != nil {
				return err
			}
			refs := slices.Clone(r.Active().Overlays)
			for i, o := range refs {
				if o.Name == "data" {
					if refs[i], err = w.RestoreOverlay(ctx, *r.Overlay(o.Name), list[0]); err != nil {
						return err
					}
				}
			}
			_, err = w.Deploy(ctx, Deployment{Base: r.Active().Base, Overlays: refs, Reason: "restore"}, DeployOptions{})
			return err
		}},
		{name: "backup", run: func(w *Writer) error { _, err := w.Backup(ctx, []string{"conf", "data"}); return err }},
		{name: "overlay add", run: func(w *Writer) error {
			_, err := w.AddOverlay(ctx, OverlayDef{Name: "new", Paths: []string{"/usr/bin"}})
			return err
		}},
		{name: "overlay remove", run: func(w *Writer) error { _, err := w.RemoveOverlay(ctx, "data"); return err }},
		{name: "base import", run: func(w *Writer) error {
			src, err := os.Open(w.p.BasePath("1") + "/etc")
			if err != nil {
				return err
			}
			defer src.Close()
			_, err = w.ImportTree(ctx, "new", src, ImportOptions{})
			return err
		}},
		{name: "base remove", prepare: func(t *testing.T, p *Pool, w *Writer) {
			if r, err := w.Record(); err != nil || r.Base("doomed") == nil {
				testenv.Must(t, err)
				src, err := os.Open(p.BasePath("1") + "/etc")
				testenv.Must(t, err)
				defer src.Close()
				_, err = w.ImportTree(ctx, "doomed", src, ImportOptions{})
				testenv.Must(t, err)
			}
		}, run: func(w *Writer) error { return w.RemoveBase(ctx, "doomed") }},
		{name: "gc", prepare: func(t *testing.T, p *Pool, w *Writer) {
			for _, name := range []string{"x", "y"} {
				_, err := w.FreshOverlay(ctx, OverlayDef{Name: name, Paths: []string{"/x"}}, "")
				testenv.Must(t, err)
			}
			s, err := w.NewStage(ctx, "left", "")
			testenv.Must(t, err)
			s.close()
			testenv.Must(t, os.WriteFile(p.Dir()+"/bases/gone.meta", nil, 0o600))
		}, run: func(w *Writer) error { _, err := w.Collect(ctx, false); return err }},
		{name: "first deployment", setup: func(t *testing.T, p *Pool, w *Writer) {
			_, err := w.Commit(ctx, func(r *Record) error {
				r.Deployments, r.Current, r.Factory = nil, 0, 0
				r.Bases[0].Pinned = true
				return nil
			})
			testenv.Must(t, err)
		}, run: func(w *Writer) error { _, err := w.EnsureDeployment(ctx, "1"); return err }},
	}
}

// bootOf boots and checks which base was chosen.
func bootOf(w *Writer, base string, fellBack bool) error {
	c, err := w.Boot(ctx)
	if err == nil && c.FellBack != nil && strings.Contains(c.FellBack.Reason, errCut.Error()) {
		return errCut // it cannot be counted, so the last good one comes up
	}
	if err == nil && (c.Deployment.Base != base || (c.FellBack != nil) != fellBack) {
		err = fmt.Errorf("boot chose %+v", c)
	}
	return err
}

type crashCounts struct{ steps, old, new, neither int }

func TestCrash(t *testing.T) {
	var mu sync.Mutex
	table := map[string]crashCounts{}
	cases := crashCases()
	t.Run("commands", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				counts := runCrashCase(t, c)
				mu.Lock()
				defer mu.Unlock()
				table[c.name] = counts
			})
		}
	})
	t.Logf("%-22s %5s %5s %5s %7s", "interrupted", "steps", "old", "new", "neither")
	for _, c := range cases {
		n := table[c.name]
		t.Logf("%-22s %5d %5d %5d %7d", c.name, n.steps, n.old, n.new, n.neither)
	}
}

// crashRig is the pool of one case.
type crashRig struct {
	c        crashCase
	dir      string
	start    *Record // the state that every attempt begins with
	old, new string  // what is visible before and after the command
	counts   crashCounts
}

func runCrashCase(t *testing.T, c crashCase) crashCounts {
	p, w := standard(t)
	put(t, p, "data", "home/f", "data")
	put(t, p, "conf", "etc/f", "conf of 1")
	stageFrom(t, w, "1", "2", 2)
	if c.setup != nil {
		c.setup(t, p, w)
	}
	start, err := w.Record()
	testenv.Must(t, err)
	testenv.Must(t, w.Close())
	g := &crashRig{c: c, dir: p.Dir(), start: start}
	for _, d := range start.Deployments { // what the start state needs must stay
		h, err := p.Hold(&d)
		testenv.Must(t, err)
		defer h.Release()
	}

	// Once without interruption: what it shows before and after, and its steps.
	var steps []string
	g.prepare(t)
	g.old = visible(t, g.dir)
	p, w = g.open(t)
	p.fault = func(s string) error { steps = append(steps, s); return nil }
	testenv.Must(t, c.run(w))
	testenv.Must(t, w.Close())
	testenv.Must(t, p.Close())
	g.new = visible(t, g.dir)
	if len(steps) == 0 || g.old == g.new && c.name != "gc" {
		t.Fatalf("steps %q; it shows %s", steps, g.new)
	}
	for n := range steps {
		for _, cut := range []bool{true, false} {
			if !cut && n%4 != 0 { // failing differs from a cut by the cleaning up only
				continue
			}
			what := fmt.Sprintf("step %d %q, cut %v", n, steps[n], cut)
			g.attempt(t, what, n, cut)
			if t.Failed() {
				t.Fatalf("at %s; steps:\n%s", what, strings.Join(steps, "\n"))
			}
		}
	}
	return g.counts
}

// open opens the pool for writing, as a command does.
func (g *crashRig) open(t *testing.T) (*Pool, *Writer) {
	t.Helper()
	p, err := Open(g.dir)
	testenv.Must(t, err)
	// A child that another test starts has the descriptor between fork and exec.
	w, err := p.Lock(ctx, g.c.name, 20*time.Second)
	testenv.Must(t, err)
	return p, w
}

// prepare puts the start state back.
func (g *crashRig) prepare(t *testing.T) {
	t.Helper()
	p, w := g.open(t)
	_, err := w.Commit(ctx, func(r *Record) error {
		next := r.Next
		*r = *g.start
		r.Next = next
		for i := range r.Bases { // bases that garbage collection must not take meanwhile
			r.Bases[i].Pinned = true
		}
		return nil
	})
	testenv.Must(t, err)
	_, err = w.Collect(ctx, false)
	testenv.Must(t, err)
	if g.c.name == "backup" {
		list, err := p.Backups("")
		testenv.Must(t, err)
		for _, b := range list {
			testenv.Must(t, w.RemoveBackup(ctx, b))
		}
	}
	if g.c.prepare != nil {
		g.c.prepare(t, p, w)
	}
	testenv.Must(t, w.Close())
	testenv.Must(t, p.Close())
}

// attempt interrupts the command before its n-th step and checks what is left.
func (g *crashRig) attempt(t *testing.T, what string, n int, cut bool) {
	g.prepare(t)
	g.interrupt(t, n, cut)
	g.counts.steps++
	after := visible(t, g.dir)
	switch after {
	case g.old:
		g.counts.old++
	case g.new:
		g.counts.new++
	default:
		g.counts.neither++
		t.Errorf("%s: it shows\n%s\nneither the old\n%s\nnor the new\n%s", what, after, g.old, g.new)
		return
	}
	if after == g.old {
		if n%2 == 0 {
			g.interrupt(t, n/2, true) // a second time, elsewhere
		}
		if visible(t, g.dir) == g.old {
			p, w := g.open(t)
			if err := g.c.run(w); err != nil {
				t.Errorf("%s: repeated: %v", what, err)
			}
			testenv.Must(t, w.Close())
			testenv.Must(t, p.Close())
		}
	}
	if got := visible(t, g.dir); got != g.new {
		t.Errorf("%s: after the repetition it shows\n%s\ninstead of\n%s", what, got, g.new)
	}
	g.collect(t, what)
}

// collect checks that garbage collection leaves what is named and nothing else.
func (g *crashRig) collect(t *testing.T, what string) {
	p, w := g.open(t)
	defer p.Close()
	// As with the lock of the pool, a child that another test starts has what collecting opens to see whether anybody uses it:
	// what is looked at in that moment is in use.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		removed, err := w.Collect(ctx, false)
		testenv.Must(t, err)
		busy := slices.ContainsFunc(removed, func(r Removed) bool {
			return r.Held && r.Kind != "deployment" && !g.start.names(r.Name) && g.start.Base(r.Name) == nil
		})
		if !busy || time.Now().After(end) {
			break
		}
	}
	testenv.Must(t, w.Close())
	r, err := p.Record()
	testenv.Must(t, err)
	for _, n := range names(t, p.Dir()+"/overlays") {
		if !r.names(n) && !g.start.names(n) {
			t.Errorf("%s: overlays/%s is left", what, n)
		}
	}
	for _, n := range names(t, p.Dir()+"/bases") {
		if r.Base(strings.TrimSuffix(n, suffixMeta)) == nil {
			t.Errorf("%s: bases/%s is left", what, n)
		}
	}
	if got := visible(t, g.dir); got != g.new {
		t.Errorf("%s: after garbage collection it shows\n%s\ninstead of\n%s", what, got, g.new)
	}
	findings, err := p.Check(ctx, false)
	testenv.Must(t, err)
	for _, f := range findings {
		if f.Severity == "error" {
			t.Errorf("%s: %+v", what, f)
		}
	}
}

var errCut = errors.New("interrupted")

// interrupt runs the command up to its n-th step.
func (g *crashRig) interrupt(t *testing.T, n int, cut bool) {
	p, w := g.open(t)
	p.fault = func(string) error {
		if n--; n >= 0 {
			return nil
		}
		if cut {
			panic(errCut)
		}
		p.fault = nil // it fails once
		return errCut
	}
	defer func() {
		if v := recover(); v != nil && v != any(errCut) {
			panic(v)
		}
		w.lock.Close() // all that the end of a process does
		p.dir.Close()
	}()
	if err := g.c.run(w); err != nil && !errors.Is(err, errCut) {
		t.Errorf("an unexpected error: %v", err)
	}
}

// visible describes what a mount and the commands would show, without ids.
func visible(t *testing.T, dir string) string {
	t.Helper()
	p, err := Open(dir)
	testenv.Must(t, err)
	defer p.Close()
	r, err := p.Record()
	testenv.Must(t, err)
	var b strings.Builder
	if d := r.Active(); d != nil {
		testenv.Must(t, p.usable(d))
		sum := digestOf(t, p.BasePath(d.Base))
		if sum != r.Base(d.Base).Digest {
			t.Errorf("base %s has digest %s, recorded is %s", d.Base, sum, r.Base(d.Base).Digest)
		}
		fmt.Fprintf(&b, "base %s %.8s\n", d.Base, sum)
		for _, o := range d.Overlays {
			fmt.Fprintf(&b, "overlay %s %.8s\n", o.Name, digestOf(t, filepath.Join(p.OverlayPath(o), "upper")))
		}
	}
	if r.Trial != nil {
		fmt.Fprintf(&b, "on trial, %d of %d tries left\n", r.Trial.TriesLeft, r.Trial.Tries)
	}
	versions := r.versions()
	// A base that was sealed for an update that was not committed shows nowhere but in
	// a list, and the repeated update takes it.
	versions = slices.DeleteFunc(versions, func(v string) bool { return v == "3" })
	fmt.Fprintf(&b, "bases %q, overlays %q, counter %d, fallbacks %d\n", versions, r.overlayNames(), r.Counter, len(r.Fallbacks))
	list, err := p.Backups("")
	testenv.Must(t, err)
	for _, k := range list {
		fmt.Fprintf(&b, "backup of %s\n", k.Overlay)
	}
	return b.String()
}
