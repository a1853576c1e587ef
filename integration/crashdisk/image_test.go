package crashdisk

import (
	"bytes"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) {
	ServeIfChild()
	Sweep()
	code := testenv.Code(m)
	if err := Leave(); err != nil {
		fmt.Fprintln(os.Stderr, "crashdisk:", err)
		code = 1
	}
	os.Exit(code)
}

func states(t *testing.T, p Plan) iter.Seq[State] {
	t.Helper()
	s, err := p.States()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// An image and its clones behave like separate arrays of bytes.
func TestImageBehavesLikeBytes(t *testing.T) {
	const size = 5<<20 + 512
	rng := rand.New(rand.NewPCG(1, 2))
	type pair struct {
		img *Image
		ref []byte
	}
	all := []pair{{NewImage(size), make([]byte, size)}}
	for i := range 400 {
		p := all[rng.IntN(len(all))]
		off := rng.Int64N(size)
		n := min(rng.Int64N(3*PageSize), size-off)
		switch rng.IntN(10) {
		case 0:
			if len(all) < 8 {
				all = append(all, pair{p.img.Clone(), bytes.Clone(p.ref)})
			}
		case 1, 2:
			p.img.Zero(off, n)
			clear(p.ref[off : off+n])
		default:
			b := make([]byte, n)
			for j := range b {
				b[j] = byte(i + j)
			}
			if _, err := p.img.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
			copy(p.ref[off:], b)
		}
	}
	for i, p := range all {
		got := make([]byte, size)
		if _, err := p.img.ReadAt(got, 0); err != nil || !bytes.Equal(got, p.ref) {
			t.Fatalf("image %d differs from what was written (%v)", i, err)
		}
		again := NewImage(size)
		again.WriteAt(p.ref[:size/PageSize*PageSize], 0)
		again.WriteAt(p.ref[size/PageSize*PageSize:], size/PageSize*PageSize)
		if again.Sum() != p.img.Sum() {
			t.Errorf("image %d: the sum depends on the history", i)
		}
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := p.img.Store(f); err != nil {
			t.Fatal(err)
		}
		back, err := Load(f)
		if err != nil || back.Sum() != p.img.Sum() {
			t.Errorf("image %d: stored and loaded it differs (%v)", i, err)
		}
	}
}

func TestSpreadIsAPermutation(t *testing.T) {
	for n := range 70 {
		seen := map[int]bool{}
		for _, i := range spread(3, 3+n) {
			if i < 3 || i >= 3+n || seen[i] {
				t.Fatalf("n=%d: %d is outside or twice", n, i)
			}
			seen[i] = true
		}
		if len(seen) != n {
			t.Fatalf("n=%d: only %d numbers", n, len(seen))
		}
	}
}

// The states of a small recording, against a list written by hand.
func TestStatesAreLegal(t *testing.T) {
	pg := func(c byte) []byte { return bytes.Repeat([]byte{c}, PageSize) }
	ops := []Op{
		{Kind: Write, Off: 0, Data: pg('a')},
		{Kind: Flush},
		{Kind: Write, Off: 0, Data: pg('b')},
		{Kind: Write, Off: PageSize, Data: pg('c')},
		{Kind: Flush},
		{Kind: Mark, Data: []byte("done")},
		{Kind: Write, Off: 0, Data: pg('d')},
	}
	base := NewImage(1 << 20)
	kept := map[string]int{}
	for s := range states(t, Plan{Base: base, Ops: ops, Atomic: func(Op) bool { return true }}) {
		b := make([]byte, 2)
		s.Image.ReadAt(b[:1], 0)
		s.Image.ReadAt(b[1:], PageSize)
		k := s.Phase + ":"
		for _, c := range b {
			if c == 0 {
				c = '0'
			}
			k += string(c)
		}
		kept[k]++
	}
	want := []string{":00", ":a0", ":b0", ":ac", ":bc", "done:bc", "done:dc"}
	for _, k := range want {
		if kept[k] != 1 {
			t.Errorf("state %q: %d times, want once", k, kept[k])
		}
	}
	if len(kept) != len(want) {
		t.Errorf("states %v, want %v", kept, want)
	}
	// Torn: sectors of old and new, nothing else.
	torn := 0
	for s := range states(t, Plan{Base: base, Ops: ops}) {
		b := make([]byte, PageSize)
		s.Image.ReadAt(b, 0)
		for i := 0; i < PageSize; i += SectorSize {
			if !bytes.Equal(b[i:i+SectorSize], bytes.Repeat(b[i:i+1], SectorSize)) {
				t.Fatal("a sector is torn")
			}
		}
		if b[0] != b[PageSize-1] {
			torn++
		}
	}
	if torn == 0 {
		t.Error("no torn write")
	}
}
