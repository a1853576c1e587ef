package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

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
				list, err := a.deploy(ctx, p, f, "", false, func() (err error) {
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
