package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"sort"
	"strings"
	"sync"

	"github.com/btrovl/btrovl/delta/btf"
	"github.com/btrovl/btrovl/delta/redeflate"
)

// Hints are what the maker learned about all kernel modules of a section together, and
// ships once: how the numbers of their type information changed (package btf), and how the
// checksums of the kernel's symbols did.
//
//	uvarint  size of the encoded btf.Map, 0 for none; the map
//	uvarint  number of checksums; for each, ascending: uvarint how far on, and then
//	for each: u32 the new one
//	the rest, if there is any: encoded redeflate.Priors, with which recipes of packed modules begin
type hints struct {
	types  *btf.Map
	crcs   []crcPair // by old
	priors *redeflate.Priors
}

type crcPair struct{ old, new uint32 }

const maxHints = 16 << 20

func (h *hints) encode() []byte {
	var b []byte
	if h.types != nil {
		m := h.types.Encode()
		b = binary.AppendUvarint(b, uint64(len(m)))
		b = append(b, m...)
	} else {
		b = append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(h.crcs)))
	last := uint32(0)
	for _, c := range h.crcs {
		b = binary.AppendUvarint(b, uint64(c.old-last))
		last = c.old
	}
	for _, c := range h.crcs {
		b = binary.LittleEndian.AppendUint32(b, c.new)
	}
	if h.priors != nil {
		b = append(b, h.priors.Encode()...)
	}
	return b
}

func decodeHints(b []byte) (*hints, error) {
	h := &hints{}
	bad := damaged("hints that are malformed")
	uvarint := func() (uint64, bool) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, false
		}
		b = b[n:]
		return v, true
	}
	n, ok := uvarint()
	if !ok || n > uint64(len(b)) {
		return nil, bad
	}
	if n > 0 {
		m, err := btf.Decode(b[:n])
		if err != nil {
			return nil, bad
		}
		h.types, b = m, b[n:]
	}
	n, ok = uvarint()
	if !ok || n > uint64(len(b))/5 {
		return nil, bad
	}
	h.crcs = make([]crcPair, n)
	last := uint64(0)
	for i := range h.crcs {
		v, ok := uvarint()
		if last += v; !ok || v > 1<<32 || last >= 1<<32 {
			return nil, bad
		}
		h.crcs[i].old = uint32(last)
	}
	if uint64(len(b)) < 4*n {
		return nil, bad
	}
	for i := range h.crcs {
		h.crcs[i].new = binary.LittleEndian.Uint32(b[4*i:])
	}
	if b = b[4*n:]; len(b) > 0 {
		p, err := redeflate.DecodePriors(b)
		if err != nil {
			return nil, bad
		}
		h.priors = p
	}
	return h, nil
}

// eachBTF calls f with the type information of an object.
func eachBTF(b []byte, s []elfSection, f func([]byte)) {
	for i := range s {
		if s[i].typ == shtProgbits && s[i].name == ".BTF" {
			f(s[i].bytes(b))
		}
	}
}

// eachVersion calls f with each entry of the table of symbol checksums: 8 bytes of
// checksum, 56 of name.
func eachVersion(b []byte, s []elfSection, f func(entry []byte)) {
	for i := range s {
		if s[i].typ == shtProgbits && s[i].name == "__versions" {
			for t := s[i].bytes(b); len(t) >= 64; t = t[64:] {
				f(t[:64:64])
			}
		}
	}
}

// rewrite brings the types of an old object up to date.
func (h *hints) rewrite(b []byte, s []elfSection) {
	if h.types != nil {
		eachBTF(b, s, h.types.Rewrite)
	}
}

// checksums brings the checksums of an old object up to date.
func (h *hints) checksums(b []byte, s []elfSection) {
	eachVersion(b, s, func(e []byte) {
		crc := binary.LittleEndian.Uint32(e)
		i := sort.Search(len(h.crcs), func(i int) bool { return h.crcs[i].old >= crc })
		if i < len(h.crcs) && h.crcs[i].old == crc {
			binary.LittleEndian.PutUint32(e, h.crcs[i].new)
		}
	})
}

// normalize brings a new object into the form in which it is compared.
func (h *hints) normalize(b []byte, s []elfSection) {
	if h.types != nil {
		eachBTF(b, s, h.types.New.Normalize)
	}
}

// restore undoes normalize.
func (h *hints) restore(b []byte, s []elfSection) {
	if h.types != nil {
		eachBTF(b, s, h.types.New.Restore)
	}
}

// learnTypes is how many bytes of type information are compared: numbers of a kernel
// repeat themselves, and comparing takes time.
const learnTypes = 16 << 20

// isModule tells by its name whether a file is a kernel module, packed or not.
func isModule(path string) bool {
	for _, packed := range []string{".xz", ".gz", ".zst"} {
		path = strings.TrimSuffix(path, packed)
	}
	return strings.HasSuffix(path, ".ko")
}

// module returns a kernel module, or what is inside of a packed one; nothing where that cannot be known.
func module(inv *inventory, i int) ([]byte, error) {
	b, err := inv.content(i)
	if err == nil && !strings.HasSuffix(inv.entries[i].path, ".ko") {
		b, _, _ = moduleInside(b)
	}
	return b, err
}

// modules returns a function that hands out the modules of all pairs, in turn: packed ones are expanded
// ahead of that, until wait returns.
func (m *maker) modules(pairs [][2]int) (next func() (old, new []byte, err error), wait func()) {
	type pair struct {
		old, new []byte
		err      error
	}
	var wg sync.WaitGroup
	ahead := make([]chan pair, 0, len(pairs))
	begin := func() {
		if len(ahead) == len(pairs) {
			return
		}
		p, c := pairs[len(ahead)], make(chan pair, 1)
		ahead = append(ahead, c)
		wg.Go(func() {
			old, err := module(m.olds, p[0])
			if err != nil {
				c <- pair{err: err}
				return
			}
			new, err := module(m.news, p[1])
			c <- pair{old, new, err}
		})
	}
	for range m.o.Jobs {
		begin()
	}
	taken := 0
	return func() ([]byte, []byte, error) {
		p := <-ahead[taken]
		taken++
		begin()
		return p.old, p.new, p.err
	}, wg.Wait
}

// learn looks at all pairs of kernel modules.
func (m *maker) learn(ctx context.Context, order []int) (*hints, error) {
	h := &hints{}
	var pairs [][2]int
	for _, i := range order {
		if e := &m.news.entries[i]; isModule(e.path) {
			if c := m.match.byPath(e.path, 1); len(c) > 0 {
				pairs = append(pairs, [2]int{c[0], i})
			}
		}
	}
	if len(pairs) < 8 || m.o.without(stepHints) {
		return h, nil
	}
	l := btf.NewLearner()
	crcs := make(map[crcPair]int)
	type sample struct{ old, new []byte }
	var samples []sample
	var total int
	modules, wait := m.modules(pairs)
	defer wait() // files are mapped only so long
	for range pairs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		old, new, err := modules()
		if err != nil {
			return nil, err
		}
		so, sn := elfSections(old), elfSections(new)
		versions := make(map[string]uint32)
		eachVersion(old, so, func(e []byte) { versions[string(e[8:])] = binary.LittleEndian.Uint32(e) })
		eachVersion(new, sn, func(e []byte) {
			now := binary.LittleEndian.Uint32(e)
			if was, ok := versions[string(e[8:])]; ok && was != now {
				crcs[crcPair{was, now}]++
			}
		})
		var a, b []byte
		eachBTF(old, so, func(t []byte) { a = t })
		eachBTF(new, sn, func(t []byte) { b = t })
		if len(a) > 0 && len(b) > 0 {
			l.Look(a, b)
			samples = append(samples, sample{bytes.Clone(a), bytes.Clone(b)})
			total += len(b)
		}
	}
	every := max(1, (total+learnTypes-1)/learnTypes)
	for i := 0; i < len(samples); i += every {
		if err := l.Compare(ctx, samples[i].old, samples[i].new); err != nil {
			return nil, err
		}
	}
	if len(samples) > 0 {
		h.types = l.Map()
	}
	best := make(map[uint32]crcPair)
	for c, n := range crcs {
		if b, ok := best[c.old]; n > 1 && (!ok || n > crcs[b] || n == crcs[b] && c.new < b.new) {
			best[c.old] = c
		}
	}
	for _, c := range best {
		h.crcs = append(h.crcs, c)
	}
	sort.Slice(h.crcs, func(i, j int) bool { return h.crcs[i].old < h.crcs[j].old })
	var err error
	h.priors, err = m.learnPriors(ctx, h, pairs)
	return h, err
}

// trainWith is how many packed modules priors are learned from, and trainLeast how many there must be that it pays.
const (
	trainWith  = 128
	trainLeast = 32
)

// learnPriors trains with some of the packed modules, evenly spread. Those of the first one's format count.
func (m *maker) learnPriors(ctx context.Context, h *hints, pairs [][2]int) (*redeflate.Priors, error) {
	var packed [][2]int
	for _, p := range pairs {
		if !strings.HasSuffix(m.news.entries[p[1]].path, ".ko") {
			packed = append(packed, p)
		}
	}
	if len(packed) < trainLeast || m.o.without(stepUnpack) || m.o.without(stepModules) {
		return nil, nil
	}
	var priors *redeflate.Priors
	with := min(trainWith, len(packed))
	for i := range with {
		p := packed[i*len(packed)/with]
		old, err := m.olds.content(p[0])
		if err != nil {
			return nil, err
		}
		new, err := m.news.content(p[1])
		if err != nil {
			return nil, err
		}
		oldObject, _, ok := moduleInside(old)
		newObject, _, ok2 := moduleInside(new)
		if !ok || !ok2 {
			continue
		}
		d, err := diffObject(ctx, h, newObject, oldObject)
		if err != nil {
			return nil, err
		}
		if d == nil {
			continue
		}
		if priors == nil {
			priors = redeflate.NewPriors(new)
		}
		redeflate.Unpack(new, redeflate.Options{Old: old, Moves: d.moves, MaxPlain: maxObject, Priors: priors, Train: true, NoVerify: true})
	}
	if priors == nil {
		return nil, nil
	}
	known, err := redeflate.DecodePriors(priors.Encode()) // as devices will have them
	if err != nil {
		return nil, nil // too many to be worth it
	}
	return known, nil
}
