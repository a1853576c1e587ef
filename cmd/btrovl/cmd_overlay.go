package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) overlayCmd() *cobra.Command {
	return group("overlay", "Overlays: what is writable, and where",
		`An overlay is a writable subvolume over one or more paths of the base. The longest
claimed path wins. At most one overlay claims /; without one, what no overlay
claims is read-only.`,
		a.overlayAddCmd(), a.overlayListCmd(), a.overlayRemoveCmd())
}

func (a *app) overlayAddCmd() *cobra.Command {
	var def subvolumes.OverlayDef
	var f switchFlags
	c := a.reports(command("add NAME --path PATH…", "Define an overlay",
		manual{
			effect: `Defines an overlay that claims the paths. If there is a deployment, a new one with
the overlay becomes active, and mounted views show it at once. An overlay that
follows the base is snapshotted at every update, so that rolling the base back brings
its content of that time back too; others are shared by all deployments.`,
			durable: "the overlay is on stable storage before any view shows it.",
			exits:   poolExits(codeExists, codeSpace, codeViews),
			example: "btrovl overlay add system --path /\nbtrovl overlay add data --path /var/lib/app --path /home\nbtrovl overlay add conf --path /etc --follow-base",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			def.Name, def.Paths = args[0], split(def.Paths)
			if len(def.Paths) == 0 {
				return usagef("an overlay needs at least one --path to claim (--path / claims all)")
			}
			return a.write(ctx, "overlay add "+def.Name, func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				var r *subvolumes.Record
				list, err := a.deploy(ctx, p, f, "", false, func() (err error) {
					r, err = w.AddOverlay(ctx, def)
					return err
				})
				if err != nil {
					return err
				}
				return a.finishDeploy(r, list, fmt.Sprintf("overlay %s claims %s", def.Name, strings.Join(def.Paths, ", ")))
			})
		}))
	c.Flags().StringSliceVar(&def.Paths, "path", nil, "a path to claim (several times for several)")
	c.Flags().BoolVar(&def.FollowBase, "follow-base", false, "snapshot the overlay at each update; roll it back with the base")
	f.add(c, true)
	return c
}
