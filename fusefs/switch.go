package fusefs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
)

// Switch lets the view show the layers of next from now on. What is open or mapped
// keeps its content, what is mounted below stays, and when Switch returns nothing
// old is found by name any more but below a mount, until that is gone. Requests wait only while the layers are exchanged
// (SwitchReport.Paused). A Freeze ends with it; if one ended by its limit before,
// Switch fails with ErrThawed. If ctx ends before that, the view
// goes on with what it had.
func (v *View) Switch(ctx context.Context, next overlay.Config) (r SwitchReport, err error) {
	v.switching.Lock()
	defer v.switching.Unlock()
	start := time.Now()
	plan, prepared, err := v.plan(ctx, next)
	if err != nil {
		return r, fmt.Errorf("cannot switch the view at %s: %w", v.mountpoint, err)
	}
	c, err := v.commit(plan, &r)
	if err != nil {
		return r, fmt.Errorf("cannot switch the view at %s: %w", v.mountpoint, err)
	}
	// From a goroutine that serves no request, and without any lock that a request
	// needs: the kernel waits for lookups under way in the directory.
	v.tell(&c)
	v.watchMounts()
	r.Prepared = prepared
	r.Changed = len(c.Gone) + len(c.Added) + len(c.Content)
	r.Nodes = c.Nodes
	r.Total = time.Since(start)
	v.log.Info("switched", "mountpoint", v.mountpoint, "base", next.Base.Name(), "gone", len(c.Gone), "added", len(c.Added),
		"directories", len(c.Content), "nodes", c.Nodes, "paused", r.Paused, "total", r.Total)
	return r, nil
}

// Prepare finds out what a switch to the layers of next will change, while all goes
// on. A Switch to these layers, or to snapshots of overlays among them
// (overlay.Upper.Snapshot), then needs to look only at what changed since: with
// Freeze between the two, changes wait for that and not for the search. Another Switch,
// Prepare or Discard gives it up.
func (v *View) Prepare(ctx context.Context, next overlay.Config) error {
	v.switching.Lock()
	defer v.switching.Unlock()
	v.discard()
	busy, err := v.mountsBelow()
	if err == nil {
		v.prepared, err = v.u.Prepare(ctx, next, busy)
	}
	if err != nil {
		return fmt.Errorf("cannot prepare a switch of the view at %s: %w", v.mountpoint, err)
	}
	return nil
}

// Discard gives up what Prepare prepared.
func (v *View) Discard() {
	v.switching.Lock()
	defer v.switching.Unlock()
	v.discard()
}

func (v *View) discard() {
	if v.prepared != nil {
		v.prepared.Abort()
		v.prepared = nil
	}
}

// plan returns what was prepared if it is for these layers, or else prepares.
func (v *View) plan(ctx context.Context, next overlay.Config) (plan *overlay.Plan, prepared bool, err error) {
	busy, err := v.mountsBelow()
	if err != nil {
		return nil, false, err
	}
	if p := v.prepared; p != nil {
		v.prepared = nil
		fits, err := p.Follow(ctx, next, busy)
		if fits && err == nil {
			return p, true, nil
		}
		p.Abort()
		if err != nil {
			return nil, false, err
		}
		v.log.Debug("a prepared switch does not fit any more", "mountpoint", v.mountpoint)
	}
	plan, err = v.u.Prepare(ctx, next, busy)
	return plan, false, err
}

func (v *View) commit(plan *overlay.Plan, r *SwitchReport) (c overlay.Changes, err error) {
	v.mu.Lock() // no timer thaws meanwhile
	frozen := !v.frozen.IsZero()
	if v.expired {
		v.expired = false
		v.mu.Unlock()
		plan.Abort()
		return c, ErrThawed
	}
	if !frozen {
		v.mu.Unlock()
		c, r.Paused, err = plan.Commit(false)
		v.mu.Lock()
	} else {
		c, r.Paused, err = plan.Commit(true)
		if err == nil {
			r.Frozen = time.Since(v.frozen)
			v.frozen = time.Time{}
			v.timer.Stop()
			v.u.Thaw()
		}
	}
	if err == nil {
		v.switches++
	}
	v.mu.Unlock()
	return c, err
}

// tell lets the kernel forget what a switch changed. Names in the deepest
// directories come first: a removed directory must have lost its entries.
func (v *View) tell(c *overlay.Changes) {
	for _, g := range c.Gone {
		v.forgetName(g)
	}
	for _, a := range c.Added {
		v.conn.forgetEntry(a.Parent, a.Name)
	}
	for _, id := range c.Content {
		// The kernel may be reading the old list this moment; this waits for it.
		v.conn.forgetEntry(id, handshakeName)
		v.conn.forgetInode(id, 0, 0)
	}
	for _, id := range c.Attrs {
		v.conn.forgetInode(id, -1, 0)
	}
}

// forgetName lets the kernel forget a name whose object is gone from there.
func (v *View) forgetName(g overlay.NameRef) {
	switch err := v.conn.deleteEntry(g.Parent, g.Child, g.Name); err {
	case nil, unix.ENOENT:
	default:
		// Still used below; it is not found by name any more.
		v.log.Debug("a removed name is in use", "name", g.Name, "error", err)
		v.conn.forgetEntry(g.Parent, g.Name)
	}
}

// mountsBelow returns the paths in the view on which something is mounted, in any
// mount namespace, and all paths above them.
func (v *View) mountsBelow() (map[string]bool, error) {
	busy := map[string]bool{}
	files, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, f := range append([]string{"/proc/self/mountinfo"}, files...) {
		ns, err := os.Readlink(filepath.Dir(f) + "/ns/mnt")
		if err != nil || seen[ns] {
			continue // the process is gone, or its namespace was read
		}
		seen[ns] = true
		v.busyIn(f, busy)
	}
	return busy, nil
}

func (v *View) busyIn(mountinfo string, busy map[string]bool) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return
	}
	defer f.Close()
	dev := fmt.Sprintf("%d:%d", unix.Major(v.dev), unix.Minor(v.dev))
	mounts := map[string]mountLine{}
	var all []mountLine
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if m, ok := parseMount(sc.Text()); ok {
			mounts[m.id] = m
			all = append(all, m)
		}
	}
	for _, m := range all {
		p, ok := mounts[m.parent]
		if !ok || p.dev != dev || m.id == m.parent {
			continue
		}
		rel, ok := strings.CutPrefix(m.point, strings.TrimSuffix(p.point, "/"))
		if !ok {
			continue
		}
		// p may itself be a bind mount of a directory of the view.
		path := strings.Trim(p.root+rel, "/")
		if p.root == "/" {
			path = strings.Trim(rel, "/")
		}
		for ; path != "" && path != "."; path = strings.TrimPrefix(filepath.Dir("/"+path), "/") {
			busy[path] = true
		}
	}
}
