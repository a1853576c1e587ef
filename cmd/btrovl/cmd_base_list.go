package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

// baseReport is one base in "base list --json".
type baseReport struct {
	Version     string    `json:"version"`
	Digest      string    `json:"digest"`
	Bytes       int64     `json:"bytes"` // content of its files
	Files       int64     `json:"files"`
	Exclusive   *int64    `json:"exclusive"`   // bytes that no other subvolume shares; null: not measured
	Deployments []int     `json:"deployments"` // that name it
	Source      string    `json:"source"`
	Created     time.Time `json:"created"`
	Counter     uint64    `json:"counter"`
	Compatible  string    `json:"compatible"`
	UUID        string    `json:"uuid"`
	Received    string    `json:"received_uuid"`
	Path        string    `json:"path"`
}

func newBaseReport(p *subvolumes.Pool, r *subvolumes.Record, b subvolumes.BaseInfo) baseReport {
	rep := baseReport{Version: b.Version, Digest: b.Digest, Bytes: b.Bytes, Files: b.Files, Deployments: []int{}, Source: b.Source,
		Created: b.Created, Counter: b.Counter, Compatible: b.Compatible, UUID: b.UUID, Received: b.Received, Path: p.BasePath(b.Version)}
	for _, d := range r.Deployments {
		if d.Base == b.Version {
			rep.Deployments = append(rep.Deployments, d.ID)
		}
	}
	return rep
}

func (a *app) baseListCmd() *cobra.Command {
	var fast bool
	c := a.reports(command("list", "List the bases",
		manual{
			effect:  "Lists every base with its digest, its size, how much of it no other subvolume\nshares (what removing it would free), and the deployments that use it.",
			exits:   poolExits(),
			example: "btrovl base list\nbtrovl base list --json --no-exclusive",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
				out := []baseReport{}
				for _, b := range r.Bases {
					rep := newBaseReport(p, r, b)
					if !fast {
						n, err := p.ExclusiveSize(ctx, b.Version)
						if err != nil {
							return err
						}
						rep.Exclusive = new(int64)
						*rep.Exclusive = int64(n)
					}
					out = append(out, rep)
				}
				return a.report(map[string]any{"bases": out}, func(w io.Writer) { basesText(w, r, out) })
			})
		}))
	c.Flags().BoolVar(&fast, "no-exclusive", false, "do not measure the exclusive size, which reads every extent")
	return c
}

func basesText(w io.Writer, r *subvolumes.Record, list []baseReport) {
	fmt.Fprintln(w, "VERSION\tDIGEST\tFILES\tSIZE\tEXCLUSIVE\tDEPLOYMENTS\tFROM")
	for _, b := range list {
		excl := "-"
		if b.Exclusive != nil {
			excl = size(*b.Exclusive)
		}
		var used []string
		for _, id := range b.Deployments {
			s := fmt.Sprint(id)
			if roles := r.Roles(id); len(roles) > 0 {
				s += " (" + strings.Join(roles, ", ") + ")"
			}
			used = append(used, s)
		}
		fmt.Fprintf(w, "%s\t%.16s…\t%d\t%s\t%s\t%s\t%s\n", b.Version, b.Digest, b.Files, size(b.Bytes), excl,
			orDash(strings.Join(used, ", ")), orDash(b.Source))
	}
}
