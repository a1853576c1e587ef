package fusefs

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Freeze lets every request that changes something wait until Thaw, Switch or
// Options.FreezeMax, and returns when none is under way any more. Reading goes on.
func (v *View) Freeze(ctx context.Context) error {
	if err := v.u.Freeze(ctx); err != nil {
		return fmt.Errorf("cannot freeze the view at %s: %w", v.mountpoint, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.frozen, v.expired = time.Now(), false
	v.freezing++
	this := v.freezing
	v.timer = time.AfterFunc(v.opt.FreezeMax, func() {
		if v.thaw(this, true) {
			v.log.Warn("the view was frozen for too long and goes on", "mountpoint", v.mountpoint, "limit", v.opt.FreezeMax)
		}
	})
	return nil
}

// Thaw ends a Freeze. It does nothing without one.
func (v *View) Thaw() {
	v.mu.Lock()
	this := v.freezing
	v.expired = false
	v.mu.Unlock()
	v.thaw(this, false)
}

func (v *View) thaw(this int, expired bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.frozen.IsZero() || this != v.freezing {
		return false
	}
	v.frozen, v.expired = time.Time{}, expired
	v.timer.Stop()
	v.u.Thaw()
	return true
}

// ErrThawed is returned by Switch if a freeze was not ended by its client but by
// Options.FreezeMax: what was snapshotted under it may lack what was written since.
// The client freezes and snapshots again, or thaws and switches.
var ErrThawed = errors.New("the freeze ended before the switch")
