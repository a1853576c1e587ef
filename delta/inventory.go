package delta

import (
	"context"
	"fmt"
	"os"

	"github.com/btrovl/btrovl/subvolumes/tree"
)

// An inventory is a tree as the maker sees it: its listing and the digest of
// every file, from one reading.
type inventory struct {
	*listing
	root   *os.File
	sums   []tree.Sum // of regular files, by entry
	digest string
	bytes  int64
	maps   *mappings
}

// take reads a tree. A digest that the caller already knows must be the one found.
func take(ctx context.Context, t Tree, jobs int, maps *mappings) (*inventory, error) {
	inv := &inventory{listing: &listing{}, root: t.Root, maps: maps}
	links := make(map[string]int)
	sum, stats, err := tree.Digest(ctx, t.Root, tree.DigestOptions{Jobs: jobs, Entry: func(e *tree.Entry, content tree.Sum) error {
		if err := inv.add(e, links); err != nil {
			return err
		}
		inv.sums = append(inv.sums, content)
		return nil
	}})
	if err != nil {
		return nil, fmt.Errorf("cannot read version %s: %w", t.Version, err)
	}
	if !inv.sorted() {
		return nil, fmt.Errorf("cannot read version %s: its entries came out of order", t.Version)
	}
	inv.index()
	inv.digest, inv.bytes = sum.String(), stats.Bytes
	if t.Digest != "" && t.Digest != inv.digest {
		return nil, fmt.Errorf("version %s has digest %s, not %s: it is damaged or was changed", t.Version, inv.digest, t.Digest)
	}
	for i := range inv.entries {
		if l := inv.entries[i].link; l >= 0 {
			inv.sums[i] = inv.sums[l]
		}
	}
	return inv, nil
}

// content returns a whole file, which must still be what the inventory saw. It may be a mapping: read only.
func (inv *inventory) content(i int) ([]byte, error) {
	e := &inv.entries[i]
	f, size, err := openRegular(inv.root, e.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size != e.size {
		return nil, fmt.Errorf("%s changed while it was read", e.path)
	}
	b, err := inv.maps.content(f, size)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", e.path, err)
	}
	return b, nil
}
