package subvolumes

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// BootChoice is what a boot mounts.
type BootChoice struct {
	Deployment Deployment
	Trial      bool      // it is on trial
	TriesLeft  int       // boots that may still try it after this one
	FellBack   *Fallback // set if this boot does not mount what is active, and why
}

// Boot chooses the deployment to boot. A trial that has tries left is counted down,
// durably, before Boot returns; without one the current deployment is chosen and the
// fallback recorded. A deployment whose subvolumes are missing is not chosen: then
// the current, the previous and the factory deployment are looked at in this order.
//
// A device must come up: if the count cannot be written (a full or read-only file
// system), the current deployment is chosen, without an error, as an uncounted try
// could be repeated for ever. With no deployment yet, the first is made. Error:
// *UnknownError if there is nothing to boot.
func (w *Writer) Boot(ctx context.Context) (BootChoice, error) {
	r, err := w.EnsureDeployment(ctx, "")
	if err != nil {
		return BootChoice{}, err
	}
	var why []string
	if t := r.Trial; t != nil {
		d := r.Deployment(t.Deployment)
		err := w.p.usable(d)
		switch {
		case err != nil:
			why = append(why, err.Error())
		case t.TriesLeft == 0:
			why = append(why, fmt.Sprintf("deployment %d was not marked good in %d boots", d.ID, t.Tries))
		default:
			r, err = w.Commit(ctx, func(r *Record) error { r.Trial.TriesLeft--; return nil })
			if err == nil {
				return BootChoice{Deployment: *d, Trial: true, TriesLeft: r.Trial.TriesLeft}, nil
			}
			if ctx.Err() != nil {
				return BootChoice{}, err
			}
			return w.bootUncounted(ctx, err)
		}
	}
	d := w.lastGood(ctx, r, &why)
	if d == nil {
		return BootChoice{}, fmt.Errorf("no deployment can be booted: %s", strings.Join(why, "; "))
	}
	if len(why) == 0 {
		return BootChoice{Deployment: *d}, nil
	}
	return w.fallBack(ctx, r, *d, strings.Join(why, "; ")), nil
}

// bootUncounted is the choice if a try cannot be counted. The trial goes on: the next
// boot may find a disk that can be written.
func (w *Writer) bootUncounted(ctx context.Context, cause error) (BootChoice, error) {
	r, err := w.Record()
	if err != nil {
		return BootChoice{}, err
	}
	why := []string{"a try cannot be counted: " + cause.Error()}
	d := w.lastGood(ctx, r, &why)
	if d == nil {
		return BootChoice{}, fmt.Errorf("no deployment can be booted: %s", strings.Join(why, "; "))
	}
	return BootChoice{Deployment: *d, FellBack: &Fallback{
		Deployment: r.Active().ID, To: d.ID, Reason: strings.Join(why, "; "), Time: now(),
	}}, nil
}

// lastGood returns the first usable one of the current, previous and factory
// deployments, and says why others are not.
func (w *Writer) lastGood(ctx context.Context, r *Record, why *[]string) *Deployment {
	for i, id := range []int{r.Current, r.Previous, r.Factory} {
		d := r.Deployment(id)
		if d == nil || i > 0 && id == r.Current {
			continue
		}
		err := w.p.usable(d)
		if err == nil && slices.ContainsFunc(d.Overlays, func(o OverlayRef) bool { return o.Subvolume == "" }) {
			// Garbage collection took its overlays: it comes back with fresh ones.
			if d.Overlays, err = w.ownOverlays(ctx, slices.Clone(d.Overlays), d.Base, nil); err == nil {
				_, err = w.Commit(ctx, func(r *Record) error { r.Deployment(id).Overlays = d.Overlays; return nil })
			}
		}
		if err != nil {
			*why = append(*why, err.Error())
			continue
		}
		return d
	}
	return nil
}

// fallBack records the choice of d. It cannot fail: what cannot be written is at
// least not tried again in this boot.
func (w *Writer) fallBack(ctx context.Context, r *Record, d Deployment, reason string) BootChoice {
	left := r.Active().ID
	fb := &Fallback{Deployment: left, To: d.ID, Reason: reason, Time: now()}
	w.Commit(ctx, func(r *Record) error {
		if r.Trial != nil {
			r.endTrial(d.ID, reason)
		} else {
			r.Fallbacks = append(r.Fallbacks, *fb)
		}
		r.Current = d.ID
		if r.Previous == d.ID {
			r.Previous = 0
		}
		return nil
	})
	return BootChoice{Deployment: d, FellBack: fb}
}

// usable reports whether the subvolumes of a deployment are there, but for overlays
// that are to be made anew.
func (p *Pool) usable(d *Deployment) error {
	f, err := p.OpenBase(d.Base)
	if err != nil {
		return fmt.Errorf("deployment %d: %w", d.ID, err)
	}
	f.Close()
	for _, o := range d.Overlays {
		if o.Subvolume == "" {
			continue
		}
		f, err := p.OpenOverlay(o)
		if err != nil {
			return fmt.Errorf("deployment %d: %w", d.ID, err)
		}
		f.Close()
	}
	return nil
}
