package fusefs

import (
	"context"
	"errors"

	"github.com/btrovl/btrovl/overlay"
)

// Switch lets the view show the layers of next from now on.
func (v *View) Switch(ctx context.Context, next overlay.Config) (SwitchReport, error) {
	return SwitchReport{}, errors.New("not yet")
}
