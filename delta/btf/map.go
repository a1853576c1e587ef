package btf

import (
	"encoding/binary"
	"errors"
	"math"
	"sort"
)

// A Map says how the numbers of one kernel become those of another.
type Map struct {
	Old, New Numbering
	types    table
	strings  table
}

// Rewrite brings the BTF section of an old module up to date, in place, in the form
// that [Numbering.Normalize] gives to the new one.
func (m *Map) Rewrite(section []byte) {
	types, _ := split(section)
	seen := uint32(0)
	words(types, func(i uint32, c class, w []byte) {
		v := binary.LittleEndian.Uint32(w)
		switch c {
		case typeNumber:
			if v < m.Old.Types {
				v = m.types.at(v)
			} else {
				v = distance(v-m.Old.Types+m.New.Types, m.New.Types, i)
			}
		case stringOffset:
			if v < m.Old.Strings {
				v = m.strings.at(v)
			} else {
				own := v - m.Old.Strings
				v = distance(own+m.New.Strings, m.New.Strings, seen)
				seen = max(seen, own)
			}
		}
		binary.LittleEndian.PutUint32(w, v)
	})
}

// A table maps numbers. One that is not in it moves as far as the next lower one that
// is: types and strings that stand together mostly stay together.
type table []entry // by old number

type entry struct{ old, new uint32 }

func (t table) at(old uint32) uint32 {
	i := sort.Search(len(t), func(i int) bool { return t[i].old > old })
	if i == 0 {
		return old
	}
	return old - t[i-1].old + t[i-1].new
}

// Encode returns the map as bytes: numbers in the form of encoding/binary.
//
//	numbering   Old.Types, Old.Strings, New.Types, New.Strings   uvarint each
//	types       n uvarint; n times how far on the old number is (uvarint), then n times
//	            how much further than the one before it the new number moves (varint)
//	strings     the same
func (m *Map) Encode() []byte {
	b := []byte{}
	for _, v := range []uint32{m.Old.Types, m.Old.Strings, m.New.Types, m.New.Strings} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	for _, t := range []table{m.types, m.strings} {
		b = binary.AppendUvarint(b, uint64(len(t)))
		last := uint32(0)
		for _, e := range t {
			b = binary.AppendUvarint(b, uint64(e.old-last))
			last = e.old
		}
		moved := int64(0)
		for _, e := range t {
			move := int64(e.new) - int64(e.old)
			b = binary.AppendVarint(b, move-moved)
			moved = move
		}
	}
	return b
}

var errMap = errors.New("damaged table of BTF numbers")

// maxEntries bounds a table: the kernels of 2026 have 150,000 types.
const maxEntries = 1 << 20

// Decode reads what Encode wrote.
func Decode(b []byte) (*Map, error) {
	var m Map
	uvarint := func() (uint64, bool) {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > math.MaxUint32 {
			return 0, false
		}
		b = b[n:]
		return v, true
	}
	for _, p := range []*uint32{&m.Old.Types, &m.Old.Strings, &m.New.Types, &m.New.Strings} {
		v, ok := uvarint()
		if !ok {
			return nil, errMap
		}
		*p = uint32(v)
	}
	for _, t := range []*table{&m.types, &m.strings} {
		n, ok := uvarint()
		if !ok || n > maxEntries || n > uint64(len(b)) { // an entry has two bytes at least
			return nil, errMap
		}
		*t = make(table, n)
		last := uint64(0)
		for i := range *t {
			v, ok := uvarint()
			if last += v; !ok || last > math.MaxUint32 {
				return nil, errMap
			}
			(*t)[i].old = uint32(last)
		}
		moved := int64(0)
		for i := range *t {
			v, k := binary.Varint(b)
			if k <= 0 || v < -1<<33 || v > 1<<33 {
				return nil, errMap
			}
			b = b[k:]
			moved += v
			new := int64((*t)[i].old) + moved
			if new < 0 || new > math.MaxUint32 {
				return nil, errMap
			}
			(*t)[i].new = uint32(new)
		}
	}
	if len(b) != 0 {
		return nil, errMap
	}
	return &m, nil
}
