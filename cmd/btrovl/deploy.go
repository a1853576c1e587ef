package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// switchTime bounds how long a view may take to follow. Finding out what differs
// between two bases may read both.
const switchTime = 10 * time.Minute

// switchFlags say which mounted views follow a new deployment.
type switchFlags struct {
	nextBoot bool
	now      bool // only where the view that is / does not follow by itself
}

func (f *switchFlags) add(c *cobra.Command, rootWaits bool) {
	c.Flags().BoolVar(&f.nextBoot, "next-boot", false, "leave mounted views as they are until they are mounted again")
	if rootWaits {
		c.Flags().BoolVar(&f.now, "now", false, "switch the view that is / as well")
	} else {
		f.now = true
	}
}

// switched says what became of a mounted view, for JSON.
type switched struct {
	Mountpoint string  `json:"mountpoint"`
	PID        int     `json:"pid"`
	Switched   bool    `json:"switched"`
	Changed    int     `json:"changed"`   // names, contents and listings that the kernel had cached
	PausedMS   float64 `json:"paused_ms"` // how long requests waited
	FrozenMS   float64 `json:"frozen_ms"` // how long changes waited, from the snapshots of overlays on
	TotalMS    float64 `json:"total_ms"`
	Prepared   bool    `json:"prepared"`         // what differs had been found before changes waited
	Reason     string  `json:"reason,omitempty"` // why it was not switched
	err        error
}

// deploy runs commit, which writes a new deployment, and lets the mounted views
// follow it. If base is set, it becomes the base, and the views find out before what that
// changes. If freeze is set, no view changes an overlay between the snapshots that commit
// takes and the switch. Views are thawed on every path; a process that
// dies here thaws too, because the view's daemon sees the connection end.
//
// Nothing is printed meanwhile: standard error may lie on a frozen view.
func (a *app) deploy(ctx context.Context, p *subvolumes.Pool, f switchFlags, base string, freeze bool, commit func() error) ([]switched, error) {
	list, err := views(ctx, p)
	if err != nil {
		return nil, err
	}
	defer closeViews(list)
	if base != "" && !f.nextBoot {
		prepareAll(ctx, list, base)
	}
	if freeze && len(list) > 0 {
		syncPool(p) // what the snapshots would write while everybody waits
		thaw, err := freezeAll(ctx, list)
		defer thaw()
		if err != nil {
			return nil, err
		}
	}
	if err := commit(); err != nil {
		return nil, err
	}
	// From here on the deployment is committed: a signal no longer stops anything.
	ctx = context.WithoutCancel(ctx)
	out := []switched{}
	for _, v := range list {
		out = append(out, v.follow(ctx, f))
	}
	return out, nil
}

// prepareAll lets the views search for what the next base will change. What fails here
// is done at the switch.
func prepareAll(ctx context.Context, list []*view, base string) {
	for _, v := range list {
		if v.err == nil {
			v.call(ctx, switchTime, "prepare", map[string]string{"base": base}, nil)
		}
	}
}

func syncPool(p *subvolumes.Pool) {
	if f, err := os.Open(p.Dir()); err == nil {
		btrfs.Syncfs(f)
		f.Close()
	}
}

// freezeAll freezes every view and returns what thaws them.
func freezeAll(ctx context.Context, list []*view) (thaw func(), err error) {
	var frozen []*view
	thaw = func() {
		for _, v := range frozen {
			v.call(context.WithoutCancel(ctx), answerTime, "thaw", nil, nil)
		}
	}
	for _, v := range list {
		if v.err != nil || v.ReadOnly {
			continue
		}
		if err := v.call(ctx, time.Minute, "freeze", nil, nil); err != nil {
			return thaw, fmt.Errorf("cannot freeze the view at %s: %w", v.where(), err)
		}
		frozen = append(frozen, v)
	}
	return thaw, nil
}

// follow tells a view to look at the record.
func (v *view) follow(ctx context.Context, f switchFlags) switched {
	s := switched{Mountpoint: v.where(), PID: v.PID, err: v.err}
	switch {
	case v.err != nil:
		s.Reason = v.err.Error()
		return s
	case f.nextBoot:
		s.Reason = "--next-boot"
		return s
	case v.isRoot() && !f.now:
		s.Reason = "it is the root file system: it follows at the next boot, or with --now"
		return s
	}
	var ans switchAnswer
	if s.err = v.call(ctx, switchTime, "switch", nil, &ans); s.err != nil {
		s.Reason = s.err.Error()
		return s
	}
	s.Switched, s.Changed, s.Prepared = true, ans.Changed, ans.Prepared
	s.PausedMS, s.FrozenMS, s.TotalMS = ms(ans.Paused), ms(ans.Frozen), ms(ans.Total)
	return s
}

func ms(d time.Duration) float64 { return float64(d.Round(time.Microsecond)) / 1e6 }

// switchedText tells people which views follow.
func (a *app) switchedText(list []switched) {
	for _, s := range list {
		switch {
		case s.Switched:
			a.say("switched %s: %s changed, requests waited %.2f ms", s.Mountpoint, plural(s.Changed, "cached path", "cached paths"), s.PausedMS)
		case s.err == nil:
			a.say("not switched %s: %s", s.Mountpoint, s.Reason)
		}
	}
}

// behind is the error of a command that committed while a view could not follow.
func behind(list []switched) error {
	var at []string
	var errs []error
	for _, s := range list {
		if s.err != nil {
			at, errs = append(at, s.Mountpoint), append(errs, s.err)
		}
	}
	if len(at) == 0 {
		return nil
	}
	return coded(codeViews, fmt.Errorf("the new deployment is committed, but these views still show the old one: %s: %w",
		strings.Join(at, ", "), errors.Join(errs...)), "mount them again: btrovl umount MOUNTPOINT && btrovl mount MOUNTPOINT")
}

// deployReport is what commands that make a deployment print with --json.
type deployReport struct {
	Deployment int        `json:"deployment"`
	Base       string     `json:"base"`
	Overlays   []string   `json:"overlays"` // incarnations
	Reason     string     `json:"reason"`
	Trial      bool       `json:"trial"`
	TriesLeft  int        `json:"tries_left"`
	Views      []switched `json:"views"`
}

func newDeployReport(r *subvolumes.Record, list []switched) deployReport {
	d := r.Active()
	out := deployReport{Overlays: []string{}, Views: list}
	if d == nil {
		return out
	}
	out.Deployment, out.Base, out.Reason = d.ID, d.Base, d.Reason
	for _, o := range d.Overlays {
		out.Overlays = append(out.Overlays, o.Subvolume)
	}
	if r.Trial != nil {
		out.Trial, out.TriesLeft = true, r.Trial.TriesLeft
	}
	return out
}

// finishDeploy prints what was deployed and turns views that stayed behind into
// an error.
func (a *app) finishDeploy(r *subvolumes.Record, list []switched, done string) error {
	a.say("%s", done)
	a.switchedText(list)
	if a.json {
		if err := a.report(newDeployReport(r, list), nil); err != nil {
			return err
		}
	}
	return behind(list)
}
