// Package btf brings the type information of an old kernel module (section .BTF) up
// to date with a new kernel, as far as can be known from other modules.
//
// A module's BTF is an addition to that of its kernel: type numbers and string
// offsets count on from the kernel's. When the kernel gains one type, nearly every
// number in the BTF of every module changes, and modules consist of BTF to a
// sixth. But it changes everywhere in the same way. A [Map] says how, once for
// all modules of a kernel:
//
//	                        a word that is         becomes
//	old ──► [Map.Rewrite]   a kernel's type        the type in the new kernel
//	                        a kernel's string      the string in the new kernel
//	                        a type of the module   its distance from the type that speaks of it
//	                        a string of the module its distance from the strings used so far
//
// [Numbering.Normalize] does the last two for a new section, which then resembles
// the rewritten old one but for true changes; [Numbering.Restore] undoes it exactly.
// All three work in place, keep every other byte, accept any input, and do the
// same on every machine.
package btf

import "encoding/binary"

// A section, all integers little-endian:
//
//	0  2  magic eB9F
//	2  1  version 1
//	3  1  flags
//	4  4  length of this header
//	8  4  types: offset behind the header
//	12 4  types: length
//	16 4  strings: offset behind the header
//	20 4  strings: length
const (
	magic      = 0xeb9f
	headerSize = 24
)

// A Numbering says where the numbers of modules begin: how many types and how many
// bytes of strings their kernel has.
type Numbering struct {
	Types, Strings uint32
}

// split returns the types and strings of a section; nil where it is not one.
func split(b []byte) (types, strings []byte) {
	le := binary.LittleEndian
	if len(b) < headerSize || le.Uint16(b) != magic || b[2] != 1 {
		return nil, nil
	}
	n := uint64(len(b))
	part := func(at int) []byte {
		from := uint64(le.Uint32(b[4:])) + uint64(le.Uint32(b[at:]))
		to := from + uint64(le.Uint32(b[at+4:]))
		if from < headerSize || to > n {
			return nil
		}
		return b[from:to:to]
	}
	return part(8), part(16)
}

// What a word of a type is.
type class uint8

const (
	other class = iota // size, offset, value: the same in every kernel
	typeNumber
	stringOffset
)

// Kinds of types that differ in what follows name, info and size or type.
const (
	kindInt       = 1
	kindArray     = 3
	kindStruct    = 4
	kindUnion     = 5
	kindEnum      = 6
	kindFwd       = 7
	kindFuncProto = 13
	kindVar       = 14
	kindDatasec   = 15
	kindFloat     = 16
	kindDeclTag   = 17
	kindEnum64    = 19
	kindMax       = 19
)

// behind returns what follows the first three words of a type: words once, or words
// for each of its members; and whether the third word is a size.
func behind(kind uint32) (once int, members []class, size bool) {
	switch kind {
	case kindInt:
		return 1, nil, true
	case kindStruct, kindUnion:
		return 0, []class{stringOffset, typeNumber, other}, true
	case kindEnum:
		return 0, []class{stringOffset, other}, true
	case kindEnum64:
		return 0, []class{stringOffset, other, other}, true
	case kindFuncProto:
		return 0, []class{stringOffset, typeNumber}, false
	case kindDatasec:
		return 0, []class{typeNumber, other, other}, true
	case kindVar, kindDeclTag:
		return 1, nil, false
	case kindFloat, kindFwd:
		return 0, nil, true
	}
	return 0, nil, false
}

// words calls f with every word of types that is a number or an offset, in order, and
// the number of the type that it stands in, counted from 0. f may change it. What
// says how long a type is does not pass through f, so that a walk does not depend
// on changes. A damaged type ends the walk.
func words(types []byte, f func(number uint32, c class, w []byte)) {
	for number := uint32(0); len(types) >= 12; number++ {
		info := binary.LittleEndian.Uint32(types[4:])
		kind, n := info>>24&31, int(info&0xffff)
		if kind == 0 || kind > kindMax {
			return
		}
		f(number, stringOffset, types[:4])
		once, members, size := behind(kind)
		if !size {
			f(number, typeNumber, types[8:12])
		}
		types = types[12:]
		if kind == kindArray {
			if len(types) < 12 {
				return
			}
			f(number, typeNumber, types[:4])
			f(number, typeNumber, types[4:8])
			types = types[12:]
			continue
		}
		if len(types) < 4*once {
			return
		}
		types = types[4*once:]
		if members == nil {
			continue
		}
		for range n {
			if len(types) < 4*len(members) {
				return
			}
			for i, c := range members {
				if c != other {
					f(number, c, types[4*i:4*i+4])
				}
			}
			types = types[4*len(members):]
		}
	}
}

// Own numbers, those from first on, are replaced by their distance from `at`, another
// own number counted from first. The distances wrap around within what is left
// of the 32 bits, so this is a permutation of all numbers.
func distance(w, first, at uint32) uint32 {
	if w < first || first == 0 {
		return w
	}
	room := -first // 1<<32 - first
	return first + uint32((uint64(w-first)+uint64(room)-uint64(at%room))%uint64(room))
}

func number(d, first, at uint32) uint32 {
	if d < first || first == 0 {
		return d
	}
	room := -first
	return first + uint32((uint64(d-first)+uint64(at%room))%uint64(room))
}

// Normalize replaces the module's own numbers of a section by distances.
func (n Numbering) Normalize(section []byte) {
	types, _ := split(section)
	seen := uint32(0) // own strings used so far
	words(types, func(i uint32, c class, w []byte) {
		v := binary.LittleEndian.Uint32(w)
		switch c {
		case typeNumber:
			binary.LittleEndian.PutUint32(w, distance(v, n.Types, i))
		case stringOffset:
			binary.LittleEndian.PutUint32(w, distance(v, n.Strings, seen))
			if v >= n.Strings {
				seen = max(seen, v-n.Strings)
			}
		}
	})
}

// Restore undoes Normalize.
func (n Numbering) Restore(section []byte) {
	types, _ := split(section)
	seen := uint32(0)
	words(types, func(i uint32, c class, w []byte) {
		d := binary.LittleEndian.Uint32(w)
		switch c {
		case typeNumber:
			binary.LittleEndian.PutUint32(w, number(d, n.Types, i))
		case stringOffset:
			v := number(d, n.Strings, seen)
			binary.LittleEndian.PutUint32(w, v)
			if v >= n.Strings {
				seen = max(seen, v-n.Strings)
			}
		}
	})
}
