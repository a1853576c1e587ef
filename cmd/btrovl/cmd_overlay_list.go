package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

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
