package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) statusCmd() *cobra.Command {
	var ops bool
	var prof string
	c := a.reports(command("status", "What is active, on trial and mounted",
		manual{
			effect: `Shows the active deployment, the trial and its tries, the mounted views and what is
free. With --ops every view's counters and latencies by kind of request, and requests
that have waited for more than a second.`,
			exits:   poolExits(),
			example: "btrovl status\nbtrovl status --json | jq .deployment\nbtrovl status --ops",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
				list, err := views(ctx, p)
				if err != nil {
					return err
				}
				defer closeViews(list)
				switch {
				case prof != "":
					return a.profile(ctx, list, prof)
				case ops:
					return a.ops(ctx, list)
				}
				out, err := newStatus(p, r, list)
				if err != nil {
					return err
				}
				return a.report(out, func(w io.Writer) { out.text(w, r) })
			})
		}))
	c.Flags().BoolVar(&ops, "ops", false, "show the views' counters and latencies")
	c.Flags().StringVar(&prof, "profile", "", "write a Go profile of the view's process to standard output (cpu, heap, goroutine, …)")
	return c
}

// statusReport is "status --json".
type statusReport struct {
	Pool       string                  `json:"pool"`
	Dir        string                  `json:"dir"`
	Deployment int                     `json:"deployment"` // 0: none yet
	Base       string                  `json:"base"`
	Good       bool                    `json:"good"`
	Reason     string                  `json:"reason"`
	Overlays   []subvolumes.OverlayRef `json:"overlays"`
	Current    int                     `json:"current"`
	Previous   int                     `json:"previous"`
	Factory    int                     `json:"factory"`
	Trial      *subvolumes.Trial       `json:"trial"` // null without one
	Counter    uint64                  `json:"counter"`
	Compatible string                  `json:"compatible"`
	Fallback   *subvolumes.Fallback    `json:"fallback"` // the last one, null without
	Views      []viewReport            `json:"views"`
	Free       uint64                  `json:"free"`
	Version    string                  `json:"btrovl"`
}

func newStatus(p *subvolumes.Pool, r *subvolumes.Record, list []*view) (*statusReport, error) {
	sp, err := p.Space()
	if err != nil {
		return nil, err
	}
	s := &statusReport{Pool: p.ID(), Dir: p.Dir(), Overlays: []subvolumes.OverlayRef{}, Current: r.Current, Previous: r.Previous,
		Factory: r.Factory, Trial: r.Trial, Counter: r.Counter, Compatible: r.Compatible,
		Views: viewReports(list), Free: sp.Free, Version: versionString()}
	if d := r.Active(); d != nil {
		s.Deployment, s.Base, s.Good, s.Reason = d.ID, d.Base, d.Good, d.Reason
		s.Overlays = append(s.Overlays, d.Overlays...)
	}
	if n := len(r.Fallbacks); n > 0 {
		s.Fallback = &r.Fallbacks[n-1]
	}
	return s, nil
}

func (s *statusReport) text(w io.Writer, r *subvolumes.Record) {
	fmt.Fprintf(w, "pool\t%s (%s)\n", s.Dir, s.Pool)
	if s.Deployment == 0 {
		fmt.Fprintf(w, "deployment\tnone yet: the first mount makes one of what is there\n")
	} else {
		fmt.Fprintf(w, "deployment\t%d, %s: %s\n", s.Deployment, orDash(strings.Join(r.Roles(s.Deployment), ", ")), s.Reason)
		fmt.Fprintf(w, "base\t%s\n", s.Base)
	}
	if t := s.Trial; t != nil {
		fmt.Fprintf(w, "trial\t%d of %s left; keep it with mark-good, end it with rollback\n", t.TriesLeft, plural(t.Tries, "try", "tries"))
	}
	for _, o := range s.Overlays {
		follows := ""
		if o.FollowBase {
			follows = ", follows the base"
		}
		fmt.Fprintf(w, "overlay\t%s at %s (%s%s)\n", o.Name, strings.Join(o.Paths, ", "), orDash(o.Subvolume), follows)
	}
	if f := s.Fallback; f != nil {
		fmt.Fprintf(w, "last fallback\tdeployment %d to %d at %s: %s\n", f.Deployment, f.To, when(f.Time), f.Reason)
	}
	for _, v := range s.Views {
		if v.Error != "" {
			fmt.Fprintf(w, "view\tprocess %d does not answer: %s\n", v.PID, v.Error)
			continue
		}
		how := ""
		if v.ReadOnly {
			how = ", read-only"
		}
		if v.Frozen {
			how += ", frozen"
		}
		if v.Deployment != s.Deployment {
			how += fmt.Sprintf(", still shows deployment %d", v.Deployment)
		}
		fmt.Fprintf(w, "view\t%s: process %d since %s, %d requests%s\n", v.Mountpoint, v.PID, when(v.Since), v.Requests, how)
	}
	if len(s.Views) == 0 {
		fmt.Fprintf(w, "view\tnone is mounted\n")
	}
	fmt.Fprintf(w, "free\t%s\n", size(int64(s.Free)))
}
