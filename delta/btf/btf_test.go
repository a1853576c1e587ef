package btf

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/btrovl/btrovl/delta/bsdiff"
)

// A builder makes sections of modules as pahole does.
type builder struct {
	Numbering
	types, strings []byte
	n              uint32
}

func (b *builder) word(w ...uint32) {
	for _, v := range w {
		b.types = binary.LittleEndian.AppendUint32(b.types, v)
	}
}

// own adds a string of the module.
func (b *builder) own(s string) uint32 {
	if i := bytes.Index(b.strings, append([]byte(s), 0)); i >= 0 {
		return b.Strings + uint32(i)
	}
	at := b.Strings + uint32(len(b.strings))
	b.strings = append(append(b.strings, s...), 0)
	return at
}

// add adds a type and returns its number.
func (b *builder) add(name, kind, n, third uint32, rest ...uint32) uint32 {
	b.word(name, kind<<24|n, third)
	b.word(rest...)
	b.n++
	return b.Types + b.n - 1
}

func (b *builder) section() []byte {
	h := make([]byte, headerSize)
	le := binary.LittleEndian
	le.PutUint16(h, magic)
	h[2] = 1
	le.PutUint32(h[4:], headerSize)
	le.PutUint32(h[12:], uint32(len(b.types)))
	le.PutUint32(h[16:], uint32(len(b.types)))
	le.PutUint32(h[20:], uint32(len(b.strings)))
	return append(append(h, b.types...), b.strings...)
}

// A kernel gives numbers to types and strings that modules have in common.
type kernel struct {
	Numbering
	types, strings []uint32
}

// module makes the section of module seed: the same for two kernels but for their
// numbers, and with an extra type if grown is set.
func (k *kernel) module(seed uint64, grown bool) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := builder{Numbering: k.Numbering}
	base := func() uint32 { return k.types[r.IntN(len(k.types))] }
	str := func() uint32 { return k.strings[r.IntN(len(k.strings))] }
	letters := "abcdefghijklmnopqrstuvwxyz"
	name := func() uint32 {
		s := make([]byte, 3+r.IntN(8))
		for i := range s {
			s[i] = letters[r.IntN(26)]
		}
		return b.own(string(s))
	}
	for i := range 40 {
		if grown && i == 20 {
			b.add(b.own("the new type"), kindInt, 0, 4, 32)
		}
		s := b.add(name(), kindStruct, 3, 24, name(), base(), 0, str(), base(), 64, str(), base(), 128)
		p := b.add(0, 2, 0, s) // a pointer to it
		b.add(0, kindArray, 0, 0, p, base(), 7)
		proto := b.add(0, kindFuncProto, 2, base(), str(), p, name(), base())
		b.add(name(), kindFunc, 1, proto)
		b.add(name(), kindEnum, 2, 4, name(), 0, str(), 1)
		v := b.add(name(), kindVar, 0, base(), 1)
		b.add(str(), kindDatasec, 1, 8, v, 0, 8)
		b.add(name(), kindFwd, 0, 0)
		b.add(name(), kindFloat, 0, 8)
		b.add(str(), kindDeclTag, 0, s, math.MaxUint32)
		b.add(name(), kindEnum64, 1, 8, name(), 5, 6)
	}
	b.add(b.own("last"), kindFunc, 1, b.add(0, kindFuncProto, 0, 0))
	return b.section()
}

// kernels returns two kernels whose numbers differ in several ways.
func kernels() (old, new kernel) {
	r := rand.New(rand.NewPCG(2, 2))
	old.Numbering, new.Numbering = Numbering{100643, 1790375}, Numbering{100751, 1794309}
	for i := range uint32(300) {
		o, n := 10+i*300, 10+i*300
		switch {
		case i > 200:
			n += 108
		case i > 100 && i%10 == 0:
			n = 95000 + i
		case i > 50:
			n += 7
		}
		old.types, new.types = append(old.types, o), append(new.types, n)
		old.strings, new.strings = append(old.strings, 1+i*5000), append(new.strings, 1+i*5000+i/30*uint32(r.IntN(2)*40))
	}
	return old, new
}

func learn(t testing.TB, old, new *kernel) *Map {
	t.Helper()
	l := NewLearner()
	for i := range uint64(20) {
		l.Look(old.module(i, false), new.module(i, i%5 == 0))
	}
	for i := range uint64(20) {
		if err := l.Compare(context.Background(), old.module(i, false), new.module(i, i%5 == 0)); err != nil {
			t.Fatal(err)
		}
	}
	m := l.Map()
	if m.Old != old.Numbering || m.New != new.Numbering {
		t.Fatalf("learned %+v and %+v, want %+v and %+v", m.Old, m.New, old.Numbering, new.Numbering)
	}
	again, err := Decode(m.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Encode(), m.Encode()) {
		t.Fatal("the map changes when coded")
	}
	return again
}

// What was learned from some modules explains another one completely.
func TestLearn(t *testing.T) {
	old, new := kernels()
	m := learn(t, &old, &new)
	for seed := uint64(100); seed < 110; seed++ {
		o, n := old.module(seed, false), new.module(seed, false)
		m.Rewrite(o)
		m.New.Normalize(n)
		if !bytes.Equal(o, n) {
			d := 0
			for i := range o {
				if o[i] != n[i] {
					d++
				}
			}
			t.Errorf("module %d: %d of %d bytes differ", seed, d, len(n))
		}
	}
	// A new type in the middle changes little: it is there, and what refers across it.
	o, n := old.module(100, false), new.module(100, true)
	before := cost(t, o, n)
	m.Rewrite(o)
	m.New.Normalize(n)
	if c := cost(t, o, n); c*20 > before {
		t.Errorf("a new type costs %d bytes, %d without the map", c, before)
	}
}

// cost counts the bytes of a patch that bring something new.
func cost(t *testing.T, old, new []byte) (n int64) {
	t.Helper()
	ops, err := bsdiff.Diff(context.Background(), new, [][]byte{old}, bsdiff.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, op := range ops {
		for i := range op.Length {
			if op.Kind == bsdiff.Insert || op.Kind == bsdiff.Add && new[at+i] != old[op.Offset+i] {
				n++
			}
		}
		at += op.Length
	}
	return n
}

func TestNormalizeAndRestore(t *testing.T) {
	old, _ := kernels()
	good := old.module(7, true)
	r := rand.New(rand.NewPCG(3, 3))
	for i := range 2000 {
		b := bytes.Clone(good[:len(good)-r.IntN(20)*(i%2)])
		for range r.IntN(30) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		n := Numbering{r.Uint32() >> r.IntN(33), r.Uint32() >> r.IntN(33)}
		if i%3 == 0 {
			n = old.Numbering
		}
		c := bytes.Clone(b)
		n.Normalize(c)
		n.Restore(c)
		if !bytes.Equal(b, c) {
			t.Fatalf("round %d: restored something else", i)
		}
	}
}

func TestDistance(t *testing.T) {
	values := []uint32{0, 1, 2, 99, 100, 101, 1 << 31, math.MaxUint32 - 1, math.MaxUint32}
	for _, w := range values {
		for _, first := range values {
			for _, at := range values {
				if got := number(distance(w, first, at), first, at); got != w {
					t.Errorf("%d from %d at %d comes back as %d", w, first, at, got)
				}
			}
		}
	}
}

func TestDamagedMaps(t *testing.T) {
	old, new := kernels()
	good := learn(t, &old, &new).Encode()
	for n := range good {
		if _, err := Decode(good[:n]); err == nil {
			t.Fatalf("cut at %d: no error", n)
		}
	}
	for name, b := range map[string][]byte{
		"more behind":             append(bytes.Clone(good), 0),
		"many entries":            binary.AppendUvarint([]byte{0, 0, 0, 0}, maxEntries+1),
		"more entries than bytes": {0, 0, 0, 0, 100, 1, 1},
		"number of 33 bits":       append(binary.AppendUvarint(nil, 1<<32), 0, 0, 0, 0, 0),
		"old beyond 32 bits":      append(append([]byte{0, 0, 0, 0, 1}, binary.AppendUvarint(nil, 1<<32)...), 0, 0),
		"new below 0":             {0, 0, 0, 0, 1, 5, 11 /* -6 */, 0},
	} {
		if _, err := Decode(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzSection(f *testing.F) {
	old, new := kernels()
	m := learn(f, &old, &new)
	f.Add(old.module(1, false))
	f.Add(new.module(2, true)[:600])
	f.Add([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := bytes.Clone(b)
		m.New.Normalize(c)
		m.New.Restore(c)
		if !bytes.Equal(b, c) {
			t.Fatal("restored something else")
		}
		m.Rewrite(c)
		m.RewriteKernel(c)
		Mask(c)
		if k := FromKernels(b, c); k != nil {
			k.RewriteKernel(c)
		}
		l := NewLearner()
		l.Look(b, c)
		if err := l.Compare(context.Background(), b, c); err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(l.Map().Encode()); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	old, new := kernels()
	f.Add(learn(f, &old, &new).Encode())
	f.Add([]byte{1, 2, 3, 4, 1, 5, 6, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if again, err := Decode(m.Encode()); err != nil || !bytes.Equal(again.Encode(), m.Encode()) {
			t.Fatalf("coded again: %v", err)
		}
		m.Rewrite(old.module(1, false))
	})
}

// base makes the BTF of a kernel: types in an order that seed gives.
func base(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 9))
	order := r.Perm(n)
	b := builder{}
	b.strings = []byte{0}
	numberOf := make([]uint32, n) // of the i-th structure; each is three types
	for at, i := range order {
		numberOf[i] = uint32(3*at) + 1
	}
	for _, i := range order {
		s := b.add(b.own(fmt.Sprintf("structure_%d", i)), kindStruct, 2, uint32(8+i%5),
			b.own(fmt.Sprintf("member_%d", i%17)), numberOf[(i*7+1)%n], 0, b.own("next"), numberOf[(i*3+2)%n]+1, 64)
		_ = s
		b.add(0, 2, 0, numberOf[i])
		b.add(b.own(fmt.Sprintf("function_%d", i)), kindFunc, 1, numberOf[(i*5+3)%n]+1)
	}
	return b.section()
}

// Two kernels with the same types in another order: the map explains every number.
func TestFromKernels(t *testing.T) {
	old, new := base(1, 300), base(2, 300)
	m := FromKernels(old, new)
	if m == nil || m.Old.Types != 901 || m.New.Types != 901 {
		t.Fatalf("map %+v", m)
	}
	if m, err := Decode(m.Encode()); err != nil || m.Old.Types != 901 {
		t.Fatal(err)
	}
	a, b := bytes.Clone(old), bytes.Clone(new)
	m.RewriteKernel(a)
	if before, after := cost(t, old, new), cost(t, a, b); after*3 > before {
		t.Errorf("cost %d, %d without the map", after, before)
	}
	// Masks consist of the same types.
	Mask(a)
	Mask(old)
	Mask(new)
	sorted := func(section []byte) (out []string) {
		types, _ := split(section)
		kinds(types, func(_, kind uint32, b []byte) {
			out = append(out, string(b[:12]))
		})
		slices.Sort(out)
		return out
	}
	if x, y := sorted(old), sorted(new); !slices.Equal(x, y) {
		t.Error("the masks of the same types differ")
	}
}
