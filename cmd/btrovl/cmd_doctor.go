package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

// findingReport is a finding in "doctor --json".
type findingReport struct {
	Severity string `json:"severity"` // note, warning, error
	What     string `json:"what"`
	Problem  string `json:"problem"`
	Remedy   string `json:"remedy"`
}

func (a *app) doctorCmd() *cobra.Command {
	var deep, rebuild bool
	c := a.reports(command("doctor", "Check a pool, explain what is wrong, rebuild a lost state",
		manual{
			effect: `Checks that the record can be read and that everything that it names is there, and
says what to do about what is not as it should be. --deep also reads every base and
compares its digest. Nothing is changed, except with --rebuild: it makes a lost or
unreadable state anew from the subvolumes (newest base, newest incarnation of every
overlay); an unreadable state is kept beside it.`,
			durable: "a rebuilt state is on stable storage when the command returns.",
			exits:   poolExits(codeFindings),
			example: "btrovl doctor\nbtrovl doctor --deep --json\nbtrovl doctor --rebuild",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			if err := needRoot("opening a pool"); err != nil {
				return err
			}
			p, lost, err := a.openDamaged()
			if err != nil {
				return err
			}
			defer p.Close()
			if rebuild {
				return a.rebuild(ctx, p, lost)
			}
			list, err := p.Check(ctx, deep)
			if err != nil {
				return err
			}
			return a.findings(list, lost)
		}))
	c.Flags().BoolVar(&deep, "deep", false, "read every base and compare its digest")
	c.Flags().BoolVar(&rebuild, "rebuild", false, "make a lost state anew from the subvolumes")
	return c
}

// openDamaged opens the pool; lost is why its state cannot be read.
func (a *app) openDamaged() (p *subvolumes.Pool, lost error, err error) {
	dir, err := a.poolPath()
	if err != nil {
		return nil, nil, err
	}
	p, err = subvolumes.Open(dir)
	var not *subvolumes.NotPoolError
	if errors.As(err, &not) && not.Lost {
		lost = err
		p, err = subvolumes.OpenDamaged(dir)
	}
	return p, lost, err
}

func (a *app) rebuild(ctx context.Context, p *subvolumes.Pool, lost error) error {
	if lost == nil {
		return usagef("the state of %s can be read: there is nothing to rebuild", p.Dir())
	}
	w, err := p.Lock(ctx, "doctor --rebuild", a.wait)
	if err != nil {
		return err
	}
	defer w.Close()
	r, err := w.Rebuild(ctx)
	if err != nil {
		return err
	}
	a.say("rebuilt the state: %s, %s", plural(len(r.Bases), "base", "bases"), plural(len(r.Overlays), "overlay", "overlays"))
	if d := r.Active(); d != nil {
		a.say("deployment %d: base %s; look at it before you rely on it: btrovl status", d.ID, d.Base)
	}
	if a.json {
		return a.report(newDeployReport(r, []switched{}), nil)
	}
	return nil
}

// findings prints them; warnings and errors make the exit code.
func (a *app) findings(list []subvolumes.Finding, lost error) error {
	out := []findingReport{}
	bad := 0
	for _, f := range list {
		out = append(out, findingReport{f.Severity, f.What, f.Problem, f.Remedy})
		if f.Severity != "note" {
			bad++
		}
	}
	err := a.report(map[string]any{"findings": out}, func(w io.Writer) {
		for _, f := range out {
			fmt.Fprintf(w, "%s: %s: %s\n", f.Severity, f.What, f.Problem)
			if f.Remedy != "" {
				fmt.Fprintf(w, "  remedy: %s\n", f.Remedy)
			}
		}
		if len(out) == 0 && lost == nil {
			fmt.Fprintln(w, "the pool is as it should be")
		}
	})
	if err != nil {
		return err
	}
	if lost != nil {
		return coded(codeFindings, lost, "make it anew from the subvolumes: btrovl doctor --rebuild")
	}
	if bad > 0 {
		return coded(codeFindings, fmt.Errorf("%s", plural(bad, "problem", "problems")))
	}
	return nil
}
