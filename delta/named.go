package delta

import (
	"cmp"
	"slices"
)

// Sources of a shared section have names in place of numbers: at its first use a source
// gets the next number, and its path follows (uvarint length in control, the bytes in
// recipe).
type namedSources struct {
	paths   func(index int) string // maker: of the old files
	numbers map[int]int            // maker: by index in the old listing
	olds    *listing               // device; nil where only names are asked for
	indexes []int                  // device: by number
	names   []string               // device: by number
}

// write codes a source of the old tree.
func (n *namedSources) write(w *streamWriter, s source) {
	k, known := n.numbers[s.index]
	if !known {
		k = len(n.numbers)
		n.numbers[s.index] = k
	}
	v := uint64(k) << 2
	if s.expanded {
		v |= 2
	}
	w.uint(streamControl, v)
	if !known {
		p := n.paths(s.index)
		w.uint(streamControl, uint64(len(p)))
		w.bytes(streamRecipe, []byte(p))
	}
}

// read returns the index of source number k in the base's listing.
func (n *namedSources) read(r *sectionReader, k uint64) (int, error) {
	if k > uint64(len(n.names)) {
		return 0, damaged("a source %d where %d have names", k, len(n.names))
	}
	if k < uint64(len(n.names)) {
		return n.indexes[k], nil
	}
	size, err := r.uint(streamControl, maxPath)
	if err != nil {
		return 0, err
	}
	b := make([]byte, size)
	if err := r.bytes(streamRecipe, b); err != nil {
		return 0, err
	}
	i := len(n.names)
	if n.olds != nil {
		var ok bool
		if i, ok = n.olds.byPath[string(b)]; !ok {
			return 0, damaged("the source %q, which the base does not have", b)
		}
	}
	n.names, n.indexes = append(n.names, string(b)), append(n.indexes, i)
	return i, nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
