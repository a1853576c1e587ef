package viewtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Differ runs programs on several targets and compares. It owns the actor processes.
type Differ struct {
	dir     string // on btrfs
	targets []Target
	actors  [][]*process // by target, by user
	cancel  context.CancelFunc
	base    struct { // of the last seed: a failure is run many times while it shrinks
		seed uint64
		l    Layers
	}
	runs int

	// Stats of all runs.
	Steps    int
	Accepted map[string]int // by Difference.ID
	Inexact  map[string]int // by call: where kernel overlayfs, but not the view, differed
}

// Failure is an unexplained difference.
type Failure struct {
	Seed   uint64
	Ops    []Op
	Step   int    // index into Ops; len(Ops) for the trees at the end
	Target string // which one is wrong
	Detail string
}

func (f *Failure) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s differs from native:\n", f.Seed, f.Target)
	for i, o := range f.Ops[:min(f.Step+1, len(f.Ops))] {
		fmt.Fprintf(&b, "  %3d  %s\n", i, o)
	}
	b.WriteString(f.Detail)
	return b.String()
}

// NewDiffer starts the actors. The first target is the measure; kernel overlayfs
// may be among the others, and every other one has to agree with the measure.
func NewDiffer(ctx context.Context, dir string, targets ...Target) (*Differ, error) {
	ctx, cancel := context.WithCancel(ctx)
	d := &Differ{dir: dir, targets: targets, cancel: cancel, Accepted: map[string]int{}, Inexact: map[string]int{}}
	for range targets {
		var ps []*process
		for _, u := range Users {
			p, err := startActor(ctx, u)
			if err != nil {
				d.actors = append(d.actors, ps)
				d.Close()
				return nil, err
			}
			ps = append(ps, p)
		}
		d.actors = append(d.actors, ps)
	}
	return d, nil
}

// Close ends the actors and removes the layers.
func (d *Differ) Close() error {
	for _, ps := range d.actors {
		for _, p := range ps {
			p.stop()
		}
	}
	d.cancel()
	return d.dropBase(context.Background())
}

func (d *Differ) dropBase(ctx context.Context) error {
	if d.base.l.Base == "" {
		return nil
	}
	dir := filepath.Dir(d.base.l.Base)
	d.base.l = Layers{}
	err := RemoveLayers(ctx, filepath.Join(dir, "base.rw"), filepath.Join(dir, "base"), filepath.Join(dir, "upper0"))
	return errors.Join(err, os.RemoveAll(dir))
}

// Run runs a program on the base of a seed. A *Failure is a difference; any other
// error means that the machine did not let the test happen.
func (d *Differ) Run(ctx context.Context, seed uint64, ops []Op) (err error) {
	if d.base.l.Base == "" || d.base.seed != seed {
		if err := d.dropBase(ctx); err != nil {
			return err
		}
		dir := filepath.Join(d.dir, fmt.Sprintf("seed-%d", seed))
		d.base.l, err = NewLayers(ctx, dir, func(dir string) error { return MakeBase(dir, seed) })
		d.base.seed = seed
		if err != nil {
			return err
		}
	}
	d.runs++
	r := &run{d: d, ctx: ctx, seed: seed, ops: ops}
	defer func() {
		if cerr := r.close(); err == nil {
			err = cerr
		}
	}()
	if err := r.mount(); err != nil {
		return err
	}
	return r.all()
}

// run is one program on all targets.
type run struct {
	d       *Differ
	ctx     context.Context
	seed    uint64
	ops     []Op
	mounted []*Mounted
	uppers  []string
	seen    []map[[2]uint64]int // by target: the step at which an object was first seen
	left    []bool              // kernel overlayfs, after it differed
}

func (r *run) fail(step, target int, format string, a ...any) *Failure {
	return &Failure{Seed: r.seed, Ops: r.ops, Step: step, Target: r.d.targets[target].Name, Detail: fmt.Sprintf(format, a...)}
}

func (r *run) mount() error {
	dir := filepath.Dir(r.d.base.l.Base)
	for i, t := range r.d.targets {
		l := r.d.base.l
		l.Upper = filepath.Join(dir, fmt.Sprintf("upper-%s-%d", t.Name, r.d.runs))
		if err := NewUpper(r.ctx, l.Base, l.Upper); err != nil {
			return err
		}
		r.uppers = append(r.uppers, l.Upper)
		m, err := t.Mount(r.ctx, l, filepath.Join(dir, fmt.Sprintf("mnt-%s-%d", t.Name, r.d.runs)))
		if err != nil {
			return fmt.Errorf("mounting %s: %w", t.Name, err)
		}
		r.mounted = append(r.mounted, m)
		r.seen = append(r.seen, map[[2]uint64]int{})
		r.left = append(r.left, false)
		for _, p := range r.d.actors[i] {
			if err := mustCall(p, &Op{Call: "root", Path: m.Root}); err != nil {
				return err
			}
		}
	}
	return nil
}

func mustCall(p *process, o *Op) error {
	res, err := p.call(o)
	if err == nil && res.Err != "" {
		err = fmt.Errorf("%s: %s", o.Call, res.Err)
	}
	return err
}

// park takes all actors out of a target.
func (r *run) park(i int) error {
	for _, p := range r.d.actors[i] {
		if err := mustCall(p, &Op{Call: "root", Path: "/"}); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) close() error {
	var errs []error
	for i, m := range r.mounted {
		if m != nil {
			errs = append(errs, r.park(i), m.Unmount())
			os.Remove(m.Root)
		}
	}
	return errors.Join(append(errs, RemoveLayers(context.WithoutCancel(r.ctx), r.uppers...))...)
}

func (r *run) all() error {
	for step := range r.ops {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := r.step(step); err != nil {
			return err
		}
	}
	return r.trees()
}

func (r *run) step(step int) error {
	o := &r.ops[step]
	r.d.Steps++
	for i := range r.d.targets {
		if !r.left[i] {
			if err := r.d.actors[i][o.Actor].send(o); err != nil {
				return fmt.Errorf("%s, %s: %w", r.d.targets[i].Name, o, err)
			}
		}
	}
	results := make([]Result, len(r.d.targets))
	for i := range r.d.targets {
		if r.left[i] {
			continue
		}
		var err error
		if results[i], err = r.d.actors[i][o.Actor].receive(); err != nil {
			return r.fail(step, i, "%s: %v", o, err)
		}
	}
	for i := 1; i < len(results); i++ {
		if r.left[i] {
			continue
		}
		why := ""
		if got, want := results[i].String(), results[0].String(); got != want {
			why = fmt.Sprintf("%s\n    got       %s\n    expected  %s\n", o, got, want)
		} else if got, want := r.identity(i, step, results[i]), r.identity(0, step, results[0]); got != want {
			why = fmt.Sprintf("%s\n    st_ino of the same object as in step %d, expected that of step %d\n", o, got, want)
		}
		if why == "" {
			continue
		}
		if r.d.targets[i].Name == "overlayfs" {
			r.left[i] = !readOnly[o.Call]
			r.d.Inexact[o.Call]++
			continue
		}
		if id := accept(o, results[i], results[0]); id != "" {
			r.d.Accepted[id]++
			continue
		}
		return r.fail(step, i, "%s", why)
	}
	return nil
}

// identity is the step at which the object was seen first on this target.
func (r *run) identity(target, step int, res Result) int {
	if res.Ino == 0 {
		return -1
	}
	id := [2]uint64{res.Dev, res.Ino}
	if first, ok := r.seen[target][id]; ok {
		return first
	}
	r.seen[target][id] = step
	return step
}

// trees compares what is left at the end, and what a new mount shows of it.
func (r *run) trees() error {
	want, err := r.tree(0)
	if err != nil {
		return r.fail(len(r.ops), 0, "tree: %v", err)
	}
	for i := 1; i < len(r.d.targets); i++ {
		if r.left[i] {
			continue
		}
		name := r.d.targets[i].Name
		compare := func(as string) error {
			got, err := r.tree(i)
			if err != nil {
				return r.fail(len(r.ops), i, "tree, %s: %v", as, err)
			}
			wanted := want
			if as == "kernel again" {
				// Where base and upper are two subvolumes, overlayfs shows different files
				// with one st_ino: what looks like hard links there tells nothing.
				got, wanted = WithoutLinks(got), WithoutLinks(want)
			}
			if diff := DiffTrees(as, "native", got, wanted, 5); diff != nil {
				return r.fail(len(r.ops), i, "the trees differ:\n  %s\n", strings.Join(diff, "\n  "))
			}
			return nil
		}
		err := compare(name)
		if name == "overlayfs" {
			if err != nil {
				r.d.Inexact["(tree)"]++
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, t := range []Target{r.d.targets[i], PlainOverlayfs()} {
			if err := r.remount(i, t); err != nil {
				return err
			}
			if err := compare(t.Name + " again"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) tree(i int) (map[string]string, error) {
	p := r.d.actors[i][0]
	if err := mustCall(p, &Op{Call: "reset"}); err != nil {
		return nil, err
	}
	res, err := p.call(&Op{Call: "tree"})
	if err != nil {
		return nil, err
	}
	if res.Err != "" {
		return nil, errors.New(res.Err)
	}
	var m map[string]string
	err = json.Unmarshal([]byte(res.Out), &m)
	return m, err
}

// remount shows the layers of target i by another target.
func (r *run) remount(i int, t Target) error {
	if err := r.park(i); err != nil {
		return err
	}
	m := r.mounted[i]
	r.mounted[i] = nil
	if err := m.Unmount(); err != nil {
		return r.fail(len(r.ops), i, "%v", err)
	}
	m, err := t.Mount(r.ctx, Layers{Base: r.d.base.l.Base, Upper: r.uppers[i]}, m.Root)
	if err != nil {
		return r.fail(len(r.ops), i, "mounting the layers again as %s: %v", t.Name, err)
	}
	r.mounted[i] = m
	return mustCall(r.d.actors[i][0], &Op{Call: "root", Path: m.Root})
}

// readOnly are the calls after which targets stay comparable whatever they said.
var readOnly = map[string]bool{
	"stat": true, "fstat": true, "cwdstat": true, "getcwd": true, "access": true, "readlink": true,
	"getxattr": true, "listxattr": true, "list": true, "flist": true, "seekdir": true, "pread": true,
}
