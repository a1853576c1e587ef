package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

// historyEntry is a deployment in "history --json".
type historyEntry struct {
	ID       int                     `json:"id"`
	Base     string                  `json:"base"`
	Overlays []subvolumes.OverlayRef `json:"overlays"`
	Created  time.Time               `json:"created"`
	Reason   string                  `json:"reason"`
	Parent   int                     `json:"parent"` // what was active when it was made
	Good     bool                    `json:"good"`
	// its base's counter was too low, and --allow-downgrade was given
	Downgrade bool     `json:"downgrade"`
	Roles     []string `json:"roles"`
}

func newHistoryEntry(r *subvolumes.Record, d subvolumes.Deployment) historyEntry {
	return historyEntry{d.ID, d.Base, append([]subvolumes.OverlayRef{}, d.Overlays...), d.Created, d.Reason, d.Parent, d.Good, d.Downgrade,
		append([]string{}, r.Roles(d.ID)...)}
}

func (a *app) historyCmd() *cobra.Command {
	return a.reports(command("history", "The deployments that are kept, and the fallbacks",
		manual{
			effect:  "Lists the deployments, newest first, with their roles and why each was made, then\nthe fallbacks: trials that ended without being marked good.",
			exits:   poolExits(),
			example: "btrovl history",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
				list := []historyEntry{}
				for _, d := range slices.Backward(r.Deployments) {
					list = append(list, newHistoryEntry(r, d))
				}
				fallbacks := append([]subvolumes.Fallback{}, r.Fallbacks...)
				return a.report(map[string]any{"deployments": list, "fallbacks": fallbacks}, func(w io.Writer) {
					fmt.Fprintln(w, "DEPLOYMENT\tBASE\tMADE\tROLES\tOVERLAYS\tREASON")
					for _, d := range list {
						var subs []string
						for _, o := range d.Overlays {
							subs = append(subs, orDash(o.Subvolume))
						}
						reason := d.Reason
						if d.Downgrade {
							reason += " (downgrade allowed)"
						}
						fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Base, when(d.Created),
							orDash(strings.Join(d.Roles, ", ")), orDash(strings.Join(subs, " ")), reason)
					}
					for _, f := range slices.Backward(fallbacks) {
						fmt.Fprintf(w, "fell back\tfrom %d to %d\t%s\t\t\t%s\n", f.Deployment, f.To, when(f.Time), f.Reason)
					}
				})
			})
		}))
}
