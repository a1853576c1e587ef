package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is a base, overlays and their union, driven without FUSE.
type world struct {
	t      *testing.T
	dir    string
	base   string
	u      *Union
	config Config
}

func sh(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// newWorld makes a base with a script and overlays with their claims
// ("name=path,path").
func newWorld(t *testing.T, script string, overlays ...string) *world {
	t.Helper()
	testenv.Root(t)
	w := &world{t: t, dir: testenv.Btrfs(t)}
	w.base = filepath.Join(w.dir, "base")
	testenv.Run(t, "btrfs", "-q", "subvolume", "create", w.base)
	sh(t, w.base, script)
	testenv.Run(t, "btrfs", "-q", "property", "set", w.base, "ro", "true")
	w.config.Base = openDir(t, w.base)
	for _, o := range overlays {
		name, paths, _ := strings.Cut(o, "=")
		dir := filepath.Join(w.dir, name)
		testenv.Run(t, "btrfs", "-q", "subvolume", "create", dir)
		w.config.Uppers = append(w.config.Uppers, Upper{Name: name, Dir: openDir(t, dir), Paths: strings.Split(paths, ",")})
	}
	u, err := New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.u = u
	t.Cleanup(func() {
		if w.u != nil {
			w.u.Close()
		}
	})
	return w
}

// find looks a path up; the lookups are never taken back.
func (w *world) find(path string) (*Node, error) {
	n := w.u.Root()
	var a Attr
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		k, err := w.u.Lookup(n, name, &a)
		if err != nil {
			return nil, err
		}
		n = k
	}
	return n, nil
}

func (w *world) must(path string) *Node {
	w.t.Helper()
	n, err := w.find(path)
	if err != nil {
		w.t.Fatalf("%s: %v", path, err)
	}
	return n
}

func (w *world) read(n *Node) string {
	w.t.Helper()
	buf := make([]byte, 1<<16)
	k, err := w.u.Read(n, buf, 0)
	if err != nil {
		w.t.Fatalf("read: %v", err)
	}
	return string(buf[:k])
}

func (w *world) write(n *Node, s string) {
	w.t.Helper()
	if _, err := w.u.Write(n, []byte(s), 0, 0); err != nil {
		w.t.Fatalf("write: %v", err)
	}
}

func (w *world) stat(n *Node) (a Attr) {
	w.t.Helper()
	if err := w.u.Getattr(n, &a); err != nil {
		w.t.Fatalf("getattr: %v", err)
	}
	return a
}

func (w *world) names(n *Node) string {
	w.t.Helper()
	var out []string
	if err := w.u.ReadDir(n, 0, func(e *Entry) bool {
		if e.Name != "." && e.Name != ".." {
			out = append(out, e.Name)
		}
		return true
	}); err != nil {
		w.t.Fatalf("readdir: %v", err)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (w *world) want(what, got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func (w *world) wantErr(what string, got, want error) {
	w.t.Helper()
	if !errors.Is(got, want) {
		w.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestCopyUpKeepsIdentity(t *testing.T) {
	w := newWorld(t, `mkdir -p a/b; echo old >a/b/f; chmod 640 a/b/f; chown 5:6 a/b/f; setfattr -n user.x -v y a/b/f; touch -d 2001-01-01 a/b/f a/b`, "sys=/")
	n := w.must("a/b/f")
	before, dir := w.stat(n), w.stat(w.must("a/b"))
	w.want("base", w.read(n), "old\n")
	w.write(n, "new\n")
	after := w.stat(n)
	w.want("copy", w.read(n), "new\n")
	if after.Ino != before.Ino || after.Mode != before.Mode || after.Uid != 5 || after.Gid != 6 {
		t.Errorf("attributes changed: %+v, before %+v", after, before)
	}
	var v [8]byte
	k, err := w.u.Getxattr(n, "user.x", v[:])
	w.want("xattr", fmt.Sprint(string(v[:k]), err), "y<nil>")
	if d := w.stat(w.must("a/b")); d.Mtime != dir.Mtime || d.Ino != dir.Ino {
		t.Errorf("the directory shows the copy: %+v, before %+v", d, dir)
	}
	if m := w.must("a/b/f"); m != n {
		t.Error("another node after copy up")
	}
	var birth Attr
	if err := w.u.Birth(n, &birth); err != nil || birth.Btime != before.Btime {
		t.Errorf("born %v (%v), before %v", birth.Btime, err, before.Btime)
	}
	// Again, as a new process sees it.
	w.u.Close()
	w.u, _ = New(w.config)
	if a := w.stat(w.must("a/b/f")); a.Ino != before.Ino {
		t.Errorf("inode number %d after a restart, before %d", a.Ino, before.Ino)
	}
	w.want("the base", sh(t, w.base, "cat a/b/f"), "old")
}

func TestHardLinksOfTheBase(t *testing.T) {
	w := newWorld(t, `mkdir -p in/d out; echo x >in/a; ln in/a in/d/b; ln in/a out/c; ln in/a in/gone`, "sys=/in")
	a, b := w.must("in/a"), w.must("in/d/b")
	if a != b {
		t.Error("two names of one file are two nodes")
	}
	if err := w.u.Unlink(w.must("in"), "gone"); err != nil {
		t.Fatal(err)
	}
	if st := w.stat(b); st.Nlink != 2 {
		t.Errorf("%d links after one of three in the claim was removed", st.Nlink)
	}
	w.write(b, "y")
	w.want("other name", w.read(w.must("in/a")), "y\n")
	w.want("links in the upper", sh(t, w.dir, "stat -c %h sys/upper/in/a sys/upper/in/d/b | xargs"), "2 2")
}

func TestRenameOfMergedDirectory(t *testing.T) {
	w := newWorld(t, `mkdir -p d/sub/deep e; for i in 1 2 3; do echo $i >d/f$i; echo $i >d/sub/deep/g$i; done; ln -s f1 d/link; echo e >e/x`, "sys=/")
	root := w.u.Root()
	sub := w.must("d/sub")
	ino := w.stat(sub).Ino
	var a Attr
	if _, err := w.u.Create(sub, "new", &Spec{Mode: 0o644}, true, &a); err != nil {
		t.Fatal(err)
	}
	if err := w.u.Unlink(w.must("d/sub/deep"), "g2"); err != nil {
		t.Fatal(err)
	}
	if err := w.u.Rename(root, "d", w.must("e"), "moved", 0); err != nil {
		t.Fatal(err)
	}
	_, err := w.find("d")
	w.wantErr("old name", err, unix.ENOENT)
	w.want("new name", w.names(w.must("e/moved")), "f1 f2 f3 link sub")
	w.want("below", w.names(w.must("e/moved/sub/deep")), "g1 g3")
	if w.must("e/moved/sub") != sub || w.stat(sub).Ino != ino {
		t.Error("a directory below changed its identity")
	}
	if err := w.u.Rename(root, "e", root, "x", unix.RENAME_NOREPLACE); err != nil {
		t.Fatal(err)
	}
	// A directory made anew where one was moved away shows nothing of the base.
	if _, err := w.u.Mkdir(root, "d", &Spec{Mode: 0o755}, &a); err != nil {
		t.Fatal(err)
	}
	w.want("made anew", w.names(w.must("d")), "")
	w.u.Close()
	w.u, _ = New(w.config)
	w.want("made anew, after a restart", w.names(w.must("d")), "")
	w.want("moved, after a restart", w.names(w.must("x/moved/sub/deep")), "g1 g3")
	if got := w.stat(w.must("x/moved/sub")).Ino; got != ino {
		t.Errorf("inode number %d after a restart, before %d", got, ino)
	}
}

func TestClaims(t *testing.T) {
	w := newWorld(t, `mkdir -p var/lib home/u; echo b >home/u/f; echo ro >var/ro`,
		"data=/var/lib/app/db,/home", "one=/home/u", "etc=/etc/x")
	w.want("a claim that the base lacks", w.names(w.must("var/lib")), "app")
	w.want("root", w.names(w.u.Root()), "etc home var")
	var a Attr
	mk := func(path string) error {
		_, err := w.u.Create(w.must(filepath.Dir(path)), filepath.Base(path), &Spec{Mode: 0o644}, true, &a)
		return err
	}
	w.wantErr("unclaimed", mk("var/new"), unix.EROFS)
	w.wantErr("what leads to a claim", mk("var/lib/app/new"), unix.EROFS)
	w.wantErr("claimed", mk("var/lib/app/db/new"), nil)
	w.wantErr("claimed", mk("home/h"), nil)
	w.wantErr("claimed inside", mk("home/u/n"), nil)
	w.want("longest claim", sh(t, w.dir, "ls one/upper/home/u data/upper/home"), "data/upper/home:\nh\n\none/upper/home/u:\nn")
	_, err := w.u.Write(w.must("var/ro"), []byte("x"), 0, 0)
	w.wantErr("write unclaimed", err, unix.EROFS)
	w.wantErr("rename across", w.u.Rename(w.must("home"), "h", w.must("home/u"), "h", 0), unix.EXDEV)
	w.wantErr("link across", w.u.Link(w.must("home/h"), w.must("home/u"), "h", &a), unix.EXDEV)
	w.wantErr("remove a claim", w.u.Rmdir(w.must("home"), "u"), unix.EBUSY)
	w.wantErr("rename a claim", w.u.Rename(w.must("home"), "u", w.must("home"), "v", 0), unix.EBUSY)
	w.wantErr("rename above a claim", w.u.Rename(w.must("var"), "lib", w.must("var"), "l", 0), unix.EBUSY)
	for _, bad := range []Config{
		{},
		{Base: w.config.Base, Uppers: []Upper{w.config.Uppers[0], {Name: "two", Dir: w.config.Uppers[1].Dir, Paths: []string{"/home/"}}}},
		{Base: w.config.Base, Uppers: []Upper{{Name: "dots", Dir: w.config.Uppers[0].Dir, Paths: []string{"/a/../b"}}}},
	} {
		var e *ConfigError
		if _, err := New(bad); !errors.As(err, &e) {
			t.Errorf("New(%v): %v", bad, err)
		}
	}
}

func TestDeletedWhileOpen(t *testing.T) {
	w := newWorld(t, `echo low >low; echo both >both`, "sys=/")
	root := w.u.Root()
	var a Attr
	up, err := w.u.Create(root, "up", &Spec{Mode: 0o644}, true, &a)
	if err != nil {
		t.Fatal(err)
	}
	w.write(up, "up")
	low, both := w.must("low"), w.must("both")
	w.write(both, "BOTH")
	for name, n := range map[string]*Node{"up": up, "low": low, "both": both} {
		if err := w.u.Unlink(root, name); err != nil {
			t.Fatal(name, err)
		}
		if st := w.stat(n); st.Nlink != 0 {
			t.Errorf("%s: %d links", name, st.Nlink)
		}
	}
	w.want("upper", w.read(up), "up")
	w.want("lower", w.read(low), "low\n")
	w.write(low, "LOW")
	w.want("lower, written", w.read(low), "LOW\n")
	w.want("copied up", w.read(both), "BOTH\n")
	w.want("names", w.names(root), "")
	w.want("the base", sh(t, w.base, "cat low"), "low")
	if c := w.u.Counts(); c.Pinned != 3 {
		t.Errorf("%d descriptors pinned, want 3", c.Pinned)
	}
	for _, n := range []*Node{up, both} {
		w.u.Forget(n, 1)
	}
	w.u.Forget(low, 1)
	if c := w.u.Counts(); c.Pinned != 0 || c.Detached != 0 {
		t.Errorf("after forget: %+v", c)
	}
}

func TestReaddirWhileCopyingUp(t *testing.T) {
	w := newWorld(t, `mkdir d; for i in $(seq 100); do echo $i >d/f$i; done`, "sys=/")
	d := w.must("d")
	seen := map[string]int{}
	for cookie, i := uint64(0), 0; ; i++ {
		got := 0
		err := w.u.ReadDir(d, cookie, func(e *Entry) bool {
			if got++; got > 7 {
				return false
			}
			seen[e.Name]++
			cookie = e.Cookie
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if got == 0 {
			break
		}
		// Copy some up, remove some, add some, and let the list be forgotten.
		w.write(w.must(fmt.Sprintf("d/f%d", 1+i*5%100)), "x")
		var a Attr
		if i < 10 {
			w.u.Create(d, fmt.Sprintf("new%d", i), &Spec{Mode: 0o644}, true, &a)
		}
		d.ext.listing = nil
	}
	for i := range 100 {
		if k := seen[fmt.Sprintf("f%d", i+1)]; k != 1 {
			t.Errorf("f%d was given %d times", i+1, k)
		}
	}
	for name, k := range seen {
		if k != 1 {
			t.Errorf("%s was given %d times", name, k)
		}
	}
}

func TestPathsLongerThanPathMax(t *testing.T) {
	w := newWorld(t, `:`, "sys=/")
	name := strings.Repeat("n", 250)
	n := w.u.Root()
	var a Attr
	for range 40 {
		k, err := w.u.Mkdir(n, name, &Spec{Mode: 0o755}, &a)
		if err != nil {
			t.Fatal(err)
		}
		n = k
	}
	f, err := w.u.Create(n, "f", &Spec{Mode: 0o644}, true, &a)
	if err != nil {
		t.Fatal(err)
	}
	w.write(f, "deep")
	w.u.SetMaxFDs(16)
	w.u.fds.sweep(func(*handle) bool { return false })
	w.want("content", w.read(f), "deep")
	// By path, as a detached node opens its object.
	p := pathOf(f)
	fd, err := w.u.cur.uppers[0].open(p, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatalf("path of %d bytes: %v", len(p), err)
	}
	unix.Close(fd)
}

func TestDescriptorsAreBounded(t *testing.T) {
	w := newWorld(t, `for d in $(seq 30); do mkdir d$d; for f in $(seq 10); do echo $d.$f >d$d/f$f; done; done`, "sys=/")
	w.u.SetMaxFDs(20)
	for range 2 {
		for d := range 30 {
			for f := range 10 {
				w.want("content", w.read(w.must(fmt.Sprintf("d%d/f%d", d+1, f+1))), fmt.Sprintf("%d.%d\n", d+1, f+1))
			}
		}
	}
	if c := w.u.Counts(); c.FDs > 20+2 {
		t.Errorf("%d descriptors open, 20 allowed", c.FDs)
	}
}

// A node, with its name and its place in the tables, may take 400 bytes.
func TestMemoryOfANode(t *testing.T) {
	const files = 20000
	w := newWorld(t, fmt.Sprintf(`python3 -c "
import os
for d in range(20):
    os.mkdir('d%%d'%%d)
    for i in range(%d): os.close(os.open('d%%d/file-name-%%05d'%%(d,i), os.O_CREAT|os.O_WRONLY))"`, files/20), "sys=/")
	measure := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := measure()
	for d := range 20 {
		for i := range files / 20 {
			w.must(fmt.Sprintf("d%d/file-name-%05d", d, i))
		}
	}
	per := (measure() - before) / files
	t.Logf("%d bytes a node", per)
	if per > 400 {
		t.Errorf("%d bytes a node, at most 400 are allowed", per)
	}
	runtime.KeepAlive(w)
}

func TestUsersOwnOverlayXattrs(t *testing.T) {
	w := newWorld(t, `echo >f`, "sys=/")
	n := w.must("f")
	if err := w.u.Setxattr(n, "trusted.overlay.opaque", []byte("y"), 0, false); err != nil {
		t.Fatal(err)
	}
	names, err := w.u.Listxattr(n)
	w.want("names", fmt.Sprint(names, err), "[trusted.overlay.opaque] <nil>")
	w.want("in the upper", sh(t, w.dir, "getfattr -m trusted.overlay.overlay --only-values -d sys/upper/f"), "y")
	_, err = w.u.Mknod(w.u.Root(), "wh", &Spec{Mode: unix.S_IFCHR | 0o600}, &Attr{})
	w.wantErr("mknod c 0 0", err, unix.EPERM)
}

func TestWorkOfDeadProcessesIsSwept(t *testing.T) {
	w := newWorld(t, `:`, "sys=/")
	work := filepath.Join(w.dir, "sys", "work")
	if err := os.MkdirAll(filepath.Join(work, workPrefix+"1.x", "t", "u"), 0o755); err != nil {
		t.Fatal(err)
	}
	u, err := New(w.config) // a second view of the same overlay: the first one's stays
	if err != nil {
		t.Fatal(err)
	}
	w.want("work", sh(t, work, "ls | wc -l"), "2")
	u.Close()
	w.u.Close()
	w.u = nil
	w.want("work", sh(t, work, "ls"), "")
}

func TestFreezeHoldsChangesBack(t *testing.T) {
	w := newWorld(t, `echo >f`, "sys=/")
	n := w.must("f")
	if err := w.u.Freeze(context.Background()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := w.u.Write(n, []byte("x"), 0, 0)
		done <- err
	}()
	w.want("read while frozen", w.read(n), "\n")
	select {
	case <-done:
		t.Error("a write went on while frozen")
	default:
	}
	w.u.Thaw()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A freeze that is given up leaves nothing locked.
	w.u.gate.RLock()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.u.Freeze(ctx); err == nil {
		t.Error("frozen in spite of a change under way")
	}
	w.u.gate.RUnlock()
	w.write(n, "y")
}
