package delta

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/delta/bundle"
)

// seeded returns n bytes that do not compress, the same for the same seed.
func seeded(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// changed returns b with a change every few KiB.
func changedBytes(b []byte, by byte) []byte {
	b = bytes.Clone(b)
	for i := 100; i < len(b); i += 3000 {
		b[i] += by
	}
	return b
}

type files map[string][]byte

func (f files) tree(t *testing.T) *os.File {
	dir := t.TempDir()
	for name, b := range f {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return mustOpen(t, dir)
}

// made is a bundle of trees, not signed: Make compares what it makes with the trees, from every base.
func madeBundle(t *testing.T, o MakeOptions) ([]byte, *Report) {
	t.Helper()
	var out bytes.Buffer
	o.Sign, o.Compression, o.Jobs = noSigner{}, Fast, 2
	r, err := Make(context.Background(), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), r
}

// exported applies a bundle to a directory of contents and returns these by path.
func exported(t *testing.T, b []byte, which int, base *os.File) (files, *applier, error) {
	t.Helper()
	br, err := bundle.NewReader(bytes.NewReader(b), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, r, err := openSection(br, which)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	olds, news, err := p.listings(t.Context(), r, base)
	if err != nil {
		return nil, nil, err
	}
	spool := mustOpen(t, t.TempDir())
	a := newApplier(br.Manifest(), base, newStage(spool, olds, news), ApplyOptions{Jobs: 2})
	a.target = &spoolTarget{dir: spool}
	if err := a.all(t.Context(), p, r); err != nil {
		return nil, a, err
	}
	if err := br.Verify(); err != nil {
		return nil, a, err
	}
	got := files{}
	for i := range news.entries {
		if a.recorded[i] {
			if got[news.entries[i].path], err = os.ReadFile(filepath.Join(spool.Name(), fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return got, a, nil
}

// What several bases lack is held once: new files, and patches of files that they have in common.
func TestSharedSections(t *testing.T) {
	old, fresh, module := seeded(1, 1<<20), seeded(2, 900<<10), seeded(3, 300<<10)
	a := files{"lib/old.so.1": old, "only-a": seeded(4, 50<<10), "mod": module, "same": seeded(6, 9000)}
	b := files{"lib/old.so.1": old, "only-b": seeded(5, 50<<10), "mod": changedBytes(module, 9), "same": seeded(6, 9000)}
	to := files{"lib/old.so.2": changedBytes(old, 1), "fresh": fresh, "fresh-too": fresh, "only-a": seeded(4, 50<<10), "mod": changedBytes(module, 77), "same": seeded(6, 9000), "empty": nil}
	ta, tb, tt := Tree{Version: "a", Root: a.tree(t)}, Tree{Version: "b", Root: b.tree(t)}, Tree{Version: "c", Root: to.tree(t)}
	fromA, _ := madeBundle(t, MakeOptions{From: []Tree{ta}, To: tt})
	fromB, _ := madeBundle(t, MakeOptions{From: []Tree{tb}, To: tt})
	both, report := madeBundle(t, MakeOptions{From: []Tree{ta, tb}, To: tt})
	t.Logf("from a %d, from b %d, from both %d bytes", len(fromA), len(fromB), len(both))
	if len(both)*100 > (len(fromA)+len(fromB))*56 {
		t.Errorf("from both: %d bytes, from a %d and from b %d", len(both), len(fromA), len(fromB))
	}
	for which, base := range []Tree{ta, tb} {
		got, _, err := exported(t, both, which, base.Root)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"fresh", "fresh-too", "lib/old.so.2", "mod", "empty"} {
			if !bytes.Equal(got[name], to[name]) {
				t.Errorf("from %s: %s differs", base.Version, name)
			}
		}
		if _, written := got["same"]; written {
			t.Errorf("from %s: what did not change is written", base.Version)
		}
	}
	seen := map[string]int{}
	for _, f := range report.Files {
		seen[f.Path]++
	}
	if seen["fresh"] != 1 || seen["lib/old.so.2"] != 1 || seen["mod"] != 2 || seen["only-a"] != 1 {
		t.Errorf("records: %v", seen)
	}
	br, err := bundle.NewReader(bytes.NewReader(both), nil)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := Files(t.Context(), br)
	if err != nil {
		t.Fatal(err)
	}
	var sources []string
	for _, f := range listed {
		sources = append(sources, f.Source)
	}
	if !strings.Contains(strings.Join(sources, "|"), "lib/old.so.1") {
		t.Errorf("sources of a shared section have names: %v", sources)
	}
}

// Three bases, two of which lack the same.
func TestSharedByTwoOfThree(t *testing.T) {
	fresh := seeded(2, 200<<10)
	var from []Tree
	for i, f := range []files{{"x": nil}, {"x": nil, "fresh": fresh}, {"y": nil}} {
		from = append(from, Tree{Version: fmt.Sprint(i), Root: f.tree(t)})
	}
	to := files{"fresh": fresh, "x": nil}
	b, report := madeBundle(t, MakeOptions{From: from, To: Tree{Version: "to", Root: to.tree(t)}})
	if len(b) > 210<<10 || len(report.Files) == 0 {
		t.Errorf("%d bytes", len(b))
	}
	for which, base := range from {
		got, _, err := exported(t, b, which, base.Root)
		if err != nil {
			t.Fatal(err)
		}
		if _, written := got["fresh"]; written != (which != 1) {
			t.Errorf("from %s: written %v", base.Version, written)
		}
	}
}

// An initrd of which one base has a member already, and the other gets it as a file: the member is in the bundle once, however
// the initrd is packed.
func TestSharedInitrdMembers(t *testing.T) {
	member, more := seeded(8, 900<<10), seeded(9, 400<<10)
	for packer, args := range map[string][]string{"gzip": {"-9nc"}, "zstd": {"-q", "-c", "-9"}, "xz": {"-c", "--check=crc32"}} {
		pack := func(names ...string) []byte {
			return packedBy(t, newc(map[string][]byte{"member": member, "more": more}, names...), packer, args...)
		}
		was := pack("more")
		a, b := files{"boot/initrd": was, "more": more}, files{"boot/initrd": was, "more": more, "elsewhere/member": member}
		to := files{"boot/initrd": pack("member", "more"), "member": member, "more": more}
		from := []Tree{{Version: "a", Root: a.tree(t)}, {Version: "b", Root: b.tree(t)}}
		made, _ := madeBundle(t, MakeOptions{From: from, To: Tree{Version: "c", Root: to.tree(t)}})
		if len(made) > 1000<<10 {
			t.Errorf("%s: %d bytes", packer, len(made))
		}
		for which, base := range from {
			got, _, err := exported(t, made, which, base.Root)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got["boot/initrd"], to["boot/initrd"]) {
				t.Errorf("%s, from %s: the initrd came out differently", packer, base.Version)
			}
		}
	}
}

// Files for the same bases can be in different groups.
func TestTogether(t *testing.T) {
	s := &sharingPlan{groups: map[uint64]map[int]bool{0b0011: {1: true, 3: true}, 0b1100: {1: true, 3: true}, 0b0101: {2: true}, 0b1010: {2: true}}}
	if !s.together(1, 3) || s.together(1, 2) || s.together(2, 3) || !s.together(7, 8) {
		t.Error("groups are mixed up")
	}
}

// rot changes a byte of a file of a base.
func rot(t *testing.T, root *os.File, name string, at int) {
	t.Helper()
	p := filepath.Join(root.Name(), name)
	st, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0x40
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(p, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func TestRescue(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program = program[:min(len(program), 1<<20)]
	old := seeded(1, 500<<10)
	from := files{"boot/a": old, "boot/b": seeded(2, 9000), "boot/moved": seeded(3, 5000), "boot/exe": program, "other": seeded(4, 20000)}
	to := files{"boot/a": changedBytes(old, 1), "boot/b": seeded(2, 9000), "boot/there": seeded(3, 5000), "boot/exe": changedBytes(program, 3), "other": changedBytes(seeded(4, 20000), 5)}
	base := from.tree(t)
	b, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}, Rescue: []string{"boot"}})
	got, a, err := exported(t, b, 0, base)
	if err != nil || len(a.failed.rescued) != 0 {
		t.Fatalf("nothing is damaged: %v, %v", a.failed.rescued, err)
	}
	if _, written := got["boot/b"]; written {
		t.Error("a file that is what it should be was written")
	}
	rot(t, base, "boot/a", 400<<10)
	rot(t, base, "boot/b", 5)
	rot(t, base, "boot/moved", 4999)
	rot(t, base, "boot/exe", 20)
	got, a, err = exported(t, b, 0, base)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range to {
		if !bytes.Equal(got[name], want) {
			t.Errorf("%s differs", name)
		}
	}
	if len(a.failed.rescued) != 4 {
		t.Errorf("rescued: %v", a.failed.rescued)
	}
	// What the maker was not told to bring is refused as before, and named.
	rot(t, base, "other", 10)
	if _, _, err = exported(t, b, 0, base); err == nil || !strings.Contains(err.Error(), "cannot make other: other in the base is damaged") {
		t.Errorf("a damaged source without rescue: %v", err)
	}
}

func TestRescuePatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"boot", "boot/vmlinuz", true}, {"/boot/", "boot/a/b", true}, {"boot/vm*", "boot/vmlinuz", true},
		{"boot/vm*", "boot/initrd", false}, {"*", "any/thing", true}, {"boot", "bootx", false}, {"[", "[", false},
	} {
		if got := rescues([]string{c.pattern}, c.path); got != c.want {
			t.Errorf("%s for %s: %v", c.pattern, c.path, got)
		}
	}
}

// A wrong base is told by the first entry that differs.
func TestFirstDiff(t *testing.T) {
	from := files{"a": {1}, "b/c": {2}, "b/d": {3}, "e": {4}}
	to := files{"a": {1}}
	base := from.tree(t)
	b, _ := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
	if err := os.Chmod(filepath.Join(base.Name(), "b/d"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := exported(t, b, 0, base)
	var wrong *WrongBaseError
	if !asWrong(err, &wrong) || wrong.FirstDiff != "b/d" {
		t.Errorf("%v", err)
	}
	l := &listing{entries: []entry{{link: -1}}}
	for i := range 5000 {
		l.entries = append(l.entries, entry{path: fmt.Sprintf("f%04d", i), link: -1})
	}
	l.index()
	outline := l.outline()
	if len(outline) > 6+2*outlineGroups || l.firstDiff(outline) != "" {
		t.Errorf("%d bytes, difference %q", len(outline), l.firstDiff(outline))
	}
	l.entries[2500].uid = 7
	if got := l.firstDiff(outline); got != "f2499, or up to f2508" {
		t.Errorf("first difference: %q", got)
	}
	l.entries = l.entries[:20]
	if got := l.firstDiff(outline); got != "f0009, or up to f0018" && got != "what should follow f0018" {
		t.Errorf("cut: %q", got)
	}
	for i := range outline {
		l.firstDiff(outline[:i])
	}
	if err := Explain(t.Context(), reader(t, b), 0, bundle.BaseID{Version: "3"}, from.tree(t)); !asWrong(err, &wrong) || wrong.FirstDiff == "" {
		t.Error(err)
	}
}

func asWrong(err error, to **WrongBaseError) bool {
	w, ok := err.(*WrongBaseError)
	*to = w
	return ok
}

func reader(t *testing.T, b []byte) *bundle.Reader {
	br, err := bundle.NewReader(bytes.NewReader(b), nil)
	if err != nil {
		t.Fatal(err)
	}
	return br
}

// Payloads whose table makes no sense.
func TestBadParts(t *testing.T) {
	for name, head := range map[string][]byte{
		"no part":                payloadHead(nil),
		"a shared section first": payloadHead([]part{{kind: partShared, bases: 1}}),
		"the section of another": payloadHead([]part{{bases: 2}}),
		"a second section":       payloadHead([]part{{bases: 1}, {bases: 1}}),
		"an unknown kind":        payloadHead([]part{{bases: 1}, {kind: numPartKinds, bases: 1}}),
		"too large":              payloadHead([]part{{bases: 1, size: 1 << 62}}),
		"something left":         append(payloadHead([]part{{bases: 1}}), 1),
		"a short table":          {payloadParts, 2, 0},
		"version 3":              {3, 1},
	} {
		m := &bundle.Manifest{To: bundle.BaseID{Version: "2", Digest: strings.Repeat("0", 64)}}
		var out bytes.Buffer
		if _, err := bundle.Create(&out, m, bytes.NewReader(head), int64(len(head)), noSigner{}); err != nil {
			t.Fatal(err)
		}
		if _, err := openPayload(reader(t, out.Bytes()), 0); err == nil {
			t.Errorf("%s is taken", name)
		} else if err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}
