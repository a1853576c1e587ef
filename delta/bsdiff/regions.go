package bsdiff

import "context"

// A Region is a stretch of a new text that resembles a stretch of an old one of the
// same length.
type Region struct {
	New, Old, Length int
}

// Regions returns what [Diff] builds on: the regions of new, in order. A caller that
// knows better what resembles what (see delta/exe) matches other texts of the same
// layout, and then makes operations of the regions with [Ops].
func Regions(ctx context.Context, old, new []byte) ([]Region, error) {
	regions, err := match(ctx, newIndex(old), new, 0)
	if err != nil {
		return nil, err
	}
	out := make([]Region, len(regions))
	for i, r := range regions {
		out[i] = Region{r.new, r.old, r.n}
	}
	return out, nil
}

// Ops returns the operations that make new out of old, along the given regions.
func Ops(new, old []byte, regions []Region) []Op {
	b := builder{new: new, text: newText([][]byte{old}), copyFrom: minCopy}
	for _, r := range regions {
		b.region(region{r.New, r.Old, r.Length})
	}
	b.insertTo(int64(len(new)))
	return b.ops
}
