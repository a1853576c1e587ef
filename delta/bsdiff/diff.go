package bsdiff

import (
	"context"
	"fmt"
	"math"
)

// Diff finds operations that make new out of the sources. It is deterministic.
// It keeps no reference to its arguments, which may be memory-mapped files.
func Diff(ctx context.Context, new []byte, sources [][]byte, o Options) ([]Op, error) {
	if o.Window <= 0 {
		o.Window = 64 << 20
	}
	o.Window = min(max(o.Window, 1<<20), math.MaxInt32-1)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	total := int64(0)
	for _, s := range sources {
		total += int64(len(s))
	}
	if total > math.MaxInt {
		return nil, fmt.Errorf("sources of %d bytes are too much for this machine", total)
	}
	t := newText(sources)
	var regions []region
	var err error
	if t.size <= o.Window {
		var old []byte
		if len(sources) == 1 {
			old = sources[0]
		} else {
			old = t.appendTo(make([]byte, 0, t.size), 0, t.size)
		}
		regions, err = match(ctx, newIndex(old), new, 0)
	} else {
		regions, err = longDiff(ctx, new, t, o.Window)
	}
	if err != nil {
		return nil, err
	}
	b := builder{new: new, text: t, copyFrom: minCopy}
	for _, r := range regions {
		b.region(r)
	}
	b.insertTo(int64(len(new)))
	return b.ops, nil
}

// minCopy is the least number of equal bytes between changed ones that is a Copy.
// In bytes of compressed streams it hardly matters (kernel modules of Debian's 6.1.176
// and 6.1.192, in xz -9e: 1.40 MB with 16, 1.39 with 48, 1.41 with none at all), but
// zeros are decoded one by one, and a Copy can be shared with the source.
const minCopy = 24

// A builder turns regions into operations.
type builder struct {
	new      []byte
	text     *text
	copyFrom int
	at       int64 // made so far
	ops      []Op
}

// region adds the operations of r, part by part of the text.
func (b *builder) region(r region) {
	b.insertTo(int64(r.new))
	for r.n > 0 {
		old := b.text.from(r.old)
		old = old[:min(len(old), r.n)]
		b.part(old, r)
		r.new, r.old, r.n = r.new+len(old), r.old+len(old), r.n-len(old)
	}
}

// part adds the operations of the beginning of r, whose source text is old.
func (b *builder) part(old []byte, r region) {
	new := b.new[r.new : r.new+len(old)]
	from := 0 // of the Add under way
	for i := 0; i < len(new); {
		same := matchLen(old[i:], new[i:])
		// A region that begins or ends with equal bytes begins or ends with a Copy: that
		// costs nothing.
		if same >= b.copyFrom || same > 0 && (i == from || i+same == len(new)) {
			b.add(Add, r.old+from, i-from)
			b.add(Copy, r.old+i, same)
			from = i + same
		}
		i += same
		for i < len(new) && old[i] != new[i] {
			i++
		}
	}
	b.add(Add, r.old+from, len(new)-from)
}

func (b *builder) insertTo(end int64) {
	if n := end - b.at; n > 0 {
		b.ops = append(b.ops, Op{Kind: Insert, Length: n})
		b.at = end
	}
}

// add appends an operation on n bytes of one part of the text.
func (b *builder) add(k Kind, pos, n int) {
	if n == 0 {
		return
	}
	i := b.text.part(pos)
	b.ops = append(b.ops, Op{Kind: k, Source: i, Offset: int64(pos - b.text.starts[i]), Length: int64(n)})
	b.at += int64(n)
}
