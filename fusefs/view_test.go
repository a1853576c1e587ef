package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// A process that uses the view is a child or this process; only the server must
// not use its own mount.

func mustOpen(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Pread(int(f.Fd()), b, 0)
	if err != nil {
		t.Fatalf("read %s: %v", f.Name(), err)
	}
	return string(b[:n])
}

func wantIs(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestDescriptorsSeeLaterWrites(t *testing.T) {
	p := newPool(t)
	s := p.mount(layers{Base: p.base("", `echo old >f; echo x >shared`), Uppers: []upperDir{p.upper("sys", "/")}})
	before := mustOpen(t, s.mnt+"/f", unix.O_RDONLY)
	wantIs(t, "before", readAll(t, before), "old\n")
	m, err := unix.Mmap(int(before.Fd()), 0, 4, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	s.eq("echo new >f", "")
	wantIs(t, "descriptor from before the copy up", readAll(t, before), "new\n")
	wantIs(t, "mapping from before the copy up", string(m), "new\n")
	s.eq("rm f; echo other >f; cat f", "other")
	wantIs(t, "deleted", readAll(t, before), "new\n")
	var st unix.Stat_t
	if err := unix.Fstat(int(before.Fd()), &st); err != nil || st.Nlink != 0 {
		t.Errorf("deleted: %v, %d links", err, st.Nlink)
	}
}

// dump prints all that a tree shows but times of directories.
const dump = `find . -mindepth 1 ! -type d -printf '%P %y %m %U:%G %n %s %T@ %l\n' -o -mindepth 1 -printf '%P %y %m %U:%G\n' | sort
find . -type f | sort | xargs -r sha256sum; getfattr -R -h -d -m - . 2>/dev/null | grep -v '^trusted.overlay' ; getfacl -R -p . 2>/dev/null`

func TestKernelOverlayfsShowsTheSame(t *testing.T) {
	testenv.Root(t)
	p := newPool(t)
	// Kernel overlayfs gives its root the number of upper/, 257; a directory of the
	// base with that number would look like a loop.
	base := p.base("", "touch x; rm x; "+smallBase+`; mkdir -p home/u/d; setfacl -m u:7:rw home/u; for i in 1 2 3; do echo $i >home/u/d/$i; done; ln home/u/d/1 home/link`)
	up, home := p.upper("sys", "/"), p.upper("home", "/home/u", "/srv/new")
	s := p.mount(layers{Base: base, Uppers: []upperDir{up, home}})
	p.sh(s.mnt, `echo changed >etc/a; mv etc/d etc/e; mkdir etc/d; echo fresh >etc/d/x; rm -r big; mkdir big; echo again >big/f1
chmod 600 etc/b2; ln etc/e/x usr/hard; mkdir -m 2775 grp; chgrp 9 grp; mkdir grp/sub; touch grp/sub/f; setfacl -d -m u:8:r grp; touch grp/acl
rm etc/null; mknod etc/null c 1 5; mkfifo p; ln -s nowhere s; setfattr -n user.n -v w grp ; setfattr -n security.x -v w etc/b
mv usr/bin/prog usr/bin/prog2; truncate -s 10M sparse; rm etc/l; mkdir etc/l; mv etc/e big/e; rmdir etc/d 2>/dev/null || true
cd home/u; mv d d2; rm d2/2; mkdir d; echo z >d/3; cd ../../srv/new; echo new >n; ln n m`)
	view := p.sh(s.mnt, "rm -f home/x; find etc big grp usr p s sparse -mindepth 0 >/dev/null; "+`( cd . && `+strings.ReplaceAll(dump, "find .", "find . -path ./home -prune -o -path ./srv -prune -o")+` ) | grep -v '^# file: ./home\|^# file: ./srv' | sed -n '1,$p'`)
	inner := p.sh(s.mnt+"/home/u", dump)
	s.stop()

	ovl := func(lower, upper, work string) string {
		mnt := testenv.Dir(t)
		testenv.Run(t, "mount", "-t", "overlay", "overlay", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work), mnt)
		return mnt
	}
	whole := ovl(base, up.Dir+"/upper", up.Dir+"/work")
	kernel := p.sh(whole, `( cd . && `+strings.ReplaceAll(dump, "find .", "find . -path ./home -prune -o -path ./srv -prune -o")+` ) | grep -v '^# file: ./home\|^# file: ./srv' | sed -n '1,$p'`)
	diffText(t, "whole view", view, kernel, `srv`)
	claim := ovl(base+"/home/u", home.Dir+"/upper/home/u", home.Dir+"/work")
	diffText(t, "claim", inner, p.sh(claim, dump), "")
}

// diffText compares two dumps line by line; lines that contain skip are left out.
func diffText(t *testing.T, what, got, want, skip string) {
	t.Helper()
	lines := func(s string) map[string]bool {
		m := map[string]bool{}
		for l := range strings.Lines(s) {
			if skip == "" || !strings.Contains(l, skip) {
				m[l] = true
			}
		}
		return m
	}
	a, b := lines(got), lines(want)
	for l := range a {
		if !b[l] {
			t.Errorf("%s: only the view has %s", what, l)
		}
	}
	for l := range b {
		if !a[l] {
			t.Errorf("%s: missing from the view: %s", what, l)
		}
	}
	if len(a) < 10 {
		t.Errorf("%s: only %d lines to compare", what, len(a))
	}
}

// How many requests an operation may cause: latency is made of these. Two are the
// kernel's own: each change of a directory makes it ask for the directory's
// attributes before the next use, and after each change of attributes the next
// write asks for security.capability.
func TestRequestsPerOperation(t *testing.T) {
	p := newPool(t)
	s := p.mount(layers{Base: p.base("", `mkdir d; echo x >d/f; echo y >d/g; mkdir many; for i in $(seq 40); do echo $i >many/f$i; done`), Uppers: []upperDir{p.upper("sys", "/")}})
	path := func(p string) string { return filepath.Join(s.mnt, p) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	openClose := func(name string, flags int, data string) {
		fd, err := unix.Open(path(name), flags, 0o644)
		check(err)
		if data != "" {
			_, err = unix.Write(fd, []byte(data))
			check(err)
		}
		check(unix.Close(fd))
	}
	stat := func(name string) error {
		var st unix.Stat_t
		return unix.Lstat(path(name), &st)
	}
	// Let the kernel learn what it learns once.
	openClose("d/warm", unix.O_CREAT|unix.O_WRONLY, "x")
	check(unix.Unlink(path("d/warm")))
	check(stat("d/f"))
	check(stat("d/g"))
	for _, c := range []struct {
		what string
		max  uint64
		do   func()
	}{
		{"create, write, close", 4, func() { openClose("d/new", unix.O_CREAT|unix.O_WRONLY, "x") }},
		{"create, write, close after another change there", 5, func() { openClose("d/again", unix.O_CREAT|unix.O_WRONLY, "x") }},
		{"create, close", 3, func() { openClose("d/empty", unix.O_CREAT|unix.O_WRONLY, "") }},
		{"rewrite with O_TRUNC", 4, func() { openClose("d/new", unix.O_TRUNC|unix.O_WRONLY, "y") }},
		{"overwrite", 1, func() { openClose("d/new", unix.O_WRONLY, "z") }},
		{"first write to a file of the base", 2, func() { openClose("d/f", unix.O_WRONLY, "z") }},
		{"open and close", 0, func() { openClose("d/g", unix.O_RDONLY, "") }},
		{"stat", 0, func() { check(stat("d/g")) }},
		{"look up in vain", 1, func() { stat("d/none") }},
		{"look up in vain again", 0, func() { stat("d/none") }},
		{"rename to a new name", 2, func() { check(unix.Rename(path("d/new"), path("d/moved"))) }},
		{"rename over", 3, func() { check(unix.Rename(path("d/moved"), path("d/empty"))) }},
		{"link", 3, func() { check(unix.Link(path("d/empty"), path("d/link"))) }},
		{"unlink", 2, func() { check(unix.Unlink(path("d/link"))) }},
		{"mkdir", 3, func() { check(unix.Mkdir(path("d/sub"), 0o755)) }},
		{"rmdir", 2, func() { check(unix.Rmdir(path("d/sub"))) }},
		{"symlink", 3, func() { check(unix.Symlink("x", path("d/sym"))) }},
		{"chmod", 2, func() { check(unix.Chmod(path("d/g"), 0o600)) }},
		{"list and stat 40 files", 3, func() { os.ReadDir(path("many")); stat("many/f1"); stat("many/f40") }},
		{"list again", 0, func() { os.ReadDir(path("many")) }},
	} {
		m := s.requests(c.do)
		delete(m, "forget")
		total := uint64(0)
		for _, k := range m {
			total += k
		}
		if total > c.max {
			t.Errorf("%s: %d requests %v, at most %d are allowed", c.what, total, m, c.max)
		}
	}
}

func TestDeadMountIsReplaced(t *testing.T) {
	p := newPool(t)
	l := layers{Base: p.base("", `echo x >f`), Uppers: []upperDir{p.upper("sys", "/")}}
	a := p.mount(l)
	b := startServer(t)
	if _, err := b.try(request{Op: "mount", Mountpoint: a.mnt, Layers: l}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second mount: %v", err)
	}
	a.cmd.Process.Kill()
	a.cmd.Wait()
	b.call(request{Op: "mount", Mountpoint: a.mnt, Layers: l})
	b.mnt = a.mnt
	b.eq("cat f", "x")
	a.mnt = ""
}

func TestReadOnlyMount(t *testing.T) {
	p := newPool(t)
	s := p.mountWith(request{ReadOnly: true, Layers: layers{Base: p.base("", `echo x >f`), Uppers: []upperDir{p.upper("sys", "/")}}})
	if fd, err := unix.Open(s.mnt+"/new", unix.O_CREAT|unix.O_WRONLY, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("create: %d, %v", fd, err)
	}
	s.eq("cat f", "x")
}

// With one processor a request that waits for another would wait for good.
func TestOneProcessor(t *testing.T) {
	p := newPool(t)
	s := p.mountWith(request{Layers: layers{Base: p.base("", smallBase), Uppers: []upperDir{p.upper("sys", "/")}}}, "GOMAXPROCS=1")
	s.eq(`for i in 1 2 3 4; do (cp -r big big$i; cat big$i/* | sha256sum; rm -r big$i) & done; wait; ls`, strings.Join([]string{
		p.sum(s), p.sum(s), p.sum(s), p.sum(s), "big", "etc", "usr", "var"}, "\n"))
	base2 := p.base(filepath.Join(p.dir, "base1"), `echo 2 >etc/a`)
	s.call(request{Op: "switch", Layers: layers{Base: base2}})
	s.eq("cat etc/a", "2")
}

func (p *pool) sum(s *server) string { return p.sh(s.mnt, "cat big/* | sha256sum") }

func TestFreezeEndsByItself(t *testing.T) {
	p := newPool(t)
	s := p.mountWith(request{FreezeMax: 300 * time.Millisecond, Layers: layers{Base: p.base("", `echo x >f`), Uppers: []upperDir{p.upper("sys", "/")}}})
	s.call(request{Op: "freeze"})
	s.eq("cat f; echo y >f; cat f", "x\ny") // the write waits for the limit
	if st := s.stats(); st.Frozen != 0 {
		t.Errorf("frozen for %v", st.Frozen)
	}
	// Whoever took a snapshot under that freeze must not switch to it.
	l := layers{Base: filepath.Join(p.dir, "base1")}
	if _, err := s.try(request{Op: "switch", Layers: l}); err == nil || !strings.Contains(err.Error(), ErrThawed.Error()) {
		t.Errorf("switch after a freeze that ended by itself: %v", err)
	}
	s.call(request{Op: "freeze"})
	s.call(request{Op: "thaw"})
	s.eq("echo z >f; cat f", "z")
}
