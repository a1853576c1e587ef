package subvolumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// What stays: the current, the trial and the previous deployment with all their
// subvolumes; of the factory deployment its base (its overlays too would keep for
// ever what a reset wiped: they are made anew when it is used again); every
// deployment that a view holds; bases that no deployment has ever named.

// Removed is something that garbage collection removed, would remove, or had to leave.
type Removed struct {
	Kind string // "deployment", "base", "overlay", "stage", "backup", "temporary"
	Name string
	Held bool // it is garbage, but stays because a view uses it
}

// Garbage tells what [Writer.Collect] would do now.
func (p *Pool) Garbage(ctx context.Context) ([]Removed, error) {
	r, err := p.Record()
	if err != nil {
		return nil, err
	}
	g, err := p.findGarbage(r)
	if err != nil {
		return nil, fmt.Errorf("cannot look for garbage: %w", err)
	}
	return g.list(), nil
}

// Collect removes what no kept deployment names: first from the record, then from the
// disk, so that it can be interrupted and repeated. btrfs frees the space in the
// background. With dryRun it only tells. Collect removes as much as it can; the error
// joins what failed.
func (w *Writer) Collect(ctx context.Context, dryRun bool) ([]Removed, error) {
	if dryRun {
		return w.p.Garbage(ctx)
	}
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	if err := w.settleBackups(ctx); err != nil {
		return nil, fmt.Errorf("cannot collect garbage: %w", err)
	}
	g, err := w.p.findGarbage(r)
	if err != nil {
		return nil, fmt.Errorf("cannot collect garbage: %w", err)
	}
	if g.changed {
		// Under the lock nothing can have changed since findGarbage looked.
		if _, err := w.Commit(ctx, func(r *Record) error { *r = *g.after; return nil }); err != nil {
			return nil, err
		}
	}
	out, err := w.sweep(ctx, g)
	if err != nil {
		return out, fmt.Errorf("cannot collect all garbage: %w", err)
	}
	return out, nil
}

// garbage is what a collection will do.
type garbage struct {
	after   *Record // the record without it
	changed bool

	deployments []Removed
	bases       []Removed // names in bases/, with stages
	overlays    []Removed // names in overlays/
	files       []string  // paths below the pool
}

func (g *garbage) list() []Removed {
	out := slices.Concat(g.deployments, g.bases, g.overlays)
	for _, f := range g.files {
		out = append(out, Removed{Kind: "temporary", Name: f})
	}
	return out
}

// findGarbage looks at the record and the disk.
func (p *Pool) findGarbage(r *Record) (*garbage, error) {
	bases, err := p.openDir(dirBases)
	if err != nil {
		return nil, err
	}
	defer bases.Close()
	overlays, err := p.openDir(dirOverlays)
	if err != nil {
		return nil, err
	}
	defer overlays.Close()
	g := &garbage{after: r}
	g.dropDeployments(r, func(base bool, name string) bool {
		if base {
			return isHeld(bases, name)
		}
		return isHeld(overlays, name)
	})
	if err := g.findBases(bases); err != nil {
		return nil, err
	}
	if err := g.findOverlays(overlays); err != nil {
		return nil, err
	}
	names, err := listNames(p.dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if n == nameStateNew || n == nameStateOld+".new" || n == nameReserveNew {
			g.files = append(g.files, n)
		}
	}
	return g, nil
}

// isHeld reports whether a view uses dir/name. What cannot be opened is not in use.
func isHeld(dir *os.File, name string) bool {
	f, err := claimSubvolume(dir, name)
	if f != nil {
		f.Close()
	}
	return err == nil && f == nil
}

// dropDeployments takes deployments, wiped overlays of the factory deployment and
// bases out of the record.
func (g *garbage) dropDeployments(r *Record, held func(base bool, name string) bool) {
	keepBase, keepSub := map[string]bool{}, map[string]bool{}
	kept := func(id int) bool {
		return id == r.Current || id == r.Previous || r.Trial != nil && id == r.Trial.Deployment
	}
	for _, d := range r.Deployments {
		if kept(d.ID) {
			keepBase[d.Base] = true
			for _, o := range d.Overlays {
				keepSub[o.Subvolume] = true
			}
		}
		if d.ID == r.Factory {
			keepBase[d.Base] = true
		}
	}
	inUse := func(d Deployment) bool {
		if !keepBase[d.Base] && held(true, d.Base) {
			return true
		}
		return slices.ContainsFunc(d.Overlays, func(o OverlayRef) bool {
			return o.Subvolume != "" && !keepSub[o.Subvolume] && held(false, o.Subvolume)
		})
	}
	var stay []Deployment
	for _, d := range r.Deployments {
		if kept(d.ID) {
			stay = append(stay, d)
			continue
		}
		name := r.describe(d.ID)
		if inUse(d) {
			g.deployments = append(g.deployments, Removed{"deployment", name, true})
			stay = append(stay, d)
			continue
		}
		if d.ID != r.Factory {
			g.deployments = append(g.deployments, Removed{"deployment", name, false})
			g.changed = true
			continue
		}
		d.Overlays = slices.Clone(d.Overlays)
		for i, o := range d.Overlays {
			if o.Subvolume != "" && !keepSub[o.Subvolume] {
				d.Overlays[i].Subvolume = ""
				g.changed = true
			}
		}
		stay = append(stay, d)
	}
	r.Deployments = stay
	r.Bases = slices.DeleteFunc(r.Bases, func(b BaseInfo) bool {
		named := slices.ContainsFunc(stay, func(d Deployment) bool { return d.Base == b.Version })
		if named || b.Pinned {
			return false
		}
		g.changed = true
		return true
	})
}

// findBases lists what bases/ holds and the record does not name.
func (g *garbage) findBases(dir *os.File) error {
	names, err := listNames(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		version, isMeta := strings.CutSuffix(n, suffixMeta)
		switch {
		case n == tempMeta, isMeta && g.after.Base(version) == nil:
			g.files = append(g.files, dirBases+"/"+n)
		case isMeta:
		case strings.HasSuffix(n, suffixStage), strings.HasSuffix(n, suffixVerify):
			g.bases = append(g.bases, Removed{"stage", n, false})
		case g.after.Base(n) == nil:
			g.bases = append(g.bases, Removed{"base", n, isHeld(dir, n)})
		}
	}
	return nil
}

// findOverlays lists what overlays/ holds and no deployment names.
func (g *garbage) findOverlays(dir *os.File) error {
	names, err := listNames(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !g.after.names(n) {
			g.overlays = append(g.overlays, Removed{"overlay", n, isHeld(dir, n)})
		}
	}
	return nil
}

// sweep deletes what the record on disk does not name any more.
func (w *Writer) sweep(ctx context.Context, g *garbage) ([]Removed, error) {
	out := g.deployments
	var errs []error
	for _, part := range []struct {
		dir  string
		list []Removed
	}{{dirBases, g.bases}, {dirOverlays, g.overlays}} {
		dir, err := w.p.openDir(part.dir)
		if err != nil {
			return out, err
		}
		for _, it := range part.list {
			if !it.Held {
				it.Held, err = w.sweepSubvolume(ctx, dir, it.Name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
			}
			out = append(out, it)
		}
		dir.Close()
	}
	for _, name := range g.files {
		if err := w.p.at("delete " + name); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Unlinkat(int(w.p.dir.Fd()), name, 0); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("delete %s/%s: %w", w.p.Dir(), name, err))
			continue
		}
		out = append(out, Removed{Kind: "temporary", Name: name})
	}
	if len(g.bases)+len(g.overlays) > 0 {
		errs = append(errs, btrfs.Sync(w.p.dir)) // else the space is freed within half a minute
	}
	return out, errors.Join(errs...)
}

// sweepSubvolume deletes dir/name unless somebody has begun to use it.
func (w *Writer) sweepSubvolume(ctx context.Context, dir *os.File, name string) (held bool, err error) {
	if err := w.p.at("delete " + name); err != nil {
		return false, err
	}
	claim, err := claimSubvolume(dir, name)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return false, fmt.Errorf("%s/%s is no subvolume; it was not made by btrovl", dir.Name(), name)
		}
		return false, err
	}
	if claim == nil {
		return true, nil
	}
	defer claim.Close()
	if is, err := btrfs.IsSubvolume(claim); err != nil || !is {
		return false, errors.Join(err, fmt.Errorf("%s/%s is no subvolume; it was not made by btrovl", dir.Name(), name))
	}
	return false, btrfs.DestroyTree(ctx, dir, name)
}
