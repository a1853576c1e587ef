package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) resetCmd() *cobra.Command {
	var o reset.Options
	var f switchFlags
	var yes, dryRun bool
	c := a.reports(command("reset", "Factory reset: empty overlays, but for those to keep",
		manual{
			effect: `Makes a new deployment whose overlays are empty, but for the kept ones, which stay
byte for byte. With --to-factory the base becomes the factory's too. Nothing is
deleted: "btrovl rollback" undoes the reset, until garbage collection takes the old
deployment. Mounted views switch at once; the one that is / at the next boot, unless
--now. Works on a full disk. Asks on a terminal; elsewhere it needs --yes.`,
			durable: "the new deployment is on stable storage before any view shows it.",
			exits:   poolExits(codeUnknown, codeSpace, codeViews, codeDeclined),
			example: "btrovl reset --keep data\nbtrovl reset --keep data --keep wifi --yes\nbtrovl reset --to-factory --dry-run",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			o.Keep = split(o.Keep)
			if dryRun {
				return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
					return a.planReset(ctx, p, r, o)
				})
			}
			return a.write(ctx, "reset", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				if err := a.confirmReset(ctx, w, o, yes); err != nil {
					return err
				}
				var r *subvolumes.Record
				list, err := a.deploy(ctx, p, f, "", false, func() (err error) {
					r, err = reset.Reset(ctx, w, o)
					return err
				})
				if err != nil {
					return err
				}
				return a.finishDeploy(r, list, fmt.Sprintf("reset: deployment %d (base %s); undo it with: btrovl rollback", r.Active().ID, r.Active().Base))
			})
		}))
	c.Flags().StringSliceVar(&o.Keep, "keep", nil, "an overlay that stays as it is (several times for several)")
	c.Flags().BoolVar(&o.ToFactory, "to-factory", false, "also go back to the base that the machine was delivered with")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be lost; change nothing")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	f.add(c, true)
	return c
}

// confirmReset checks the names, so that a typing error is told before the
// question, and asks.
func (a *app) confirmReset(ctx context.Context, w *subvolumes.Writer, o reset.Options, yes bool) error {
	r, err := w.Record()
	if err != nil {
		return err
	}
	plan, err := reset.NewPlan(r, o)
	if err != nil {
		return err
	}
	what := "Empty the overlays " + strings.Join(plan.Emptied, ", ")
	if len(plan.Emptied) == 0 {
		what = "Make a new deployment (every overlay is kept)"
	}
	if now := r.Active().Base; plan.Base != now {
		what += fmt.Sprintf(" and go from base %s back to base %s", now, plan.Base)
	}
	return a.confirm(ctx, yes, "%s?", what)
}
