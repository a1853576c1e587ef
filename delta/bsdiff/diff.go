package bsdiff

import "context"

// Diff finds operations that make new out of the sources. It is deterministic.
// It keeps no reference to its arguments, which may be memory-mapped files.
func Diff(ctx context.Context, new []byte, sources [][]byte, o Options) ([]Op, error) {
	var old []byte
	switch len(sources) {
	case 0:
	case 1:
		old = sources[0]
	default:
		for _, s := range sources {
			old = append(old, s...)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := builder{new: new, sources: sources}
	regions, err := scan(ctx, newIndex(old), new)
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		b.region(old, r)
	}
	b.insertTo(int64(len(new)))
	return b.ops, nil
}

// A builder turns regions into operations.
type builder struct {
	new     []byte
	sources [][]byte
	at      int64 // made so far
	ops     []Op
}

// minCopy is the least number of equal bytes within a region that is worth a Copy:
// below it, zeros in the Diff stream are smaller than two more control numbers.
const minCopy = 16

// region adds the operations of r, whose source text is old.
func (b *builder) region(old []byte, r region) {
	b.insertTo(int64(r.new))
	o, n := old[r.old:r.old+r.n], b.new[r.new:r.new+r.n]
	addFrom := 0
	for i := 0; i < len(n); {
		same := matchLen(o[i:], n[i:])
		if same >= minCopy || same == len(n)-i && same > 0 && addFrom == i {
			b.add(Add, r.old+addFrom, i-addFrom)
			b.add(Copy, r.old+i, same)
			i += same
			addFrom = i
			continue
		}
		i += same
		if i < len(n) {
			i++
		}
	}
	b.add(Add, r.old+addFrom, len(n)-addFrom)
}

func (b *builder) insertTo(end int64) {
	if n := end - b.at; n > 0 {
		b.ops = append(b.ops, Op{Kind: Insert, Length: n})
		b.at = end
	}
}

// add appends an operation on n bytes at a position of the address space, split
// at the borders of sources.
func (b *builder) add(k Kind, pos, n int) {
	for i, s := range b.sources {
		if n == 0 {
			return
		}
		if pos >= len(s) {
			pos -= len(s)
			continue
		}
		m := min(n, len(s)-pos)
		b.ops = append(b.ops, Op{Kind: k, Source: i, Offset: int64(pos), Length: int64(m)})
		b.at += int64(m)
		n -= m
		pos = 0
	}
}
