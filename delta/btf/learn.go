package btf

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/btrovl/btrovl/delta/bsdiff"
)

// A Learner finds the Map between two kernels from pairs of module sections.
type Learner struct {
	old, new       votes
	types, strings map[entry]int
	numbered       bool
	oldNum, newNum Numbering
}

// votes collect where the numbers of modules may begin.
type votes struct {
	types, strings map[uint32]int
}

func newVotes() votes { return votes{map[uint32]int{}, map[uint32]int{}} }

// NewLearner returns a Learner.
func NewLearner() *Learner {
	return &Learner{old: newVotes(), new: newVotes(), types: map[entry]int{}, strings: map[entry]int{}}
}

// Look shows it the section of an old module and that of the new one. All pairs are
// shown once with Look, and then (some of them, as time allows) with Compare.
func (l *Learner) Look(old, new []byte) {
	l.old.look(old)
	l.new.look(new)
}

// look votes. Strings: the last one of the module is used, and no later one is. Types:
// a function stands next to its prototype, so that the difference between the
// number by which it is called and the place where one stands repeats itself.
func (v votes) look(section []byte) {
	types, strings := split(section)
	if len(types) == 0 || len(strings) == 0 {
		return
	}
	var protos []uint32
	kinds(types, func(i, kind uint32, _ []byte) {
		if kind == kindFuncProto {
			protos = append(protos, i)
		}
	})
	const near = 40
	kinds(types, func(i, kind uint32, t []byte) {
		if kind != kindFunc {
			return
		}
		k, _ := slices.BinarySearch(protos, i-min(i, near))
		for ; k < len(protos) && protos[k] <= i+near; k++ {
			v.types[binary.LittleEndian.Uint32(t[8:])-protos[k]]++
		}
	})
	last := uint32(0)
	words(types, func(_ uint32, c class, w []byte) {
		if c == stringOffset {
			last = max(last, binary.LittleEndian.Uint32(w))
		}
	})
	tail := strings[:len(strings)-1]
	tail = tail[bytes.LastIndexByte(tail, 0)+1:]
	v.strings[last+uint32(len(tail))+1-uint32(len(strings))]++
}

const kindFunc = 12

// kinds calls f with the number, kind and bytes of each type.
func kinds(types []byte, f func(number, kind uint32, t []byte)) {
	last := uint32(0)
	start := true
	words(types, func(i uint32, c class, w []byte) {
		if start || i != last {
			// The first word of a type is its name: the rest of the slice is not reachable from
			// it, but its place is.
			at := len(types) - cap(w)
			t := types[at:]
			f(i, binary.LittleEndian.Uint32(t[4:])>>24&31, t)
		}
		last, start = i, false
	})
}

func most(m map[uint32]int) (best uint32) {
	n := 0
	for v, k := range m {
		if k > n || k == n && v < best {
			best, n = v, k
		}
	}
	return best
}

// Numbering returns what the sections shown so far say.
func (v votes) numbering() Numbering {
	return Numbering{Types: most(v.types), Strings: most(v.strings)}
}

// Compare learns from a pair which numbers correspond.
func (l *Learner) Compare(ctx context.Context, old, new []byte) error {
	if !l.numbered {
		l.oldNum, l.newNum = l.old.numbering(), l.new.numbering()
		l.numbered = true
	}
	// What both have in common is found where the kernels' numbers are hidden.
	a, b := l.oldNum.hidden(old), l.newNum.hidden(new)
	regions, err := bsdiff.Regions(ctx, a.text, b.text)
	if err != nil {
		return err
	}
	for _, r := range regions {
		if (r.New-r.Old)%4 != 0 {
			continue
		}
		for i := (r.New + 3) / 4 * 4; i+4 <= r.New+r.Length; i += 4 {
			j := i - r.New + r.Old
			c := b.class[i/4]
			if c == other || a.class[j/4] != c {
				continue
			}
			e := entry{a.value[j/4], b.value[i/4]}
			if c == typeNumber {
				l.types[e]++
			} else {
				l.strings[e]++
			}
		}
	}
	return nil
}

// hidden is a section's types with all numbers of the kernel zero, and those apart.
type hidden struct {
	text  []byte
	class []class // of words that were hidden
	value []uint32
}

func (n Numbering) hidden(section []byte) hidden {
	section = bytes.Clone(section)
	n.Normalize(section)
	types, _ := split(section)
	h := hidden{text: types, class: make([]class, len(types)/4+1), value: make([]uint32, len(types)/4+1)}
	words(types, func(_ uint32, c class, w []byte) {
		v := binary.LittleEndian.Uint32(w)
		if c == typeNumber && v >= n.Types || c == stringOffset && v >= n.Strings || v == 0 {
			return
		}
		at := (len(types) - cap(w)) / 4
		h.class[at], h.value[at] = c, v
		clear(w)
	})
	return h
}

// Map returns what was learned.
func (l *Learner) Map() *Map {
	return &Map{Old: l.oldNum, New: l.newNum, types: choose(l.types), strings: choose(l.strings)}
}

// choose makes a table of votes: for each old number the new one with most votes, if
// it has more than one and is not where the table says so far.
func choose(m map[entry]int) table {
	best := map[uint32]entry{}
	for e := range m {
		if b, ok := best[e.old]; !ok || m[e] > m[b] || m[e] == m[b] && e.new < b.new {
			best[e.old] = e
		}
	}
	var all, t table
	for _, e := range best {
		if m[e] > 1 {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.old, b.old) })
	for _, e := range all {
		if t.at(e.old) != e.new {
			t = append(t, e)
		}
	}
	return t
}
