package delta

import (
	"context"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/integration/testenv"
)

var freeze = flag.Bool("freeze", false, "make the samples in testdata again (only when the format changes)")

// The trees of the frozen samples. They must never change.
func frozenTrees(t *testing.T) (old, new, other *os.File) {
	dir := testenv.Dir(t)
	o, n, x := builder{t, filepath.Join(dir, "old")}, builder{t, filepath.Join(dir, "new")}, builder{t, filepath.Join(dir, "other")}
	text := words(1, 8000)
	o.file("usr/lib/libfoo.so.1.2.3", text)
	o.file("usr/lib/modules/6.1.0-50/a.ko", object(3, 0))
	o.file("etc/moved", words(2, 3000))
	o.file("etc/gone", words(3, 100))
	n.file("usr/lib/libfoo.so.1.2.4", edit(text, 4000, "something new"))
	n.file("usr/lib/modules/6.1.0-56/a.ko", object(3, 40))
	n.file("etc/moved-here", words(2, 3000))
	n.file("etc/fresh", []byte("a fresh file\n"))
	n.must(os.Symlink("moved-here", n.path("etc/link")))
	x.file("usr/lib/libfoo.so.1.2.3", text)
	x.file("etc/other", words(4, 1000))
	for _, b := range []builder{o, n, x} {
		b.settle()
	}
	return open(t, o.root), open(t, n.root), open(t, x.root)
}

// The trees of the frozen sample with a program and a compressed kernel, its types and moves.
func frozenKernels(t *testing.T) (old, new *os.File) {
	dir := testenv.Dir(t)
	var roots [2]*os.File
	for i, v := range []string{"1", "2"} {
		b := builder{t, filepath.Join(dir, v)}
		b.file("boot/vmlinuz-6.1.0-"+v, sample(t, "vmlinuz-"+v))
		b.file("bin/program", sample(t, "program-"+v))
		b.settle()
		roots[i] = open(t, b.root)
	}
	return roots[0], roots[1]
}

// settle gives everything in a tree the same time.
func (b builder) settle() {
	var all []string
	filepath.WalkDir(b.root, func(p string, d fs.DirEntry, err error) error {
		all = append(all, p)
		return err
	})
	for i := len(all) - 1; i >= 0; i-- { // directories last
		e := &entry{sec: epoch.Unix()}
		b.must(setMtimePath(all[i], e))
	}
}

func setMtimePath(path string, e *entry) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return setMtime(int(dir.Fd()), filepath.Base(path), e)
}

// Today's btrovl applies the bundles of every format that was ever released.
func TestFrozen(t *testing.T) {
	testenv.Root(t)
	old, new, other := frozenTrees(t)
	oldKernel, newKernel := frozenKernels(t)
	if *freeze {
		freezeSamples(t, old, new, other, oldKernel, newKernel)
	}
	keys, err := bundle.LoadKeyring("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"delta-1.btrovl", "full-1.btrovl", "fast-1.btrovl", "delta-2.btrovl", "parts-2.btrovl", "kernel-2.btrovl"} {
		f := open(t, filepath.Join("testdata", name))
		br, err := bundle.NewReader(f, keys)
		if err != nil {
			t.Fatal(err)
		}
		base, want, stage := old, new, testenv.Dir(t)
		if name == "kernel-2.btrovl" {
			base, want = oldKernel, newKernel
		}
		if len(br.Manifest().From) == 0 {
			base = nil
		} else {
			copyTree(t, stage, base)
		}
		s := open(t, stage)
		if _, err := Apply(context.Background(), br, base, s, ApplyOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := digest(t, s); got != br.Manifest().To.Digest || got != digest(t, want) {
			t.Errorf("%s: the tree came out differently", name)
		}
	}
}

// Samples of earlier formats stay: no btrovl makes them any more.
func freezeSamples(t *testing.T, old, new, other, oldKernel, newKernel *os.File) {
	if _, err := os.Stat("testdata/sample.key"); err != nil {
		if _, err := bundle.GenerateKey("testdata/sample", ""); err != nil {
			t.Fatal(err)
		}
	}
	key, err := bundle.ReadPrivateKey("testdata/sample.key", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]MakeOptions{
		"delta-2.btrovl":  {From: []Tree{{Version: "1", Root: old}}},
		"parts-2.btrovl":  {From: []Tree{{Version: "1", Root: old}, {Version: "0", Root: other}}, Rescue: []string{"usr/lib/*.so*"}, leastShared: 1},
		"kernel-2.btrovl": {From: []Tree{{Version: "1", Root: oldKernel}}, To: Tree{Version: "2", Root: newKernel}},
	} {
		o.Sign, o.Counter, o.CreatedBy = key, 2, "btrovl"
		if o.To.Root == nil {
			o.To = Tree{Version: "2", Root: new}
		}
		f, err := os.Create(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Make(context.Background(), f, o); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
