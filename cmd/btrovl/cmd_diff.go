package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

// diffReport is one overlay in "diff --json".
type diffReport struct {
	Overlay string         `json:"overlay"`
	Base    string         `json:"base"`
	Changes []reset.Change `json:"changes"`
}

func (a *app) diffCmd() *cobra.Command {
	return a.reports(command("diff [OVERLAY…]", "What overlays changed against the base",
		manual{
			effect: `Lists, for the named overlays of the active deployment (all without a name), what a
reset would lose: paths added, changed (content or only metadata) and deleted, as the
view shows them. Needs no mounted view.`,
			exits:   poolExits(codeUnknown),
			example: "btrovl diff system\nbtrovl diff --json | jq '.overlays[].changes[] | select(.kind==\"deleted\").path'",
		}, cobra.ArbitraryArgs,
		func(ctx context.Context, args []string) error {
			return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
				d := r.Active()
				if d == nil {
					return noDeployment(p)
				}
				if len(args) == 0 {
					for _, o := range d.Overlays {
						args = append(args, o.Name)
					}
				}
				out := []diffReport{}
				for _, name := range args {
					if err := knownOverlay(r, name); err != nil {
						return err
					}
					rep := diffReport{Overlay: name, Base: d.Base, Changes: []reset.Change{}}
					err := reset.Changes(ctx, p, d, name, func(c reset.Change) error {
						rep.Changes = append(rep.Changes, c)
						return nil
					})
					if err != nil {
						return err
					}
					out = append(out, rep)
				}
				return a.report(map[string]any{"overlays": out}, func(w io.Writer) { diffText(w, out) })
			})
		}))
}

func diffText(w io.Writer, list []diffReport) {
	for _, rep := range list {
		if len(rep.Changes) == 0 {
			fmt.Fprintf(w, "overlay %s: no changes against base %s\n", rep.Overlay, rep.Base)
			continue
		}
		fmt.Fprintf(w, "overlay %s: %s against base %s\n", rep.Overlay, plural(len(rep.Changes), "change", "changes"), rep.Base)
		for _, c := range rep.Changes {
			note := ""
			if c.MetadataOnly {
				note = "  (metadata only)"
			}
			fmt.Fprintf(w, "%s  %s%s\n", c.Kind, c.Path, note)
		}
	}
}
