package delta

import (
	"context"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/btrovl/btrovl/subvolumes/tree"
)

// A bundle for many bases, or for one that has little in common with the new tree, can be
// larger than a full one, which serves every device. Making a full one takes minutes and
// is done only where it could be so.

// packedAtBest is what the best compression makes of what the fastest makes: 0.65 of a Debian
// system, less of text.
const packedAtBest = 0.5

// compareFull warns if a full bundle is smaller than a payload of n bytes.
func compareFull(ctx context.Context, o *MakeOptions, to *inventory, n int64, report *Report) error {
	if len(o.From) == 0 || n < leastShared {
		return nil
	}
	enough := int64(float64(n) / packedAtBest)
	if o.Compression == Fast {
		enough = n * 5 / 4
	}
	least, err := packedSize(ctx, to, enough)
	if err != nil || least >= enough {
		return err
	}
	s, err := makeSection(ctx, o, &inventory{listing: &listing{}}, to, &Report{}, partPlan{kind: partBase, bases: 1})
	if err != nil {
		return err
	}
	defer s.out.close()
	if s.out.n < n {
		report.Warnings = append(report.Warnings, fmt.Sprintf("a full bundle is smaller and fits every device: %d bytes instead of %d (leave --from out)", s.out.n, n))
	}
	return nil
}

// packedSize compresses all content fast, and stops at enough bytes.
func packedSize(ctx context.Context, inv *inventory, enough int64) (int64, error) {
	var c counter
	z, err := zstd.NewWriter(&c, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	seen := make(map[tree.Sum]bool)
	for i := range inv.entries {
		e := &inv.entries[i]
		if !e.isRegular() || e.link >= 0 || e.size == 0 || seen[inv.sums[i]] {
			continue
		}
		seen[inv.sums[i]] = true
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		b, err := inv.content(i)
		if err != nil {
			return 0, err
		}
		for len(b) > 0 && c.n < enough {
			k := min(len(b), 4<<20)
			if _, err := z.Write(b[:k]); err != nil {
				return 0, err
			}
			b = b[k:]
		}
		if c.n >= enough {
			return c.n, nil
		}
	}
	err = z.Close()
	return c.n, err
}
