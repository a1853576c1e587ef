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
	v.frozen = time.Now()
	v.freezing++
	this := v.freezing
	v.timer = time.AfterFunc(v.opt.FreezeMax, func() {
		if v.thaw(this) {
			v.log.Warn("the view was frozen for too long and goes on", "mountpoint", v.mountpoint, "limit", v.opt.FreezeMax)
		}
	})
	return nil
}

// Thaw ends a Freeze. It does nothing without one.
func (v *View) Thaw() {
	v.mu.Lock()
	this := v.freezing
	v.mu.Unlock()
	v.thaw(this)
}

func (v *View) thaw(this int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.frozen.IsZero() || this != v.freezing {
		return false
	}
	v.frozen = time.Time{}
	v.timer.Stop()
	v.u.Thaw()
	return true
}

// ErrThawed is returned by Switch if the freeze that it relies on ended before.
var ErrThawed = errors.New("the freeze ended before the switch")
