package subvolumes

import (
	"context"
	"fmt"
	"slices"
	"strconv"
)

// DeployOptions shape [Writer.Deploy].
type DeployOptions struct {
	// Trial is how many boots may try the deployment before it is given up; 0 makes it
	// current at once, or, while a trial of the same base runs, takes over that trial:
	// a change of overlays does not prove a base.
	Trial int
	// AllowDowngrade accepts a base whose counter is below the pool's.
	AllowDowngrade bool
}

// Deploy commits a new deployment and gives it its role. Of d, the fields Base,
// Overlays (nil means those of the active deployment) and Reason are taken. Overlays
// that follow the base and are still the active deployment's own are snapshotted, if
// the base changes: writers to them must be held off until the views have switched.
// Everything d names must be durable. Durable on return. Errors: *UnknownError,
// *DowngradeError.
func (w *Writer) Deploy(ctx context.Context, d Deployment, o DeployOptions) (*Record, error) {
	return w.deploy(ctx, d, o, nil)
}

// deploy is Deploy with a further change that is committed together with it.
func (w *Writer) deploy(ctx context.Context, d Deployment, o DeployOptions, also func(*Record) error) (*Record, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	base := r.Base(d.Base)
	if base == nil {
		return nil, &UnknownError{"base", d.Base, r.versions()}
	}
	downgrade := base.Counter < r.Counter
	active := r.Active()
	if downgrade && active != nil && active.Base != d.Base && !o.AllowDowngrade {
		return nil, &DowngradeError{base.Counter, r.Counter}
	}
	refs := slices.Clone(d.Overlays)
	if d.Overlays == nil && active != nil {
		refs = slices.Clone(active.Overlays)
	}
	baseChanges := active != nil && active.Base != d.Base
	refs, err = w.ownOverlays(ctx, refs, d.Base, func(ref OverlayRef) bool {
		return baseChanges && r.names(ref.Subvolume)
	})
	if err != nil {
		return nil, err
	}
	if err := w.p.usable(&Deployment{ID: r.Next, Base: d.Base, Overlays: refs}); err != nil {
		return nil, fmt.Errorf("cannot deploy: %w", err)
	}
	return w.Commit(ctx, func(r *Record) error {
		if also != nil {
			if err := also(r); err != nil {
				return err
			}
		}
		id := r.addDeployment(Deployment{
			Base: d.Base, Overlays: refs, Reason: d.Reason, Downgrade: downgrade && baseChanges,
		})
		r.makeActive(id, o.Trial)
		return nil
	})
}

// ownOverlays prepares the overlays of a new deployment: those that follow the base
// are snapshotted where another deployment would write to them too, as shared tells,
// and those that garbage collection took are made anew.
func (w *Writer) ownOverlays(ctx context.Context, refs []OverlayRef, base string, shared func(OverlayRef) bool) ([]OverlayRef, error) {
	for i, ref := range refs {
		var err error
		switch {
		case ref.Subvolume == "":
			def := OverlayDef{Name: ref.Name, Paths: ref.Paths, FollowBase: ref.FollowBase}
			refs[i], err = w.FreshOverlay(ctx, def, base)
		case shared != nil && ref.FollowBase && shared(ref):
			refs[i], err = w.SnapshotOverlay(ctx, ref)
		}
		if err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// names reports whether a deployment has this subvolume.
func (r *Record) names(subvolume string) bool {
	return slices.ContainsFunc(r.Deployments, func(d Deployment) bool {
		return slices.ContainsFunc(d.Overlays, func(o OverlayRef) bool { return o.Subvolume == subvolume })
	})
}

// addDeployment gives d an id and appends it.
func (r *Record) addDeployment(d Deployment) int {
	d.ID = r.Next
	d.Created = now()
	if a := r.Active(); a != nil {
		d.Parent = a.ID
	}
	r.Deployments = append(r.Deployments, d)
	r.Next++
	// Incarnations take their numbers from the same series, and may be ahead.
	for _, o := range d.Overlays {
		if _, n, ok := splitIncarnation(o.Subvolume); ok && n >= r.Next {
			r.Next = n + 1
		}
	}
	if b := r.Base(d.Base); b != nil {
		b.Pinned = false // from now on, deployments decide whether it is needed
	}
	return d.ID
}

// makeActive gives a new deployment its role.
func (r *Record) makeActive(id, tries int) {
	d := r.Deployment(id)
	switch {
	case r.Current == 0: // nothing to fall back to
		r.makeCurrent(id)
		if r.Factory == 0 {
			r.Factory = id
		}
	case tries > 0:
		r.Trial = &Trial{Deployment: id, TriesLeft: tries, Tries: tries}
	case r.Trial != nil && r.Deployment(r.Trial.Deployment).Base == d.Base:
		r.Trial.Deployment = id
	default:
		r.makeCurrent(id)
	}
}

// makeCurrent ends a trial and makes a deployment the last good one.
func (r *Record) makeCurrent(id int) {
	if r.Current != id {
		r.Previous, r.Current = r.Current, id
	}
	r.Trial = nil
	d := r.Deployment(id)
	d.Good = true
	if b := r.Base(d.Base); b != nil && b.Counter > r.Counter {
		r.Counter = b.Counter // never lowered: a downgrade must be allowed each time
	}
}

// EnsureDeployment makes the first deployment of what is there: the base baseHint, or
// the one that came last, and all overlays. If there is a deployment it does nothing.
// Durable on return. Error: *UnknownError if there is no (such) base.
func (w *Writer) EnsureDeployment(ctx context.Context, baseHint string) (*Record, error) {
	r, err := w.Record()
	if err != nil || r.Active() != nil {
		return r, err
	}
	if baseHint == "" && len(r.Bases) > 0 {
		baseHint = r.Bases[len(r.Bases)-1].Version
	}
	if r.Base(baseHint) == nil {
		return nil, &UnknownError{"base", baseHint, r.versions()}
	}
	refs := []OverlayRef{}
	for _, def := range r.Overlays {
		ref, err := w.FreshOverlay(ctx, def, baseHint)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return w.Deploy(ctx, Deployment{Base: baseHint, Overlays: refs, Reason: "first deployment"}, DeployOptions{})
}

// MarkGood makes the deployment on trial current for good. Without a trial it marks
// the current one. Durable on return. Error: *UnknownError if there is no deployment.
func (w *Writer) MarkGood(ctx context.Context) (*Record, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	active := r.Active()
	if active == nil {
		return nil, &UnknownError{Kind: "deployment", Name: "current"}
	}
	if r.Trial == nil && active.Good {
		return r, nil
	}
	return w.Commit(ctx, func(r *Record) error {
		r.makeCurrent(r.Active().ID)
		return nil
	})
}

// Rollback makes an earlier deployment active again. id 0 ends the trial, or without
// one takes the previous deployment; what was current is the previous one then, so a
// second rollback undoes the first. The end of a trial is recorded with its reason.
//
// The deployment is taken as it is. Only if it has overlays that follow the base,
// which nothing has written to since that base was left, is it copied to a new one
// with snapshots of these: one can come back to that state again. Durable on return.
// Error: *UnknownError.
func (w *Writer) Rollback(ctx context.Context, id int, reason string) (*Record, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	if id == 0 {
		id = r.Previous
		if r.Trial != nil {
			id = r.Current
		}
		if id == 0 {
			return nil, &UnknownError{"deployment", "previous", r.deploymentIDs()}
		}
	}
	target := r.Deployment(id)
	if target == nil {
		return nil, &UnknownError{"deployment", strconv.Itoa(id), r.deploymentIDs()}
	}
	// An untouched one needs no copy: ending a trial returns to overlays that
	// nobody has written to since the snapshots for the trial were taken.
	if id == r.Current {
		if r.Trial == nil {
			return r, nil
		}
		return w.Commit(ctx, func(r *Record) error {
			r.endTrial(r.Current, orElse(reason, "rolled back"))
			return nil
		})
	}
	active := r.Active()
	refs, err := w.ownOverlays(ctx, slices.Clone(target.Overlays), target.Base, func(ref OverlayRef) bool {
		mine := active.Overlay(ref.Name)
		return active.ID != id && (mine == nil || mine.Subvolume != ref.Subvolume || active.Base != target.Base)
	})
	if err != nil {
		return nil, err
	}
	if err := w.p.usable(&Deployment{ID: id, Base: target.Base, Overlays: refs}); err != nil {
		return nil, fmt.Errorf("cannot roll back: %w", err)
	}
	return w.Commit(ctx, func(r *Record) error {
		target := r.Deployment(id)
		to := id
		if !slices.EqualFunc(refs, target.Overlays, func(a, b OverlayRef) bool { return a.Subvolume == b.Subvolume }) {
			d := *target
			d.Overlays, d.Good = refs, true
			d.Reason = orElse(reason, fmt.Sprintf("rollback to %d", id))
			to = r.addDeployment(d)
		}
		if r.Trial != nil && r.Trial.Deployment != id {
			r.endTrial(to, orElse(reason, "rolled back"))
		}
		counter := r.Counter
		r.makeCurrent(to)
		r.Counter = counter // going back proves nothing
		return nil
	})
}

// endTrial records that a trial ended without being marked good.
func (r *Record) endTrial(to int, reason string) {
	r.Fallbacks = append(r.Fallbacks, Fallback{Deployment: r.Trial.Deployment, To: to, Reason: reason, Time: now()})
	if n := len(r.Fallbacks); n > maxFallbacks {
		r.Fallbacks = r.Fallbacks[n-maxFallbacks:]
	}
	r.Trial = nil
}

// maxFallbacks bounds the history, as the state must stay small.
const maxFallbacks = 16

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}
