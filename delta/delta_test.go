package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// A builder makes trees for tests.
type builder struct {
	t    testing.TB
	root string
}

func (b builder) path(p string) string { return filepath.Join(b.root, p) }

func (b builder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

var epoch = time.Unix(1700000000, 123456789)

func (b builder) file(p string, data []byte) {
	b.t.Helper()
	b.must(os.MkdirAll(filepath.Dir(b.path(p)), 0o755))
	b.must(os.WriteFile(b.path(p), data, 0o644))
	b.must(os.Chtimes(b.path(p), epoch, epoch))
}

func words(seed int64, n int) []byte {
	r := rand.New(rand.NewSource(seed))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "word%d %x\n", r.Intn(500), r.Intn(1<<20))
	}
	return b.Bytes()[:n]
}

func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

func edit(b []byte, at int, insert string) []byte {
	return append(append(bytes.Clone(b[:at]), insert...), b[at:]...)
}

// zip compresses as Debian's packages do.
func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	cmd := exec.Command(testenv.Command(t, "gzip"), "-9nc")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// archive packs files of a tree as an initrd does.
func archive(b builder, names ...string) []byte {
	b.t.Helper()
	cmd := exec.Command(testenv.Command(b.t, "cpio"), "-o", "-H", "newc", "--quiet")
	cmd.Dir, cmd.Stdin = b.root, strings.NewReader(strings.Join(names, "\n")+"\n")
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// oldTree and newTree differ in every way that trees can differ.
func oldTree(b builder) {
	lib := words(1, 300000)
	b.file("usr/lib/libfoo.so.1.2.3", lib)
	b.file("usr/lib/modules/6.1.0-50/a.ko", object(3, 0))
	b.file("usr/lib/modules/6.1.0-50/b.ko", object(4, 0))
	b.file("usr/bin/same", noise(2, 100000))
	b.file("usr/bin/moved-away", noise(3, 70000))
	b.file("usr/bin/suid", noise(4, 5000))
	b.must(os.Chmod(b.path("usr/bin/suid"), unix.S_ISUID|0o755))
	b.must(os.Chmod(b.path("usr/bin/suid"), os.ModeSetuid|0o755))
	b.file("usr/share/doc/changelog.gz", zip(b.t, words(5, 60000)))
	b.file("usr/bin/alpha", words(11, 50000))
	b.file("etc/touched", []byte("touched"))
	b.file("etc/becomes-dir", []byte("x"))
	b.file("etc/becomes-link", []byte("y"))
	b.file("etc/dir/gone", []byte("z"))
	b.file("etc/empty", nil)
	b.file("etc/grows", words(6, 5000))
	b.file("var/big", noise(7, 1100<<10))
	b.must(os.Symlink("same", b.path("usr/bin/link")))
	b.must(os.Link(b.path("usr/bin/same"), b.path("usr/bin/hard1")))
	b.must(os.Link(b.path("usr/bin/same"), b.path("usr/bin/hard2")))
	b.must(unix.Mknod(b.path("etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	b.must(unix.Mkfifo(b.path("etc/fifo"), 0o600))
	b.must(unix.Setxattr(b.path("usr/bin/suid"), "user.note", []byte("old"), 0))
	b.must(unix.Setxattr(b.path("etc"), "user.dir", []byte("dir"), 0))
	for _, name := range []string{"usr/bin/ping", "usr/bin/ping4"} {
		b.file(name, noise(12, 5000))
		b.must(unix.Setxattr(b.path(name), "security.capability", capability, 0))
	}
}

// capability is cap_net_raw=ep as security.capability holds it.
var capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func newTree(b builder) {
	lib := words(1, 300000)
	b.file("usr/lib/libfoo.so.1.2.4", edit(lib, 100000, "something new"))
	b.file("usr/lib/modules/6.1.0-56/a.ko", object(3, 40))
	b.file("usr/lib/modules/6.1.0-56/b.ko", object(4, 24))
	b.file("usr/bin/same", noise(2, 100000))
	b.file("usr/libexec/moved", noise(3, 70000))
	b.file("usr/libexec/copy-of-new", edit(lib, 100000, "something new"))
	b.file("usr/bin/suid", edit(noise(4, 5000), 4000, "!"))
	b.must(os.Chmod(b.path("usr/bin/suid"), os.ModeSetuid|0o711))
	b.file("usr/share/doc/changelog.gz", zip(b.t, edit(words(5, 60000), 300, "new entry")))
	b.file("usr/sbin/renamed-and-edited", edit(words(11, 50000), 20000, "edited"))
	b.file("etc/touched", []byte("touched"))
	b.must(os.Chtimes(b.path("etc/touched"), epoch, epoch.Add(1e9)))
	b.file("etc/becomes-dir/inside", []byte("x"))
	b.must(os.Symlink("../etc", b.path("etc/becomes-link")))
	b.file("etc/dir-new", nil)
	b.must(os.MkdirAll(b.path("etc/dir"), 0o755))
	b.file("etc/empty", nil)
	b.file("etc/grows", append(words(6, 5000), words(8, 200000)...))
	big := noise(7, 1100<<10)
	copy(big[600<<10:], "changed in the middle")
	b.file("var/big", big)
	b.file("boot/initrd.img", zip(b.t, archive(b, "var/big", "etc/grows", "etc/touched")))
	b.file("var/fresh", words(9, 40000))
	b.file("var/random", noise(10, 20000))
	b.must(os.Symlink("suid", b.path("usr/bin/link")))
	b.must(os.Link(b.path("usr/bin/same"), b.path("usr/bin/hard1")))
	b.file("usr/bin/hard2", noise(2, 100000)) // alone now
	b.must(os.Link(b.path("etc/grows"), b.path("etc/grows-too")))
	b.must(unix.Mknod(b.path("etc/null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	b.must(unix.Mknod(b.path("etc/fifo"), unix.S_IFSOCK|0o600, 0))
	b.must(unix.Setxattr(b.path("usr/bin/suid"), "security.capability",
		[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	b.file("usr/bin/ping", edit(noise(12, 5000), 10, "loses its capability"))
	b.file("usr/bin/ping4", noise(12, 5000))
	b.must(os.Lchown(b.path("usr/bin/ping4"), 12, 34))
	b.must(os.Lchown(b.path("usr/bin/link"), 12, 34))
	b.must(os.Chtimes(b.path("usr"), epoch, epoch))
}

// pair makes the two trees as subvolumes (on btrfs) or directories.
type pair struct {
	dir      string
	old, new *os.File
	key      *bundle.PrivateKey
	keys     *bundle.Keyring
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func newPair(t testing.TB, onBtrfs bool) *pair {
	t.Helper()
	testenv.Root(t)
	p := &pair{}
	if onBtrfs {
		p.dir = testenv.Btrfs(t)
	} else {
		p.dir = testenv.Dir(t)
	}
	for name, fill := range map[string]func(builder){"old": oldTree, "new": newTree} {
		root := filepath.Join(p.dir, name)
		if onBtrfs {
			if err := btrfs.CreateSubvolume(open(t, p.dir), name); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		fill(builder{t, root})
	}
	p.old, p.new = open(t, filepath.Join(p.dir, "old")), open(t, filepath.Join(p.dir, "new"))
	name := filepath.Join(t.TempDir(), "k")
	if _, err := bundle.GenerateKey(name, ""); err != nil {
		t.Fatal(err)
	}
	var err error
	if p.key, err = bundle.ReadPrivateKey(name+".key", ""); err != nil {
		t.Fatal(err)
	}
	p.keys = &bundle.Keyring{}
	if err := p.keys.AddFile(name + ".pub"); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) make(t testing.TB, change func(*MakeOptions)) (*Report, []byte) {
	t.Helper()
	o := MakeOptions{From: []Tree{{Version: "1", Root: p.old}}, To: Tree{Version: "2", Root: p.new}, Sign: p.key, Jobs: 2, Counter: 3}
	if change != nil {
		change(&o)
	}
	var out bytes.Buffer
	r, err := Make(context.Background(), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	return r, out.Bytes()
}

// stage makes what Apply writes to.
func (p *pair) stage(t testing.TB, name string, onBtrfs, full bool) *os.File {
	t.Helper()
	path := filepath.Join(p.dir, name)
	var err error
	switch {
	case onBtrfs && full:
		err = btrfs.CreateSubvolume(open(t, p.dir), name)
	case onBtrfs:
		err = btrfs.Snapshot(open(t, p.dir), name, p.old, false)
	default:
		if err = os.Mkdir(path, 0o755); err == nil && !full {
			_, err = tree.Copy(context.Background(), open(t, path), p.old, tree.CopyOptions{})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

func (p *pair) apply(t testing.TB, b []byte, base, stage *os.File) (*Result, error) {
	t.Helper()
	br, err := bundle.NewReader(bytes.NewReader(b), p.keys)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return Apply(ctx, br, base, stage, ApplyOptions{Jobs: 2})
}

func digest(t testing.TB, f *os.File) string {
	t.Helper()
	s, _, err := tree.Digest(context.Background(), f, tree.DigestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.String()
}

func explain(t testing.TB, a, b *os.File) {
	t.Helper()
	tree.Diff(context.Background(), a, b, func(path string, k tree.Kind) error {
		t.Logf("%s: %v", path, k)
		return nil
	})
}

func TestRoundTrip(t *testing.T) {
	for _, onBtrfs := range []bool{true, false} {
		t.Run(fmt.Sprintf("btrfs=%v", onBtrfs), func(t *testing.T) {
			p := newPair(t, onBtrfs)
			for i, c := range []Compression{Best, Fast} {
				var scratch *os.File
				if onBtrfs {
					scratch = open(t, p.dir)
				}
				report, b := p.make(t, func(o *MakeOptions) { o.Compression, o.Scratch = c, scratch })
				methods := map[string]int{}
				for _, f := range report.Files {
					methods[f.Method]++
					if f.Path == "usr/sbin/renamed-and-edited" && (f.Source != "usr/bin/alpha" || f.Bytes > 200) {
						t.Errorf("%+v", f)
					}
					if f.Path == "boot/initrd.img" && (f.Method != "recompress" || f.Bytes > 5000) {
						t.Errorf("%+v", f)
					}
				}
				for _, m := range []string{"copy", "patch", "whole", "object", "recompress", "empty"} {
					if methods[m] == 0 {
						t.Errorf("no file by method %q: %v", m, methods)
					}
				}
				for _, full := range []bool{false, true} {
					if full {
						_, b = p.make(t, func(o *MakeOptions) { o.Compression, o.From, o.Scratch = c, nil, scratch })
					}
					stage := p.stage(t, fmt.Sprintf("stage%d%v", i, full), onBtrfs, full)
					base := p.old
					if full {
						base = nil
					}
					res, err := p.apply(t, b, base, stage)
					if err != nil {
						t.Fatal(err)
					}
					if digest(t, stage) != digest(t, p.new) {
						explain(t, p.new, stage)
						t.Fatalf("%s, full %v: the tree came out differently", c, full)
					}
					if !full {
						compareChanged(t, p, res.Changed)
					}
				}
			}
		})
	}
}

// compareChanged checks the paths that Apply says it changed: all that differ, and
// no others than rewritten hard links.
func compareChanged(t *testing.T, p *pair, changed []string) {
	t.Helper()
	got, seen := map[string]bool{}, map[string]bool{}
	for _, c := range changed {
		got[c] = true
	}
	err := tree.Diff(context.Background(), p.old, p.new, func(path string, k tree.Kind) error {
		if !got[path] {
			t.Errorf("%s (%v) is not among the changed paths", path, k)
		}
		seen[path] = true // twice where the type changed
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for c := range got {
		if !seen[c] && !strings.HasPrefix(c, "usr/bin/hard") && !strings.HasPrefix(c, "etc/grows") {
			t.Errorf("%s is said to be changed", c)
		}
	}
}

func TestExportStream(t *testing.T) {
	p := newPair(t, true)
	testenv.Command(t, "btrfs")
	info, err := btrfs.SubvolumeInfo(p.old)
	if err != nil {
		t.Fatal(err)
	}
	if err := btrfs.SetReadOnly(p.old, true); err != nil {
		t.Fatal(err)
	}
	if info, err = btrfs.SubvolumeInfo(p.old); err != nil {
		t.Fatal(err)
	}
	for _, full := range []bool{false, true} {
		_, b := p.make(t, func(o *MakeOptions) {
			if full {
				o.From = nil
			}
		})
		br, err := bundle.NewReader(bytes.NewReader(b), p.keys)
		if err != nil {
			t.Fatal(err)
		}
		base := p.old
		if full {
			base = nil
		}
		name := fmt.Sprintf("received-%v", full)
		file := filepath.Join(t.TempDir(), "stream")
		out, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := ExportStream(context.Background(), br, base, out, ExportOptions{Name: name, Parent: Parent{UUID: info.UUID, CTransID: info.CTransID}}); err != nil {
			t.Fatal(err)
		}
		out.Close()
		testenv.Run(t, "btrfs", "receive", "-q", "-f", file, p.dir)
		got := open(t, filepath.Join(p.dir, name))
		if digest(t, got) != digest(t, p.new) {
			explain(t, p.new, got)
			t.Fatalf("full %v: the received tree is another", full)
		}
	}
}

func TestWrongBase(t *testing.T) {
	p := newPair(t, false)
	_, b := p.make(t, nil)
	stage := p.stage(t, "stage", false, false)
	before := digest(t, stage)
	var wrong *WrongBaseError
	if _, err := p.apply(t, b, p.new, stage); !errors.As(err, &wrong) {
		t.Errorf("another tree as base: %v", err)
	}
	br, err := bundle.NewReader(bytes.NewReader(b), p.keys)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Apply(context.Background(), br, p.old, stage, ApplyOptions{BaseDigest: strings.Repeat("0", 64), BaseVersion: "0"})
	if !errors.As(err, &wrong) || len(wrong.Have) != 1 || wrong.Want[0].Version != "1" {
		t.Errorf("another digest: %v", err)
	}
	if digest(t, stage) != before {
		t.Error("something was written")
	}
}

// A file of the base whose content rotted while its attributes stayed.
func TestRottenSource(t *testing.T) {
	p := newPair(t, false)
	_, b := p.make(t, nil)
	for _, name := range []string{"usr/lib/libfoo.so.1.2.3", "usr/bin/moved-away", "usr/lib/modules/6.1.0-50/a.ko"} {
		path := filepath.Join(p.dir, "old", name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)/3] ^= 1
		builder{t, filepath.Join(p.dir, "old")}.file(name, bad)
		stage := p.stage(t, "stage-"+filepath.Base(name), false, false)
		_, err = p.apply(t, b, p.old, stage)
		var source *SourceError
		if !errors.As(err, &source) || source.Path != name {
			t.Errorf("%s: %v", name, err)
		}
		builder{t, filepath.Join(p.dir, "old")}.file(name, good)
	}
}

// A bundle cut anywhere, or damaged behind the signature check, never ends well.
func TestCutBundle(t *testing.T) {
	p := newPair(t, false)
	_, b := p.make(t, nil)
	for i := range 8 {
		stage := p.stage(t, fmt.Sprintf("cut%d", i), false, false)
		if _, err := p.apply(t, b[:len(b)*i/8], p.old, stage); err == nil {
			t.Errorf("cut at %d of 8: no error", i)
		}
	}
}

func copyTree(t testing.TB, dst string, src *os.File) {
	t.Helper()
	if _, err := tree.Copy(context.Background(), open(t, dst), src, tree.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
}
