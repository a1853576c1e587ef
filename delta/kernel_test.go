package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/redeflate"
	"github.com/btrovl/btrovl/integration/testenv"
)

// The samples testdata/vmlinuz-{1,2} and program-{1,2} are what exe_test.go builds (a kernel with the
// types of two btf_test.go kernels; a program), two versions each; the kernels packed by xz with its x86 filter, behind
// the header and before the trailer of a bzImage.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inside is what a sample holds.
func inside(t testing.TB, kernel []byte) []byte {
	t.Helper()
	k, ok := kernelInsideOf(kernel)
	if !ok {
		t.Fatal("no program in the sample")
	}
	return bytes.Clone(k.text())
}

// gzipped packs as kernels are.
func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Command(t, "gzip"), "-9", "-n", "-c")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bzImage puts a payload where the sample has its own.
func bzImage(t testing.TB, payload []byte) []byte {
	head := bytes.Clone(sample(t, "vmlinuz-1")[:2048])
	return append(append(head, payload...), "the end"...)
}

// zboot is a kernel for UEFI.
func zboot(payload []byte) []byte {
	b := make([]byte, 64, 64+len(payload))
	copy(b, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(b[8:], 64)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	copy(b[24:], "gzip")
	return append(append(b, payload...), bytes.Repeat([]byte("stub "), 400)...)
}

func methodOf(t *testing.T, r *Report, path string) string {
	t.Helper()
	for _, f := range r.Files {
		if f.Path == path {
			return f.Method
		}
	}
	t.Fatalf("no file %s in the report", path)
	return ""
}

// TestKernel: kernels in all the clothes that can be put on again, and what is said of them.
func TestKernel(t *testing.T) {
	one, two := sample(t, "vmlinuz-1"), sample(t, "vmlinuz-2")
	elf := [2][]byte{inside(t, one), inside(t, two)}
	for name, c := range map[string]struct {
		old, new []byte
		method   string
	}{
		"xz":         {one, two, "kernel"},
		"gzip":       {bzImage(t, gzipped(t, elf[0])), bzImage(t, gzipped(t, elf[1])), "kernel"},
		"zstd":       {bzImage(t, packedBy(t, elf[0], "zstd", "-q", "-c", "-19")), bzImage(t, packedBy(t, elf[1], "zstd", "-q", "-c", "-19")), "kernel"},
		"zboot":      {zboot(gzipped(t, elf[0])), zboot(gzipped(t, elf[1])), "kernel"},
		"repacked":   {one, bzImage(t, gzipped(t, elf[1])), "kernel"},
		"no program": {zboot(gzipped(t, words(1, 60000))), zboot(gzipped(t, edit(words(1, 60000), 3000, "more"))), "recompress"},
		"no payload": {bzImage(t, seeded(3, 40000)), bzImage(t, changedBytes(seeded(3, 40000), 1)), "patch"},
		"program":    {sample(t, "program-1"), sample(t, "program-2"), "program"},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := files{"boot/vmlinuz-6.1.0-1": c.old, "etc/x": seeded(1, 100)}, files{"boot/vmlinuz-6.1.0-2": c.new, "etc/x": seeded(2, 100)}
			base := from.tree(t)
			b, r := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
			if m := methodOf(t, r, "boot/vmlinuz-6.1.0-2"); m != c.method {
				t.Errorf("method %s, want %s", m, c.method)
			}
			t.Logf("%d bytes for %d", len(b), len(c.new))
			got, _, err := exported(t, b, 0, base)
			if err != nil || !bytes.Equal(got["boot/vmlinuz-6.1.0-2"], c.new) {
				t.Fatalf("it came out differently (%v)", err)
			}
		})
	}
}

// TestKernelMemory: what a kernel takes is refused where less is stated, and a maker who may not
// take it does not use the method.
func TestKernelMemory(t *testing.T) {
	one, two := sample(t, "vmlinuz-1"), sample(t, "vmlinuz-2")
	f := &made{}
	m := &maker{o: &MakeOptions{Memory: 4 << 20}, olds: &inventory{listing: &listing{entries: make([]entry, 1)}}}
	if err := m.kernel(context.Background(), two, []candidate{{data: one}}, f); err != nil || f.info.Method != "" {
		t.Errorf("in 4 MiB of memory: %v, %q", err, f.info.Method)
	}
	u, err := redeflate.Unpack(two, redeflate.Options{Old: one})
	if err != nil {
		t.Fatal(err)
	}
	j := &job{rec: &record{method: methodKernel}, recipe: u.Recipe}
	a := newApplier(&bundle.Manifest{}, nil, newStage(os.Stdin, &listing{}, &listing{}), ApplyOptions{})
	if _, err := a.hold(j); err != nil {
		t.Errorf("in the memory that is usual: %v", err)
	}
	a.memory = 4 << 20
	var damage *bundle.DamageError
	if _, err := a.hold(j); !errors.As(err, &damage) {
		t.Errorf("in 4 MiB of memory: %v", err)
	}
}

// TestRottenKernel: a damaged old kernel is named, or the new one taken from the rescue section.
func TestRottenKernel(t *testing.T) {
	one, two := sample(t, "vmlinuz-1"), sample(t, "vmlinuz-2")
	for _, at := range []int{0x1f1, 2048 + 5, 2048 + 3000, 2048 + 9000, len(one) - 3} {
		from, to := files{"boot/vmlinuz": one}, files{"boot/vmlinuz": two}
		base := from.tree(t)
		plain, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
		rescue, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}, Rescue: []string{"boot"}})
		rot(t, base, "boot/vmlinuz", at)
		if _, _, err := exported(t, plain, 0, base); err == nil {
			t.Errorf("damage at %d: not noticed", at)
		}
		got, a, err := exported(t, rescue, 0, base)
		if err != nil || !bytes.Equal(got["boot/vmlinuz"], two) || len(a.failed.rescued) != 1 {
			t.Errorf("damage at %d: %v", at, err)
		}
	}
}

// A kernelCase is a record of a kernel with everything that belongs to it.
type kernelCase struct {
	old, recipe, types []byte
	rec                record
	actions            []action
}

func newKernelCase(t testing.TB) kernelCase {
	one, two := sample(t, "vmlinuz-1"), sample(t, "vmlinuz-2")
	old, _ := kernelInsideOf(one)
	new, _ := kernelInsideOf(two)
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &maker{o: &MakeOptions{Memory: DefaultMemory}, estimate: make(chan *zstd.Encoder, 1)}
	m.estimate <- z
	f, err := m.kernelAfter(context.Background(), two, candidate{data: one}, &new, &old)
	if err != nil || f == nil {
		t.Fatalf("no kernel: %v", err)
	}
	if len(f.types) == 0 || len(f.rec.moves) == 0 {
		t.Fatal("the sample does not show types and moves")
	}
	f.rec.size = int64(len(two))
	return kernelCase{one, f.recipe, f.types, f.rec, f.actions}
}

// run makes the kernel as a device does; dir is for temporary files.
func (k *kernelCase) run(t testing.TB, dir string) ([]byte, error) {
	t.Helper()
	path := filepath.Join(dir, "old")
	if err := os.WriteFile(path, k.old, 0o600); err != nil {
		t.Fatal(err)
	}
	root := open(t, dir)
	l := &listing{entries: []entry{{path: "old", link: -1}}}
	a := newApplier(&bundle.Manifest{}, root, newStage(root, l, l), ApplyOptions{Jobs: 1})
	rec := k.rec
	rec.sources = []source{{expanded: true}}
	j := &job{rec: &rec, recipe: k.recipe, types: k.types, feed: make(chan []action, 1)}
	var err error
	if j.held, err = a.hold(j); err != nil {
		return nil, err
	}
	j.feed <- k.actions
	close(j.feed)
	for i := range k.actions {
		if err := a.sem.Acquire(context.Background(), int64(len(k.actions[i].data))); err != nil {
			t.Fatal(err)
		}
	}
	v := &view{size: int64(len(k.old)), path: "old", open: func() (*os.File, int64, error) { return openRegular(root, "old") }}
	defer v.Close()
	out := &memorySink{limit: 1 << 24}
	err = a.kernel(context.Background(), v, j, &checked{sink: out, a: a})
	return out.b, err
}

// TestHostileKernels: records that are not what a maker writes are damage, and nothing worse.
func TestHostileKernels(t *testing.T) {
	good := newKernelCase(t)
	if b, err := good.run(t, t.TempDir()); err != nil || !bytes.Equal(b, sample(t, "vmlinuz-2")) {
		t.Fatalf("what is right: %v", err)
	}
	for name, change := range map[string]func(k *kernelCase){
		"program beyond the old file":  func(k *kernelCase) { k.rec.kernel.old.to = maxKernel },
		"program behind the old file":  func(k *kernelCase) { k.rec.kernel.old = span{maxKernel - 1, maxKernel} },
		"program beyond the new file":  func(k *kernelCase) { k.rec.kernel.new.to += 1 << 20 },
		"no head":                      func(k *kernelCase) { k.rec.head = 0 },
		"head beyond":                  func(k *kernelCase) { k.rec.head = 1 << 30 },
		"less plain":                   func(k *kernelCase) { k.rec.plain = k.rec.kernel.new.to - 1 },
		"more plain":                   func(k *kernelCase) { k.rec.plain += 5 },
		"move from before":             func(k *kernelCase) { k.rec.moves[0].Old = -1 },
		"move from beyond":             func(k *kernelCase) { k.rec.moves[0].Old = 1 << 40 },
		"move of nothing":              func(k *kernelCase) { k.rec.moves[0].Length = 0 },
		"moves that overlap":           func(k *kernelCase) { k.rec.moves = append(k.rec.moves, k.rec.moves[0]) },
		"types":                        func(k *kernelCase) { k.types = []byte("nonsense that is no map") },
		"recipe":                       func(k *kernelCase) { k.recipe = []byte("nonsense") },
		"recipe cut":                   func(k *kernelCase) { k.recipe = k.recipe[:len(k.recipe)/2] },
		"recipe that wants no moves":   func(k *kernelCase) { k.rec.moves = k.rec.moves[:1] },
		"operations cut":               func(k *kernelCase) { k.actions = k.actions[:len(k.actions)/2] },
		"more operations":              func(k *kernelCase) { k.actions = append(k.actions, k.actions[0]) },
		"an operation across pieces":   func(k *kernelCase) { k.actions[0].length = 1 << 40; k.actions[0].kind = opCopy },
		"an operation before the file": func(k *kernelCase) { k.actions[0].kind, k.actions[0].seek = opCopy, -1<<40 },
		"an operation behind the file": func(k *kernelCase) { k.actions[0].kind, k.actions[0].seek = opCopy, 1<<40 },
		"old file of another kind":     func(k *kernelCase) { k.old = seeded(1, 5000) },
		"old file cut":                 func(k *kernelCase) { k.old = k.old[:9000] },
	} {
		k := good
		k.rec.moves = append(k.rec.moves[:0:0], good.rec.moves...)
		k.actions = append(k.actions[:0:0], good.actions...)
		change(&k)
		_, err := k.run(t, t.TempDir())
		var damage *bundle.DamageError
		var source *SourceError
		if !errors.As(err, &damage) && !errors.As(err, &source) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzKernel: whatever a record, a recipe and an old file are, there is an end and an error at worst.
func FuzzKernel(f *testing.F) {
	good := newKernelCase(f)
	f.Add(good.old, good.recipe, good.types, []byte{})
	f.Add(good.old, good.recipe, []byte{}, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, old, recipe, types, edits []byte) {
		if len(old) > 1<<20 || len(recipe) > 1<<20 || len(types) > 1<<20 {
			return
		}
		k := good
		k.old, k.recipe, k.types = old, recipe, types
		k.rec.moves = append(k.rec.moves[:0:0], good.rec.moves...)
		k.actions = append(k.actions[:0:0], good.actions...)
		for ; len(edits) >= 4; edits = edits[4:] {
			v := int64(int16(binary.LittleEndian.Uint16(edits[2:])))
			m, a := &k.rec.moves[int(edits[1])%len(k.rec.moves)], &k.actions[int(edits[1])%len(k.actions)]
			switch edits[0] % 9 {
			case 0:
				m.Old += v
			case 1:
				m.New += v
			case 2:
				m.Length += v
			case 3:
				a.seek += v
			case 4:
				a.kind = opKind(v & 3)
				if a.kind != opCopy && int64(len(a.data)) != a.length {
					a.kind = opCopy
				}
			case 5:
				k.rec.head += v
			case 6:
				k.rec.kernel.old.from = max(0, min(k.rec.kernel.old.from+v, k.rec.kernel.old.to))
			case 7:
				k.rec.kernel.new.to = max(k.rec.kernel.new.from, k.rec.kernel.new.to+v)
			case 8:
				k.rec.plain = max(0, k.rec.plain+v)
			}
		}
		k.run(t, t.TempDir())
	})
}

// TestActionLog: actions come back as they were.
func TestActionLog(t *testing.T) {
	root := open(t, t.TempDir())
	l := newActionLog(root)
	defer l.m.Close()
	in := []action{
		{op: op{kind: opCopy, length: 1 << 40, seek: -5}}, {op: op{kind: opAdd, length: 3}, data: []byte{1, 2, 3}},
		{op: op{kind: opInsert, length: 5 << 20, seek: 1 << 40}, data: seeded(1, 5<<20)}, {op: op{kind: opCopy}}, {op: op{kind: opRaw}},
	}
	for _, a := range in {
		if err := l.put(a); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.rewind(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2)
	for i, want := range in {
		a, err := l.next(buf)
		if err != nil || a.kind != want.kind || a.length != want.length || a.seek != want.seek || !bytes.Equal(a.data, want.data) {
			t.Errorf("action %d came back as %+v, %v", i, a.op, err)
		}
	}
	if _, err := l.next(buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestKernelInfo: what is said of a bundle with a kernel.
func TestKernelInfo(t *testing.T) {
	base := files{"vmlinuz": sample(t, "vmlinuz-1")}.tree(t)
	b, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: files{"vmlinuz": sample(t, "vmlinuz-2")}.tree(t)}})
	all, err := FilesOf(context.Background(), reader(t, b), base)
	if err != nil || len(all) != 1 || all[0].Method != "kernel" || !strings.Contains(all[0].Source, "vmlinuz") {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestFaults: a disk that fails beneath a mapping is an error, not the end of the process.
func TestFaults(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 16
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := faults(func() { b[0] = 1 }); !errors.Is(err, unix.EIO) {
		t.Errorf("beyond the end of the file: %v", err)
	}
	if err := faults(func() {}); err != nil {
		t.Errorf("nothing: %v", err)
	}
}
