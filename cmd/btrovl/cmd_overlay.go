package main

import (
	"context"
	"fmt"
	"io"
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
				list, err := a.deploy(ctx, p, f, false, func() (err error) {
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

func (a *app) overlayRemoveCmd() *cobra.Command {
	var f switchFlags
	var yes bool
	c := a.reports(command("remove NAME", "Remove an overlay",
		manual{
			effect: `Removes the definition. If there is a deployment, a new one without the overlay
becomes active, and views show the base in its place. The content stays with earlier
deployments, until garbage collection takes them. Asks on a terminal.`,
			durable: "the new deployment is on stable storage before any view shows it.",
			exits:   poolExits(codeUnknown, codeDeclined, codeViews),
			example: "btrovl overlay remove data --yes",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "overlay remove "+args[0], func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				r, err := w.Record()
				if err != nil {
					return err
				}
				if err := knownOverlay(r, args[0]); err != nil {
					return err
				}
				if err := a.confirm(ctx, yes, "Remove overlay %s? Its files are no longer shown.", args[0]); err != nil {
					return err
				}
				list, err := a.deploy(ctx, p, f, false, func() (err error) {
					r, err = w.RemoveOverlay(ctx, args[0])
					return err
				})
				if err != nil {
					return err
				}
				return a.finishDeploy(r, list, fmt.Sprintf("overlay %s removed", args[0]))
			})
		}))
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	f.add(c, true)
	return c
}

// overlayReport is one overlay in "overlay list --json".
type overlayReport struct {
	Name       string   `json:"name"`
	Paths      []string `json:"paths"`
	FollowBase bool     `json:"follow_base"`
	Subvolume  string   `json:"subvolume"` // in the active deployment, "" if there is none
	Backups    int      `json:"backups"`
}

func (a *app) overlayListCmd() *cobra.Command {
	return a.reports(command("list", "List the overlays",
		manual{
			effect:  "Lists every overlay with the paths that it claims and its subvolume.",
			exits:   poolExits(),
			example: "btrovl overlay list --json",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
				out := []overlayReport{}
				for _, o := range r.Overlays {
					rep := overlayReport{Name: o.Name, Paths: o.Paths, FollowBase: o.FollowBase}
					if d := r.Active(); d != nil {
						if ref := d.Overlay(o.Name); ref != nil {
							rep.Subvolume = ref.Subvolume
						}
					}
					backups, err := p.Backups(o.Name)
					if err != nil {
						return err
					}
					rep.Backups = len(backups)
					out = append(out, rep)
				}
				return a.report(map[string]any{"overlays": out}, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tPATHS\tFOLLOWS BASE\tSUBVOLUME\tBACKUPS")
					for _, o := range out {
						fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%d\n", o.Name, strings.Join(o.Paths, " "), o.FollowBase, orDash(o.Subvolume), o.Backups)
					}
				})
			})
		}))
}

// knownOverlay refuses a name that is no overlay.
func knownOverlay(r *subvolumes.Record, name string) error {
	if r.Overlay(name) != nil {
		return nil
	}
	var known []string
	for _, o := range r.Overlays {
		known = append(known, o.Name)
	}
	return &subvolumes.UnknownError{Kind: "overlay", Name: name, Known: known}
}
