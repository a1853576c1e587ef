// Package reset puts a pool back to factory state and brings single overlays
// back from backups.
//
// Each of these is the same act: make new subvolumes, then commit one new
// deployment that names them. Nothing that exists is written to, so all of them
// are undone by going back to the deployment before.
//
//	                 base of the new deployment    subvolume of each overlay
//	Reset            the active one's              kept: the same; others: a fresh one
//	Reset ToFactory  the factory deployment's      kept: the same; others: a fresh one
//	Restore          the active one's              named: made of the backup; others: the same
//
// A trial stays a trial: after a reset in the middle of one, the base has still
// to prove itself (subvolumes.Writer.Deploy sees to it).
//
// # Crash rule
//
// Before the commit new subvolumes are garbage that no record names; after it the
// old ones are. Nothing is deleted here.
//
// # A full disk
//
// Wiping overlays is what a person does about a full disk, so it must not need
// room: subvolumes gives the pool's reserve back to the file system when making an
// overlay or committing meets a full disk. A test here fills one.
package reset

import (
	"context"
	"fmt"
	"slices"

	"github.com/btrovl/btrovl/subvolumes"
)

// Options shape [Reset].
type Options struct {
	Keep      []string // overlays that stay as they are
	ToFactory bool     // go back to the factory deployment's base as well
	Reason    string   // for the history; "" makes one
}

// Plan is what a [Reset] does.
type Plan struct {
	Base          string   // of the new deployment
	Emptied, Kept []string // names of overlays
}

// NewPlan says what a reset would do, and changes nothing. Error:
// *subvolumes.UnknownError, for a kept name that is no overlay.
func NewPlan(r *subvolumes.Record, o Options) (*Plan, error) {
	active, err := activeOf(r)
	if err != nil {
		return nil, err
	}
	p := &Plan{Base: active.Base, Emptied: []string{}, Kept: []string{}}
	if o.ToFactory {
		f := r.Deployment(r.Factory)
		if f == nil {
			return nil, &subvolumes.UnknownError{Kind: "deployment", Name: "factory", Known: deployments(r)}
		}
		p.Base = f.Base
	}
	for _, name := range o.Keep {
		if active.Overlay(name) == nil {
			return nil, &subvolumes.UnknownError{Kind: "overlay", Name: name, Known: names(active)}
		}
	}
	for _, ref := range active.Overlays {
		if slices.Contains(o.Keep, ref.Name) {
			p.Kept = append(p.Kept, ref.Name)
		} else {
			p.Emptied = append(p.Emptied, ref.Name)
		}
	}
	return p, nil
}

// Reset commits a deployment whose overlays are empty, but for the kept ones. The
// new state is on stable storage when it returns. Error: *subvolumes.UnknownError,
// for a kept name that is no overlay; nothing was changed then.
func Reset(ctx context.Context, w *subvolumes.Writer, o Options) (*subvolumes.Record, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	plan, err := NewPlan(r, o)
	if err != nil {
		return nil, err
	}
	if o.Reason == "" {
		o.Reason = reason(o)
	}
	active := r.Active()
	refs := make([]subvolumes.OverlayRef, 0, len(active.Overlays))
	for _, ref := range active.Overlays {
		if slices.Contains(plan.Emptied, ref.Name) {
			if ref, err = w.FreshOverlay(ctx, defOf(r, ref), plan.Base); err != nil {
				return nil, err
			}
		}
		refs = append(refs, ref)
	}
	// Back to the factory's base is back in time, and that was asked for.
	return w.Deploy(ctx, subvolumes.Deployment{Base: plan.Base, Overlays: refs, Reason: o.Reason},
		subvolumes.DeployOptions{AllowDowngrade: o.ToFactory})
}

func activeOf(r *subvolumes.Record) (*subvolumes.Deployment, error) {
	if d := r.Active(); d != nil {
		return d, nil
	}
	return nil, &subvolumes.UnknownError{Kind: "deployment", Name: "current", Known: deployments(r)}
}

// defOf is the definition of a deployment's overlay; one whose definition is gone
// is defined by the deployment itself.
func defOf(r *subvolumes.Record, ref subvolumes.OverlayRef) subvolumes.OverlayDef {
	if def := r.Overlay(ref.Name); def != nil {
		return *def
	}
	return subvolumes.OverlayDef{Name: ref.Name, Paths: ref.Paths, FollowBase: ref.FollowBase}
}

func names(d *subvolumes.Deployment) []string {
	var out []string
	for _, ref := range d.Overlays {
		out = append(out, ref.Name)
	}
	return out
}

func deployments(r *subvolumes.Record) []string {
	var out []string
	for _, d := range r.Deployments {
		out = append(out, fmt.Sprint(d.ID))
	}
	return out
}

func reason(o Options) string {
	s := "reset"
	if o.ToFactory {
		s += " --to-factory"
	}
	for _, k := range o.Keep {
		s += " --keep " + k
	}
	return s
}
