package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/redeflate"
	"github.com/btrovl/btrovl/integration/testenv"
)

// packedBy runs a packer as a filter.
func packedBy(t testing.TB, b []byte, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Command(t, name), args...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kbuildXz packs a module as Linux does (scripts/Makefile.modinst).
func kbuildXz(t testing.TB, b []byte, more ...string) []byte {
	return packedBy(t, b, "xz", append([]string{"-c", "--check=crc32", "--lzma2=dict=1MiB"}, more...)...)
}

// TestPacked: packed modules travel as modules where they can be packed again, and come out
// as they were.
func TestPacked(t *testing.T) {
	one, two := object(1, 0), object(1, 40)
	for name, c := range map[string]struct {
		old, new []byte
		method   string
	}{
		"xz":            {kbuildXz(t, one), kbuildXz(t, two), "packed"},
		"blocks":        {kbuildXz(t, one, "--block-size=9000"), kbuildXz(t, two, "--block-size=8000"), "packed"},
		"threads":       {kbuildXz(t, one, "-T2"), kbuildXz(t, two, "-T2"), "packed"},
		"gzip":          {gzipped(t, one), gzipped(t, two), "packed"},
		"zstd":          {packedBy(t, one, "zstd", "-q", "-c", "-19"), packedBy(t, two, "zstd", "-q", "-c", "-19"), "packed"},
		"repacked":      {gzipped(t, one), kbuildXz(t, two), "patch"},
		"from plain":    {one, kbuildXz(t, two), "patch"},
		"to plain":      {kbuildXz(t, one), two, "whole"},
		"no module":     {kbuildXz(t, words(1, 60000)), kbuildXz(t, edit(words(1, 60000), 3000, "more")), "recompress"},
		"other trailer": {append(kbuildXz(t, one), 1, 2, 3, 4), append(kbuildXz(t, two), 1, 2, 3, 4), "recompress"},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := files{"m/a.ko.xz": c.old, "m/x": seeded(1, 100)}, files{"m/a.ko.xz": c.new, "m/x": seeded(2, 100)}
			base := from.tree(t)
			b, r := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
			if m := methodOf(t, r, "m/a.ko.xz"); m != c.method {
				t.Errorf("method %s, want %s", m, c.method)
			}
			t.Logf("%d bytes for %d", len(b), len(c.new))
			got, _, err := exported(t, b, 0, base)
			if err != nil || !bytes.Equal(got["m/a.ko.xz"], c.new) {
				t.Fatalf("it came out differently (%v)", err)
			}
		})
	}
}

// TestPackedHints: what packed modules have in common is learned from what is inside of them.
func TestPackedHints(t *testing.T) {
	from, to := files{}, files{}
	for i := range trainLeast + 8 {
		name := fmt.Sprintf("m/%d.ko.xz", i)
		from[name], to[name] = kbuildXz(t, object(int64(i), 0)), kbuildXz(t, object(int64(i), 16))
	}
	base := from.tree(t)
	b, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}, Jobs: 2})
	t.Logf("%d bytes", len(b))
	got, a, err := exported(t, b, 0, base)
	if err != nil {
		t.Fatal(err)
	}
	if a.hints.priors == nil {
		t.Error("nothing was learned of the modules' encoder")
	}
	if h, err := decodeHints(a.hints.encode()); err != nil || !bytes.Equal(h.encode(), a.hints.encode()) {
		t.Errorf("hints come back differently (%v)", err)
	}
	for _, bad := range [][]byte{{0, 0, 9}, {0, 0, 0, 1}, append(a.hints.encode(), 0x80)} {
		if _, err := decodeHints(bad); err == nil {
			t.Errorf("hints that end with %x are taken", bad[len(bad)-1:])
		}
	}
	for name := range to {
		if !bytes.Equal(got[name], to[name]) {
			t.Errorf("%s came out differently", name)
		}
	}
	for path, want := range map[string]bool{"a.ko": true, "a.ko.xz": true, "a.ko.gz": true, "a.ko.zst": true, "ko": false, "a.xz": false, "a.kox": false} {
		if isModule(path) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}

// TestRottenPacked: a damaged old module is named, or the new one taken from the rescue section.
func TestRottenPacked(t *testing.T) {
	one, two := kbuildXz(t, object(1, 0)), kbuildXz(t, object(1, 40))
	for _, at := range []int{3, 14, 40, len(one) / 2, len(one) - 40, len(one) - 3} {
		from, to := files{"a.ko.xz": one}, files{"a.ko.xz": two}
		base := from.tree(t)
		plain, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
		rescue, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}, Rescue: []string{"*"}})
		rot(t, base, "a.ko.xz", at)
		got, _, err := exported(t, plain, 0, base)
		var source *SourceError
		if err == nil && !bytes.Equal(got["a.ko.xz"], two) || err != nil && !errors.As(err, &source) {
			t.Errorf("damage at %d: %v", at, err)
		}
		got, _, err = exported(t, rescue, 0, base)
		if err != nil || !bytes.Equal(got["a.ko.xz"], two) {
			t.Errorf("damage at %d, with rescue: %v", at, err)
		}
	}
}

// TestPackedMemory: what a module takes is refused where less is stated, and a maker who may not take
// it does not use the method.
func TestPackedMemory(t *testing.T) {
	one, two := object(1, 0), object(1, 40)
	m := estimator(t)
	m.o.Memory = 4 << 20
	c := candidate{data: kbuildXz(t, one)}
	if k, err := m.packedAfter(t.Context(), kbuildXz(t, two), c, two, one); err != nil || k != nil {
		t.Errorf("in 4 MiB of memory: %v, %v", k, err)
	}
	m.o.Memory = LowMemory
	k, err := m.packedAfter(t.Context(), kbuildXz(t, two), c, two, one)
	if err != nil || k == nil {
		t.Fatalf("in 64 MiB of memory: %v, %v", k, err)
	}
	a := newApplier(&bundle.Manifest{}, nil, newStage(os.Stdin, &listing{}, &listing{}), ApplyOptions{})
	j := &job{rec: &k.rec, recipe: k.recipe}
	need, err := redeflate.Memory(k.recipe, 2)
	if err != nil {
		t.Fatal(err)
	}
	// All of it is held: none may be at work beside a kernel.
	if held, err := a.hold(j); err != nil || held != need+k.rec.memory() {
		t.Errorf("in the memory that is usual: %d, %v; it needs %d", held, err, need+k.rec.memory())
	}
	a.memory = 4 << 20
	var damage *bundle.DamageError
	if _, err := a.hold(j); !errors.As(err, &damage) {
		t.Errorf("in 4 MiB of memory: %v", err)
	}
}

// A recipe that wants an old file is damage where its record has no source.
func TestRecipeWithoutSource(t *testing.T) {
	one, two := object(1, 0), object(1, 40)
	m := estimator(t)
	k, err := m.packedAfter(t.Context(), kbuildXz(t, two), candidate{data: kbuildXz(t, one)}, two, one)
	if err != nil || k == nil {
		t.Fatal(k, err)
	}
	a := newApplier(&bundle.Manifest{}, nil, newStage(os.Stdin, &listing{}, &listing{}), ApplyOptions{})
	for _, sources := range [][]source{nil, {{index: 7, new: true}}} {
		j := &job{rec: &record{method: methodRestore, sources: sources, size: 1 << 20}, recipe: k.recipe}
		var damage *bundle.DamageError
		if err := a.recompressFrom(&redeflate.Restorer{Workers: 2}, j, &checked{sink: &memorySink{limit: 1 << 20}, a: a}, bytes.NewReader(two)); !errors.As(err, &damage) {
			t.Errorf("%d sources: %v", len(sources), err)
		}
	}
}

// estimator returns a maker that can compare objects.
func estimator(t testing.TB) *maker {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &maker{o: &MakeOptions{Memory: DefaultMemory}, hints: &hints{}, olds: &inventory{listing: &listing{entries: make([]entry, 1)}}, estimate: make(chan *zstd.Encoder, 1)}
	m.estimate <- z
	return m
}

// A packedCase is a record of a packed module with everything that belongs to it.
type packedCase struct {
	old, recipe []byte
	rec         record
	actions     []action
}

func newPackedCase(t testing.TB) (packedCase, []byte) {
	one, two := object(1, 0), object(1, 40)
	m := estimator(t)
	old, new := kbuildXz(t, one), kbuildXz(t, two)
	k, err := m.packedAfter(context.Background(), new, candidate{data: old}, two, one)
	if err != nil || k == nil {
		t.Fatal(k, err)
	}
	k.rec.size = int64(len(new))
	return packedCase{old: old, recipe: k.recipe, rec: k.rec, actions: k.actions}, new
}

// run is what the applier does with a record, twice with the same Restorer.
func (k *packedCase) run(t testing.TB, dir string) (out []byte, err error) {
	t.Helper()
	name := filepath.Join(dir, "old")
	if err := os.WriteFile(name, k.old, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	a := newApplier(&bundle.Manifest{}, root, newStage(root, &listing{entries: []entry{{path: "old"}}}, &listing{}), ApplyOptions{Jobs: 1})
	a.hints = &hints{}
	for range 2 {
		v := &view{path: "old", size: int64(len(k.old)), open: func() (*os.File, int64, error) { return openRegular(root, "old") }}
		feed := make(chan []action, 1)
		feed <- append([]action(nil), k.actions...)
		close(feed)
		held := int64(0)
		for _, c := range k.actions {
			held += int64(len(c.data))
		}
		a.sem.Acquire(context.Background(), min(held, inFlight))
		to := &memorySink{limit: 1 << 20}
		rec := k.rec
		err = a.packed(context.Background(), v, &job{rec: &rec, recipe: k.recipe, feed: feed}, &checked{sink: to, a: a})
		v.Close()
		out = to.b
	}
	return out, err
}

// TestHostilePacked: a record that no maker wrote gives an error and no panic.
func TestHostilePacked(t *testing.T) {
	good, want := newPackedCase(t)
	if b, err := good.run(t, t.TempDir()); err != nil || !bytes.Equal(b, want) {
		t.Fatalf("what is right: %v", err)
	}
	for name, change := range map[string]func(k *packedCase){
		"no head":                      func(k *packedCase) { k.rec.head = 0 },
		"head beyond":                  func(k *packedCase) { k.rec.head = k.rec.plain + 1 },
		"less plain":                   func(k *packedCase) { k.rec.plain -= 100 },
		"more plain":                   func(k *packedCase) { k.rec.plain += 5 },
		"less inside":                  func(k *packedCase) { k.rec.inside-- },
		"more inside":                  func(k *packedCase) { k.rec.inside++ },
		"another size":                 func(k *packedCase) { k.rec.size++ },
		"recipe":                       func(k *packedCase) { k.recipe = []byte("nonsense") },
		"recipe cut":                   func(k *packedCase) { k.recipe = k.recipe[:len(k.recipe)/2] },
		"no recipe":                    func(k *packedCase) { k.recipe = nil },
		"operations cut":               func(k *packedCase) { k.actions = k.actions[:len(k.actions)/2] },
		"more operations":              func(k *packedCase) { k.actions = append(k.actions, k.actions[0]) },
		"an operation across pieces":   func(k *packedCase) { k.actions[0].length = 1 << 40; k.actions[0].kind = opCopy },
		"an operation before the file": func(k *packedCase) { k.actions[0].kind, k.actions[0].seek = opCopy, -1<<40 },
		"an operation behind the file": func(k *packedCase) { k.actions[0].kind, k.actions[0].seek = opCopy, 1<<40 },
		"old file of another kind":     func(k *packedCase) { k.old = seeded(1, 5000) },
		"old file cut":                 func(k *packedCase) { k.old = k.old[:len(k.old)/2] },
		"no old file":                  func(k *packedCase) { k.old = nil },
	} {
		k := good
		k.actions = append(k.actions[:0:0], good.actions...)
		change(&k)
		b, err := k.run(t, t.TempDir())
		var damage *bundle.DamageError
		var source *SourceError
		if !errors.As(err, &damage) && !errors.As(err, &source) {
			t.Errorf("%s: %v, %d bytes", name, err, len(b))
		}
	}
}

// TestContentOf: only what follows one another from the start on is content.
func TestContentOf(t *testing.T) {
	seg := func(at, n int64) redeflate.Segment { return redeflate.Segment{Offset: at, Length: n} }
	for _, c := range []struct {
		parts []redeflate.Segment
		want  int64
	}{
		{nil, 0},
		{[]redeflate.Segment{seg(0, 5), seg(5, 7)}, 12},
		{[]redeflate.Segment{seg(0, 5), seg(6, 7)}, 5},
		{[]redeflate.Segment{seg(1, 5)}, 0},
	} {
		if n := contentOf(c.parts); n != c.want {
			t.Errorf("%v: %d, want %d", c.parts, n, c.want)
		}
	}
}

// newc packs files as an initrd does.
func newc(f map[string][]byte, names ...string) []byte {
	var b bytes.Buffer
	for _, name := range append(names, "TRAILER!!!") {
		mode := 0o100644
		if name == "TRAILER!!!" {
			mode = 0
		}
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", b.Len(), mode, 0, 0, 1, 0, len(f[name]), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(f[name])
		b.Write(make([]byte, -b.Len()&3))
	}
	return b.Bytes()
}

// TestRescueOfCompressed: damage of a compressed old file that can still be expanded shows only in what is made of it; the
// rescue section has the file, and without one it is an error.
func TestRescueOfCompressed(t *testing.T) {
	version := func(grow int) files {
		inside := map[string][]byte{"a": object(1, grow), "b": seeded(3, 60000), "c": object(2, grow)}
		return files{"boot/initrd.img": packedBy(t, newc(inside, "a", "b", "c"), "zstd", "-q", "-c", "-9")}
	}
	from, to := version(0), version(24)
	base, new := from.tree(t), to.tree(t)
	make := func(rescue ...string) []byte {
		b, r := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: new}, Rescue: rescue})
		if m := methodOf(t, r, "boot/initrd.img"); m != "recompress" {
			t.Fatalf("method %s", m)
		}
		return b
	}
	with, without := make("boot"), make()
	old, tried := from["boot/initrd.img"], 0
	for at := len(old) / 20; at < len(old) && tried < 8; at += len(old) / 40 {
		bad := bytes.Clone(old)
		bad[at] ^= 0x40
		if redeflate.Expand(io.Discard, bytes.NewReader(bad), int64(len(bad))) != nil {
			continue
		}
		tried++
		rot(t, base, "boot/initrd.img", at)
		got, a, err := exported(t, with, 0, base)
		if err != nil || !bytes.Equal(got["boot/initrd.img"], to["boot/initrd.img"]) || len(a.failed.rescued) != 1 {
			t.Errorf("damage at %d: %v", at, err)
		}
		if _, _, err := exported(t, without, 0, base); err == nil {
			t.Errorf("damage at %d, without rescue: no error", at)
		}
		rot(t, base, "boot/initrd.img", at) // as it was
	}
	if tried == 0 {
		t.Error("no damage leaves what can be expanded")
	}
	t.Log(tried, "places")
}

// TestInitrdOfPacked: an initrd packed by zstd whose members are files of the system, and the insides of its packed
// modules, costs next to nothing, whether its old inside can be had or is too large.
func TestInitrdOfPacked(t *testing.T) {
	for name, big := range map[string]int{"small": 1 << 20, "large": maxExpanded} {
		t.Run(name, func(t *testing.T) {
			version := func(grow int) files {
				inside := map[string][]byte{"bin/big": append(seeded(7, 1200<<10), make([]byte, big)...), "conf": []byte("the same\n")}
				f := files{"bin/big": inside["bin/big"]}
				names := []string{"bin/big", "conf"}
				for i := range 5 {
					module, g := fmt.Sprintf("lib/%d.ko", i), grow
					if i == 0 {
						g = 0 // one that stays
					}
					inside[module] = object(int64(i), g)
					f[module+".xz"] = kbuildXz(t, inside[module])
					names = append(names, module)
				}
				f["boot/initrd.img"] = append(newc(map[string][]byte{"early": seeded(1, 300)}, "early"), packedBy(t, newc(inside, names...), "zstd", "-q", "-c", "-9")...)
				return f
			}
			from, to := version(0), version(24)
			base := from.tree(t)
			b, r := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
			if m := methodOf(t, r, "boot/initrd.img"); m != "recompress" {
				t.Errorf("method %s", m)
			}
			if len(b) > 20000 {
				t.Errorf("%d bytes", len(b))
			}
			t.Logf("%d bytes", len(b))
			got, _, err := exported(t, b, 0, base)
			if err != nil {
				t.Fatal(err)
			}
			for name := range to {
				if !bytes.Equal(got[name], to[name]) && !bytes.Equal(from[name], to[name]) {
					t.Errorf("%s came out differently", name)
				}
			}
			// A module that rotted is named.
			rot(t, base, "lib/0.ko.xz", 200)
			var source *SourceError
			if _, _, err := exported(t, b, 0, base); !errors.As(err, &source) {
				t.Errorf("a rotten module: %v", err)
			}
		})
	}
}
