package btf

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// The BTF of a kernel itself is complete: names and types of two kernels can be compared
// directly, and every number is the kernel's own.

// FromKernels returns the Map between the BTF sections of two kernels: what
// [Learner] finds from modules as far as these speak of it. nil if one of them is damaged.
func FromKernels(old, new []byte) *Map {
	o, n := newLabels(old), newLabels(new)
	if o == nil || n == nil {
		return nil
	}
	m := &Map{
		Old: Numbering{uint32(len(o.starts)) + 1, uint32(len(o.strings))},
		New: Numbering{uint32(len(n.starts)) + 1, uint32(len(n.strings))},
	}
	m.types = pairs(o.types[1:], n.types[1:], func(i int) uint32 { return uint32(i) + 1 }, func(i int) uint32 { return uint32(i) + 1 })
	oAt, oSums := stringsOf(o.strings)
	nAt, nSums := stringsOf(n.strings)
	m.strings = pairs(oSums, nSums, func(i int) uint32 { return oAt[i] }, func(i int) uint32 { return nAt[i] })
	return m
}

// pairs makes a table of things that have the same label. Where several have, those that go on
// in parallel with the pair before are one, else the first that are left.
func pairs(old, new []uint32, oldNumber, newNumber func(int) uint32) table {
	where := map[uint32][]int{}
	for i, l := range new {
		where[l] = append(where[l], i)
	}
	used := make([]bool, len(new))
	var t table
	next := 0
	for i, l := range old {
		if next >= len(new) || new[next] != l || used[next] {
			w := where[l]
			for len(w) > 0 && used[w[0]] {
				w = w[1:]
			}
			if where[l] = w; len(w) == 0 {
				continue
			}
			next = w[0]
		}
		used[next] = true
		if e := (entry{oldNumber(i), newNumber(next)}); t.at(e.old) != e.new {
			t = append(t, e)
		}
		next++
	}
	return t
}

// stringsOf returns where strings begin, and their sums.
func stringsOf(b []byte) (at, sums []uint32) {
	for from := 0; from < len(b); {
		n := bytes.IndexByte(b[from:], 0)
		if n < 0 {
			break
		}
		at = append(at, uint32(from))
		sums = append(sums, crc32.ChecksumIEEE(b[from:from+n]))
		from += n + 1
	}
	return at, sums
}

// labels tell the types of a kernel apart without their numbers.
type labels struct {
	section, strings []byte
	body             []byte   // the types
	starts           []int    // of each type in body
	types            []uint32 // by number; types[0] is void
}

// labelRounds is how far a type's label looks: a pointer to a pointer to a structure has
// the name of that only in its third.
const labelRounds = 4

func newLabels(section []byte) *labels {
	le := binary.LittleEndian
	l := &labels{section: section}
	l.body, l.strings = split(section)
	if l.body == nil || l.strings == nil {
		return nil
	}
	kinds(l.body, func(number, kind uint32, t []byte) {
		l.starts = append(l.starts, len(l.body)-len(t))
	})
	l.types = make([]uint32, len(l.starts)+1)
	for i, s := range l.starts {
		t := l.body[s:]
		l.types[i+1] = l.text(le.Uint32(t)) ^ le.Uint32(t[4:])*0x9e3779b1
		if _, _, size := behind(le.Uint32(t[4:]) >> 24 & 31); size {
			l.types[i+1] += le.Uint32(t[8:]) * 0x85ebca6b
		}
	}
	// What a type refers to by itself belongs to it; the types of members come in as
	// well, but only as they were before, so that cycles end.
	for range labelRounds {
		next := slices.Clone(l.types)
		words(l.body, func(i uint32, c class, w []byte) {
			sum := uint32(0)
			switch v := le.Uint32(w); c {
			case typeNumber:
				sum = l.of(v)
			case stringOffset:
				sum = l.text(v)
			}
			next[i+1] = next[i+1]*31 + sum*2654435761
		})
		l.types = next
	}
	return l
}

// of returns the label of a type.
func (l *labels) of(number uint32) uint32 {
	if uint64(number) < uint64(len(l.types)) {
		return l.types[number]
	}
	return number
}

// text returns the sum of a string.
func (l *labels) text(offset uint32) uint32 {
	if uint64(offset) >= uint64(len(l.strings)) {
		return offset
	}
	s := l.strings[offset:]
	if n := bytes.IndexByte(s, 0); n >= 0 {
		s = s[:n]
	}
	return crc32.ChecksumIEEE(s)
}

// Mask replaces, in place, the numbers of a kernel's section by sums of what they mean, which
// are the same in another kernel: what is compared to find out what moved.
func Mask(section []byte) {
	l := newLabels(bytes.Clone(section))
	if l == nil {
		return
	}
	body, _ := split(section)
	words(body, func(_ uint32, c class, w []byte) {
		switch v := binary.LittleEndian.Uint32(w); c {
		case typeNumber:
			binary.LittleEndian.PutUint32(w, l.of(v))
		case stringOffset:
			binary.LittleEndian.PutUint32(w, l.text(v))
		}
	})
}

// RewriteKernel brings the section of an old kernel up to date, in place.
func (m *Map) RewriteKernel(section []byte) {
	types, _ := split(section)
	words(types, func(_ uint32, c class, w []byte) {
		switch v := binary.LittleEndian.Uint32(w); c {
		case typeNumber:
			binary.LittleEndian.PutUint32(w, m.types.at(v))
		case stringOffset:
			binary.LittleEndian.PutUint32(w, m.strings.at(v))
		}
	})
}
