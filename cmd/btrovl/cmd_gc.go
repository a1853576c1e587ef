package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

// removedReport is what gc removed, or would remove.
type removedReport struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Held bool   `json:"held"` // it stays: a view uses it
}

func (a *app) gcCmd() *cobra.Command {
	var dry, forget bool
	c := a.reports(command("gc", "Remove what no kept deployment names",
		manual{
			effect: `Removes deployments other than the current, the one on trial, the previous and the
factory's, and then bases, overlays' subvolumes and unfinished stages that none of those
names. What a mounted view still uses stays until next time. Backups are never removed.
With --forget-previous the previous deployment goes too, and with it the way back.`,
			durable: "nothing that a record on stable storage names is removed. An interrupted gc is simply run again.",
			exits:   poolExits(),
			example: "btrovl gc --dry-run\nbtrovl gc",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "gc", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				if forget && !dry {
					if _, err := w.Commit(ctx, func(r *subvolumes.Record) error { r.Previous = 0; return nil }); err != nil {
						return err
					}
				}
				before, err := p.Space()
				if err != nil {
					return err
				}
				list, err := w.Collect(ctx, dry)
				if err != nil {
					return err
				}
				after, err := p.Space()
				if err != nil {
					return err
				}
				return a.gcReport(list, dry, int64(after.Free)-int64(before.Free))
			})
		}))
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	c.Flags().BoolVar(&forget, "forget-previous", false, "remove the previous deployment too: rollback is no longer possible")
	return c
}

func (a *app) gcReport(list []subvolumes.Removed, dry bool, freed int64) error {
	out := []removedReport{}
	for _, r := range list {
		out = append(out, removedReport{r.Kind, strings.TrimPrefix(r.Name, r.Kind+" "), r.Held})
	}
	return a.report(map[string]any{"removed": out, "dry_run": dry}, func(w io.Writer) {
		verb := "removed"
		if dry {
			verb = "would remove"
		}
		for _, r := range out {
			if r.Held {
				fmt.Fprintf(w, "stays\t%s %s\t(a view uses it)\n", r.Kind, r.Name)
			} else {
				fmt.Fprintf(w, "%s\t%s %s\n", verb, r.Kind, r.Name)
			}
		}
		switch {
		case len(out) == 0:
			fmt.Fprintln(w, "nothing to remove")
		case !dry && freed > 0:
			fmt.Fprintf(w, "freed so far\t%s (btrfs goes on freeing for a while)\n", size(freed))
		}
	})
}
