package relz

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
)

// TestPriors: priors learned from some streams make the recipes of others smaller, of either format, and
// only those who have the same priors can read these.
func TestPriors(t *testing.T) {
	type format struct {
		name     string
		zstd     bool
		pack     func(b []byte) []byte
		learn    func(packed []byte, n int) (*History, error)
		describe func(packed []byte, h *History) (*Described, error)
		rebuild  func(w io.Writer, plain, recipe []byte, h *History) error
	}
	var space Workspace
	for _, f := range []format{
		{"LZMA2", false, func(b []byte) []byte { return xzStream(t, b, false, "preset=6,dict=1MiB") },
			func(p []byte, n int) (*History, error) {
				return Learn(nil, bytes.NewReader(p), Stream{Dict: 1 << 20, Size: int64(n)}, nil)
			},
			func(p []byte, h *History) (*Described, error) {
				return Describe(p, Stream{Dict: 1 << 20, Size: 1 << 20}, h)
			},
			func(w io.Writer, plain, recipe []byte, h *History) error {
				return space.Rebuild(w, bytes.NewReader(plain), int64(len(plain)), recipe, h, nil)
			}},
		{"Zstandard", true, func(b []byte) []byte { return zstdPacked(t, b, "-9") },
			func(p []byte, n int) (*History, error) {
				return LearnZstd(nil, bytes.NewReader(p), Stream{Dict: 1 << 20, Size: int64(n)}, nil)
			},
			func(p []byte, h *History) (*Described, error) {
				return DescribeZstd(p, 1<<20, 16<<20, h, Stream{})
			},
			func(w io.Writer, plain, recipe []byte, h *History) error {
				return space.RebuildZstd(w, bytes.NewReader(plain), int64(len(plain)), recipe, h)
			}},
	} {
		t.Run(f.name, func(t *testing.T) {
			pair := func(seed uint64) (old, new []byte, size int) {
				b := code86(30000, seed)
				return f.pack(b), f.pack(edit(b, seed)), len(b)
			}
			priors := NewPriors(f.zstd)
			for seed := range uint64(12) {
				old, new, n := pair(seed + 1)
				h, err := f.learn(old, n)
				if err != nil {
					t.Fatal(err)
				}
				h.Train(priors)
				if _, err := f.describe(new, h); err != nil {
					t.Fatal(err)
				}
			}
			encoded := priors.Encode()
			known, err := DecodePriors(encoded)
			if err != nil || known.Zstd() != f.zstd {
				t.Fatal(err)
			}
			if again, err := DecodePriors(known.Encode()); err != nil || !reflect.DeepEqual(again, known) {
				t.Errorf("what was decoded is encoded otherwise (%v)", err)
			}
			other := NewPriors(!f.zstd)
			old, new, n := pair(77)
			history := func(p *Priors) *History {
				h, err := f.learn(old, n)
				if err != nil {
					t.Fatal(err)
				}
				h.SetPriors(p)
				return h
			}
			without, err := f.describe(new, history(nil))
			if err != nil {
				t.Fatal(err)
			}
			with, err := f.describe(new, history(known))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("recipe %d, with priors %d (which have %d bytes)", len(without.Recipe), len(with.Recipe), len(encoded))
			if len(with.Recipe) > len(without.Recipe)*9/10 {
				t.Errorf("priors do not help: %d bytes, without %d", len(with.Recipe), len(without.Recipe))
			}
			for range 2 {
				var out bytes.Buffer
				if err := f.rebuild(&out, with.Plain, with.Recipe, history(known)); err != nil || !bytes.Equal(out.Bytes(), new[:with.Used]) {
					t.Errorf("rebuild: %v", err)
				}
				out.Reset()
				if err := f.rebuild(&out, without.Plain, without.Recipe, history(other)); err != nil || !bytes.Equal(out.Bytes(), new[:with.Used]) {
					t.Errorf("rebuild with priors of the other format: %v", err)
				}
			}
			for _, p := range []*Priors{nil, other} {
				if err := f.rebuild(io.Discard, with.Plain, with.Recipe, history(p)); !errors.Is(err, ErrRecipe) {
					t.Errorf("without the priors: %v", err)
				}
			}
			if err := f.rebuild(io.Discard, without.Plain, without.Recipe, history(known)); !errors.Is(err, ErrRecipe) {
				t.Errorf("with priors that were not used: %v", err)
			}
			// Any bytes are priors, or none.
			for i := 0; i < min(len(encoded), 4000); i += 53 {
				bad := bytes.Clone(encoded[:min(len(encoded), 4000)])
				bad[i] ^= byte(1 << (i % 8))
				if p, err := DecodePriors(bad); err == nil && p.Zstd() == f.zstd {
					f.rebuild(io.Discard, with.Plain, with.Recipe, history(p))
				}
			}
			if _, err := DecodePriors(nil); err == nil {
				t.Error("nothing is taken for priors")
			}
		})
	}
}
