package exe

import (
	"context"
	"slices"

	"github.com/btrovl/btrovl/delta/bsdiff"
)

// matchRounds is how often moves are looked for. Each round knows better what old
// addresses become: on 53 programs and libraries of a Debian security update the patches
// had 768, 752 and 743 kB after one, two and three rounds, and 1392 without addresses.
const matchRounds = 3

// Match finds the moves between two versions of a file: in the order of their new
// places, without overlap there. None, without an error, if one of them is not
// known here.
func Match(ctx context.Context, old, new []byte) ([]Move, error) {
	a, b := Mask(old), Mask(new)
	if a == nil || b == nil {
		return nil, nil
	}
	types := Types(old, new)
	var moves []Move
	for round := range matchRounds {
		if round > 0 {
			a, b = slices.Clone(old), new
			Rewrite(a, new, slices.Clone(moves))
			RewriteTypes(a, types)
		}
		regions, err := bsdiff.Regions(ctx, a, b)
		if err != nil {
			return nil, err
		}
		moves = moves[:0]
		for _, r := range regions {
			moves = append(moves, Move{Old: int64(r.Old), New: int64(r.New), Length: int64(r.Length)})
		}
		if len(moves) == 0 {
			return nil, nil
		}
	}
	return moves, nil
}
