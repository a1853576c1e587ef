package delta

import (
	"bytes"
	"encoding/binary"
	"sort"
)

// Relocatable ELF files (kernel modules) consist for the greater part of tables that
// speak of positions in the code: relocations, symbols, unwind data. When code grows by a few
// bytes, every later position changes. Once the code is decoded, the
// device knows how positions moved, and can bring the old tables up to date by itself
// before it decodes the new ones. What is left is a small fraction.
//
// The prediction is only that: any input gives some output, the same on every
// machine, and the operations correct it. So nothing here returns an error.

// elfSection is a section header.
type elfSection struct {
	name       string
	typ        uint32
	off, size  uint64
	link, info uint32
	entsize    uint64
}

const (
	shtProgbits = 1
	shtSymtab   = 2
	shtStrtab   = 3
	shtRela     = 4
	shtNobits   = 8
	symSize     = 24
	relaSize    = 24
	shdrSize    = 64
	maxSections = 4096
)

// elfSections parses a 64-bit little-endian relocatable file. nil if it is none, or damaged.
func elfSections(b []byte) []elfSection {
	if len(b) < 64 || !bytes.HasPrefix(b, []byte("\x7fELF\x02\x01")) || binary.LittleEndian.Uint16(b[16:]) != 1 {
		return nil
	}
	le := binary.LittleEndian
	shoff, n, str := le.Uint64(b[40:]), uint64(le.Uint16(b[60:])), int(le.Uint16(b[62:]))
	if le.Uint16(b[58:]) != shdrSize || n == 0 || n > maxSections || shoff > uint64(len(b)) || n*shdrSize > uint64(len(b))-shoff {
		return nil
	}
	s := make([]elfSection, n)
	names := make([]uint32, n)
	for i := range s {
		h := b[shoff+uint64(i)*shdrSize:]
		names[i] = le.Uint32(h)
		s[i] = elfSection{typ: le.Uint32(h[4:]), off: le.Uint64(h[24:]), size: le.Uint64(h[32:]),
			link: le.Uint32(h[40:]), info: le.Uint32(h[44:]), entsize: le.Uint64(h[56:])}
		if s[i].typ != shtNobits && (s[i].off > uint64(len(b)) || s[i].size > uint64(len(b))-s[i].off) {
			return nil
		}
	}
	if str >= len(s) || s[str].typ != shtStrtab {
		return nil
	}
	table := s[str].bytes(b)
	for i := range s {
		if uint64(names[i]) < uint64(len(table)) {
			rest := table[names[i]:]
			if k := bytes.IndexByte(rest, 0); k >= 0 {
				s[i].name = string(rest[:k])
			}
		}
	}
	return s
}

func (s *elfSection) bytes(b []byte) []byte {
	if s.typ == shtNobits {
		return nil
	}
	return b[s.off : s.off+s.size]
}

// A posMap says where positions of the old file are in the new one.
type posMap struct {
	runs   []posRun
	sorted bool
	last   int
}

type posRun struct{ old, new, n int64 }

func (m *posMap) add(old, new, n int64) {
	if k := len(m.runs) - 1; k >= 0 && m.runs[k].old+m.runs[k].n == old && m.runs[k].new+m.runs[k].n == new {
		m.runs[k].n += n
		return
	}
	m.runs = append(m.runs, posRun{old, new, n})
	m.sorted = false
}

// sort orders the runs and resolves overlaps: where several runs were taken from one
// position, the longest says where it went.
func (m *posMap) sort() {
	if m.sorted {
		return
	}
	m.sorted, m.last = true, 0
	all := m.runs
	sort.SliceStable(all, func(i, j int) bool { return all[i].old < all[j].old })
	var out, open []posRun // open: those that cover the current position
	emit := func(from, to int64) {
		if from >= to || len(open) == 0 {
			return
		}
		best := open[0]
		for _, r := range open[1:] {
			if r.n > best.n {
				best = r
			}
		}
		if k := len(out) - 1; k >= 0 && out[k].old+out[k].n == from && out[k].new-out[k].old == best.new-best.old {
			out[k].n += to - from
			return
		}
		out = append(out, posRun{from, from - best.old + best.new, to - from})
	}
	at := int64(0)
	until := func(limit int64) {
		for len(open) > 0 && at < limit {
			next := limit
			for _, r := range open {
				next = min(next, r.old+r.n)
			}
			emit(at, next)
			at = next
			keep := open[:0]
			for _, r := range open {
				if r.old+r.n > at {
					keep = append(keep, r)
				}
			}
			open = keep
		}
		at = limit
	}
	for _, r := range all {
		until(r.old)
		// Many runs from one place are worthless, and would make this quadratic.
		if len(open) < 16 {
			open = append(open, r)
		}
	}
	if len(open) > 0 {
		end := at
		for _, r := range open {
			end = max(end, r.old+r.n)
		}
		until(end)
	}
	m.runs = out
}

// at maps a position. One that nothing was taken from moves with what stood before it.
func (m *posMap) at(old int64) int64 {
	r := m.runs
	if len(r) == 0 {
		return old
	}
	i := m.last
	if old < r[i].old || i+1 < len(r) && old >= r[i+1].old {
		i = sort.Search(len(r), func(i int) bool { return r[i].old > old }) - 1
		if i < 0 {
			i = 0
		}
		m.last = i
	}
	return old - r[i].old + r[i].new
}

// A relocator brings the tables of an old object up to date.
type relocator struct {
	src  []byte // the old file, tables are rewritten in place
	pos  posMap
	olds []elfSection
	news []elfSection   // parsed when first needed
	to   []int          // old section → new section, -1
	syms map[int][]byte // old symbol tables as they were
	bad  bool
}

func newRelocator(src []byte) *relocator {
	r := &relocator{src: src, olds: elfSections(src), syms: make(map[int][]byte)}
	r.bad = r.olds == nil
	return r
}

// pair finds the new sections; headers must be decoded.
func (r *relocator) pair(dst []byte) bool {
	r.pos.sort()
	if r.bad || r.news != nil {
		return !r.bad
	}
	if r.news = elfSections(dst); r.news == nil {
		r.bad = true
		return false
	}
	byName := make(map[string][]int)
	for i := range r.news {
		k := r.news[i].name
		byName[k] = append(byName[k], i)
	}
	r.to = make([]int, len(r.olds))
	for i := range r.olds {
		r.to[i] = -1
		if all := byName[r.olds[i].name]; len(all) > 0 {
			r.to[i] = all[0]
			byName[r.olds[i].name] = all[1:]
		}
	}
	return true
}

// within maps an offset in an old section to one in its new self.
func (r *relocator) within(section int, off int64) int64 {
	if section <= 0 || section >= len(r.olds) || r.to[section] < 0 {
		return off
	}
	o, n := &r.olds[section], &r.news[r.to[section]]
	if o.typ != shtProgbits || off < 0 || off > int64(o.size) {
		return off
	}
	if off == int64(o.size) {
		return int64(n.size)
	}
	return r.pos.at(int64(o.off)+off) - int64(n.off)
}

// symbols rewrites the old symbol tables; needs the positions of code and of strings.
func (r *relocator) symbols(dst []byte) {
	if !r.pair(dst) {
		return
	}
	le := binary.LittleEndian
	for i := range r.olds {
		s := &r.olds[i]
		if s.typ != shtSymtab {
			continue
		}
		var str, newStr *elfSection
		if int(s.link) < len(r.olds) && r.to[s.link] >= 0 {
			str, newStr = &r.olds[s.link], &r.news[r.to[s.link]]
		}
		b := s.bytes(r.src)
		r.syms[i] = bytes.Clone(b)
		for ; len(b) >= symSize; b = b[symSize:] {
			if name := le.Uint32(b); str != nil && name != 0 && uint64(name) < str.size {
				le.PutUint32(b, uint32(r.pos.at(int64(str.off)+int64(name))-int64(newStr.off)))
			}
			sec := int(le.Uint16(b[6:]))
			if sec == 0 || sec >= len(r.olds) {
				continue
			}
			if r.to[sec] >= 0 {
				le.PutUint16(b[6:], uint16(r.to[sec]))
			}
			value, size := int64(le.Uint64(b[8:])), int64(le.Uint64(b[16:]))
			v := r.within(sec, value)
			le.PutUint64(b[8:], uint64(v))
			if size > 0 && value >= 0 && size <= int64(r.olds[sec].size) {
				le.PutUint64(b[16:], uint64(r.within(sec, value+size-1)+1-v))
			}
		}
	}
}

// symbolMap finds for each old symbol the new one: of equal name and type, the k-th to the k-th;
// of sections by section.
func (r *relocator) symbolMap(table int, dst []byte) []uint32 {
	le := binary.LittleEndian
	type key struct {
		name string
		kind byte
		sec  int
		k    int
	}
	keys := func(b, str []byte, sec func(uint16) int, f func(i int, k key)) {
		count := make(map[key]int)
		for i := 0; (i+1)*symSize <= len(b); i++ {
			e := b[i*symSize:]
			k := key{name: text(str, le.Uint32(e)), kind: e[4]}
			if e[4]&15 == 3 {
				k.sec = sec(le.Uint16(e[6:]))
			}
			n := count[k]
			count[k]++
			k.k = n
			f(i, k)
		}
	}
	o := &r.olds[table]
	if r.to[table] < 0 || int(o.link) >= len(r.olds) {
		return nil
	}
	n := &r.news[r.to[table]]
	if int(n.link) >= len(r.news) {
		return nil
	}
	where := make(map[key]uint32)
	keys(n.bytes(dst), r.news[n.link].bytes(dst), func(s uint16) int { return int(s) }, func(i int, k key) { where[k] = uint32(i) })
	m := make([]uint32, 0, o.size/symSize)
	keys(r.syms[table], r.olds[o.link].bytes(r.src), func(s uint16) int {
		if int(s) < len(r.to) {
			return r.to[s]
		}
		return int(s)
	}, func(i int, k key) {
		at, ok := where[k]
		if !ok { // gone, or renamed: with its neighbour
			at = 0
			if len(m) > 0 {
				at = m[len(m)-1] + 1
			}
		}
		m = append(m, at)
	})
	return m
}

func text(table []byte, at uint32) string {
	if uint64(at) >= uint64(len(table)) {
		return ""
	}
	if k := bytes.IndexByte(table[at:], 0); k >= 0 {
		return string(table[at:][:k])
	}
	return ""
}

// relocations rewrites the old relocations; needs the positions of code and the new symbols.
// Offsets become distances from the one before: where code grew, one of them
// differs and not all that follow.
func (r *relocator) relocations(dst []byte) {
	if !r.pair(dst) {
		return
	}
	le := binary.LittleEndian
	maps := make(map[int][]uint32)
	for i := range r.olds {
		s := &r.olds[i]
		if s.typ != shtRela || int(s.link) >= len(r.olds) || r.olds[s.link].typ != shtSymtab {
			continue
		}
		table := int(s.link)
		m, ok := maps[table]
		if !ok {
			m = r.symbolMap(table, dst)
			maps[table] = m
		}
		symbols := r.syms[table]
		last := uint64(0)
		b := s.bytes(r.src)
		for ; len(b) >= relaSize; b = b[relaSize:] {
			at := uint64(r.within(int(s.info), int64(le.Uint64(b))))
			le.PutUint64(b, at-last)
			last = at
			k, typ := int64(le.Uint32(b[12:])), le.Uint32(b[8:])
			if k >= int64(len(m)) {
				continue
			}
			e := symbols[k*symSize:]
			if e[4]&15 == 3 { // a section: the addend is a position in it
				addend := int64(le.Uint64(b[16:]))
				bias := int64(0)
				if typ == 2 || typ == 4 { // x86-64, relative to the end of the field
					bias = 4
				}
				le.PutUint64(b[16:], uint64(r.within(int(le.Uint16(e[6:])), addend+bias)-bias))
			}
			le.PutUint32(b[12:], m[k])
		}
	}
}

// relaDistances brings the relocations of a new file into the form in which they are
// compared, relaOffsets back.
func relaDistances(b []byte, s []elfSection) {
	eachRela(b, s, func(b []byte, last uint64) uint64 {
		at := binary.LittleEndian.Uint64(b)
		binary.LittleEndian.PutUint64(b, at-last)
		return at
	})
}

func relaOffsets(b []byte, s []elfSection) {
	eachRela(b, s, func(b []byte, last uint64) uint64 {
		at := last + binary.LittleEndian.Uint64(b)
		binary.LittleEndian.PutUint64(b, at)
		return at
	})
}

func eachRela(b []byte, s []elfSection, f func(b []byte, last uint64) uint64) {
	for i := range s {
		if s[i].typ != shtRela {
			continue
		}
		last := uint64(0)
		for t := s[i].bytes(b); len(t) >= relaSize; t = t[relaSize:] {
			last = f(t, last)
		}
	}
}
