package viewtest

import (
	"context"
	"errors"
	"slices"
)

// Shrink removes calls from a failed program as long as it fails in the same call (or in
// the trees), until no single call can be removed or the context ends, and returns the
// smallest failure found.
func (d *Differ) Shrink(ctx context.Context, f *Failure) *Failure {
	best := f
	try := func(ops []Op) bool {
		err := d.Run(ctx, f.Seed, ops)
		smaller, ok := errors.AsType[*Failure](err)
		if !ok || ctx.Err() != nil || smaller.call() != f.call() {
			return false
		}
		best = smaller
		best.Ops = best.Ops[:min(best.Step+1, len(best.Ops))]
		return true
	}
	f.Ops = slices.Clone(f.Ops)
	best.Ops = best.Ops[:min(best.Step+1, len(best.Ops))]
	for chunk := max(len(best.Ops)/2, 1); ; chunk = max(chunk/2, 1) {
		removed := false
		// From the end: the last calls are the ones that matter, so what stands
		// before them goes in large pieces.
		for end := len(best.Ops); end > 0; {
			start := max(end-chunk, 0)
			if end > len(best.Ops) {
				end = len(best.Ops)
				continue
			}
			ops := slices.Delete(slices.Clone(best.Ops), start, end)
			if len(ops) < len(best.Ops) && try(ops) {
				removed = true
			}
			if ctx.Err() != nil {
				return best
			}
			end = start
		}
		if chunk == 1 && !removed {
			return best
		}
	}
}

// call is what failed.
func (f *Failure) call() string {
	if f.Step >= len(f.Ops) {
		return "(trees)"
	}
	return f.Ops[f.Step].Call
}
