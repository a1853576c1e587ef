package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

// resetReport is "reset --dry-run --json".
type resetReport struct {
	DryRun   bool           `json:"dry_run"`
	Base     string         `json:"base"`
	Overlays []resetOverlay `json:"overlays"`
}

type resetOverlay struct {
	Name    string `json:"name"`
	Kept    bool   `json:"kept"`
	Changes int    `json:"changes"` // against the base; of a kept one they stay
}

// planReset says what a reset would do.
func (a *app) planReset(ctx context.Context, p *subvolumes.Pool, r *subvolumes.Record, o reset.Options) error {
	plan, err := reset.NewPlan(r, o)
	if err != nil {
		return err
	}
	out := resetReport{DryRun: true, Base: plan.Base, Overlays: []resetOverlay{}}
	for _, ref := range r.Active().Overlays {
		l := resetOverlay{Name: ref.Name, Kept: slices.Contains(plan.Kept, ref.Name)}
		err := reset.Changes(ctx, p, r.Active(), ref.Name, func(reset.Change) error {
			l.Changes++
			return nil
		})
		if err != nil {
			return err
		}
		out.Overlays = append(out.Overlays, l)
	}
	return a.report(out, func(w io.Writer) {
		for _, l := range out.Overlays {
			if l.Kept {
				fmt.Fprintf(w, "overlay %s\tis kept, with %s\n", l.Name, plural(l.Changes, "change", "changes"))
			} else {
				fmt.Fprintf(w, "overlay %s\tis emptied: %s (see btrovl diff %s)\n", l.Name, plural(l.Changes, "change", "changes"), l.Name)
			}
		}
		fmt.Fprintf(w, "base\t%s\n", plan.Base)
		fmt.Fprintf(w, "dry run\tnothing was changed\n")
	})
}
