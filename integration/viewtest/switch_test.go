package viewtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/fusefs"
	"github.com/btrovl/btrovl/integration/testenv"
)

// switcher is a view that switches between two bases while users work in it.
//
// Each switch has a number. A user takes the number of the last finished switch before
// a call and that of the last started one after it: what the call shows has to be a version
// between the two. That is all that "old or new, and never old again" means.
type switcher struct {
	t                 *testing.T
	b                 *switchBases
	p                 *viewProcess
	uppers            []upperSpec
	root              string
	started, finished atomic.Int64
	judged, wrong     atomic.Int64
	stop              atomic.Bool
}

func newSwitcher(t *testing.T, files, changed int) *switcher {
	t.Helper()
	testenv.FUSE(t)
	dir := testenv.Btrfs(t)
	b, err := newSwitchBases(t.Context(), filepath.Join(dir, "bases"), files, changed)
	ok(t, err)
	s := &switcher{t: t, b: b, root: filepath.Join(testenv.Dir(t), "v")}
	for _, u := range []upperSpec{{Name: "system", Dir: filepath.Join(dir, "system"), Paths: []string{"/"}}, {Name: "data", Dir: filepath.Join(dir, "data"), Paths: []string{"/var/lib/app"}}} {
		ok(t, NewUpper(t.Context(), b.path[0], u.Dir))
		s.uppers = append(s.uppers, u)
	}
	s.p, err = startView(t.Context(), serveSpec{Mountpoint: s.root, Base: b.path[0], Uppers: s.uppers})
	ok(t, err)
	t.Cleanup(func() {
		if err := s.p.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// switchBase does the next switch.
func (s *switcher) switchBase(ctx context.Context) (r fusefs.SwitchReport, err error) {
	n := s.started.Add(1)
	err = s.p.call(ctx, "switch", serveSpec{Base: s.b.path[n%2], Uppers: s.uppers}, &r)
	s.finished.Store(n)
	return r, err
}

// switchFollowing does the next switch as an update does with an overlay that follows the
// base: the first overlay is snapshotted meanwhile, and that is all that changes wait for.
func (s *switcher) switchFollowing(ctx context.Context) (r fusefs.SwitchReport, err error) {
	n := s.started.Load() + 1
	next := serveSpec{Base: s.b.path[n%2], Uppers: slices.Clone(s.uppers)}
	if err := s.p.call(ctx, "prepare", next, nil); err != nil {
		return r, err
	}
	began := time.Now()
	if err := s.p.call(ctx, "freeze", nil, nil); err != nil {
		return r, err
	}
	frozen := time.Now()
	snap := filepath.Join(filepath.Dir(s.b.dir), fmt.Sprintf("system.%d", n))
	if err := command(ctx, "btrfs", "-q", "subvolume", "snapshot", s.uppers[0].Dir, snap); err != nil {
		return r, err
	}
	snapped := time.Now()
	next.Uppers[0].Dir, next.Uppers[0].Snapshot = snap, true
	s.started.Store(n)
	if err := s.p.call(ctx, "switch", next, &r); err != nil {
		s.stop.Store(true) // what shows from here on is not said
		return r, fmt.Errorf("%w (frozen after %v, snapshot after %v, failed after %v)", err, frozen.Sub(began), snapped.Sub(frozen), time.Since(snapped))
	}
	s.finished.Store(n)
	if !r.Prepared {
		err = errors.New("what was prepared was not used")
	}
	s.uppers[0].Dir = snap
	return r, err
}

// judge says that a call which began when switch number since was the last finished one
// showed a version.
func (s *switcher) judge(since int64, version int, what string) {
	s.judged.Add(1)
	until := s.started.Load()
	if (version == 0 || version == 1) && (until > since || int64(version) == since%2) {
		return
	}
	s.bad("%s shows version %d after switch %d and before switch %d", what, version, since, until+1)
}

// stable says whether no switch was under way since.
func (s *switcher) stable(since int64) bool { return s.started.Load() == since }

func (s *switcher) bad(format string, a ...any) {
	if s.wrong.Add(1) <= 10 {
		s.t.Errorf(format, a...)
	}
}

func (s *switcher) path(format string, a ...any) string {
	return filepath.Join(s.root, fmt.Sprintf(format, a...))
}

// versionOf reads which version wrote the content, all of it; -1 is a mixture.
func versionOf(content, path string, pages bool) int {
	for v := range 2 {
		if content == versionContent(path, v, pages) {
			return v
		}
	}
	return -1
}

// users are loops of calls, each one judged. They get a random source of their own.
var users = map[string]func(s *switcher, r *rand.Rand){
	"read": func(s *switcher, r *rand.Rand) {
		i := r.IntN(s.b.changed)
		since := s.finished.Load()
		b, err := os.ReadFile(s.path("%s", s.b.chgPath(i)))
		if err != nil {
			s.bad("%v", err)
			return
		}
		s.judge(since, versionOf(string(b), s.b.chgPath(i), manyPages(i)), s.b.chgPath(i))
	},
	"links": func(s *switcher, r *rand.Rand) {
		for _, name := range []string{"a", "b"} {
			since := s.finished.Load()
			b, err := os.ReadFile(s.path("links/%s", name))
			if err != nil {
				s.bad("%v", err)
				return
			}
			s.judge(since, versionOf(string(b), "links", false), "links/"+name)
		}
	},
	"mode": func(s *switcher, r *rand.Rand) {
		name := fmt.Sprintf("meta/f%d", r.IntN(addedFiles))
		since := s.finished.Load()
		var st unix.Stat_t
		if err := unix.Lstat(s.path("%s", name), &st); err != nil {
			s.bad("lstat %s: %v", name, err)
			return
		}
		s.judge(since, int(st.Mode&0o777-0o600)/4, name)
	},
	"negative": func(s *switcher, r *rand.Rand) {
		v, i := r.IntN(2), r.IntN(addedFiles)
		for _, name := range []string{fmt.Sprintf("only%d/f%d", v, i), fmt.Sprintf("both/v%d-%d", v, i), fmt.Sprintf("move%d/in/f%d", v, i)} {
			since := s.finished.Load()
			var st unix.Stat_t
			switch err := unix.Lstat(s.path("%s", name), &st); err {
			case nil:
				s.judge(since, v, name)
			case unix.ENOENT:
				s.judge(since, 1-v, "the absence of "+name)
			default:
				s.bad("lstat %s: %v", name, err)
			}
		}
	},
	"type": func(s *switcher, r *rand.Rand) {
		name := fmt.Sprintf("typ/t%d", r.IntN(addedFiles))
		since := s.finished.Load()
		var st unix.Stat_t
		if err := unix.Lstat(s.path("%s", name), &st); err != nil {
			s.bad("lstat %s: %v", name, err)
			return
		}
		version := 0
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			version = 1
		}
		s.judge(since, version, "the type of "+name)
	},
	"symlink": func(s *switcher, r *rand.Rand) {
		since := s.finished.Load()
		target, err := os.Readlink(s.path("sym"))
		if err != nil || target != "0" && target != "1" {
			s.bad("sym: %q, %v", target, err)
			return
		}
		s.judge(since, int(target[0]-'0'), "sym")
	},
	"list": func(s *switcher, r *rand.Rand) {
		since := s.finished.Load()
		names, err := os.ReadDir(s.path("both"))
		if err != nil {
			s.bad("%v", err)
			return
		}
		if !s.stable(since) {
			return // a listing that takes several calls may begin old and end new
		}
		s.judged.Add(1)
		prefix := fmt.Sprintf("v%d-", since%2)
		if len(names) != addedFiles || slices.ContainsFunc(names, func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), prefix) }) {
			s.bad("both lists %d entries, like %s, after switch %d", len(names), names[0], since)
		}
	},
	"exec": func(s *switcher, r *rand.Rand) {
		if exitELF(runtime.GOARCH, 0) == nil {
			return
		}
		since := s.finished.Load()
		code, err := run1(s.path("prog"))
		if err != nil {
			s.bad("prog: %v", err)
			return
		}
		s.judge(since, code-10, "prog")
	},
	"unchanged": func(s *switcher, r *rand.Rand) {
		i := r.IntN(s.b.files - s.b.changed)
		b, err := os.ReadFile(s.path("same/d%d/f%d", i/500, i))
		s.judged.Add(1)
		if err != nil || string(b) != "the same\n" {
			s.bad("an unchanged file holds %q, %v", b, err)
		}
	},
	// Each writer has files of its own, in both overlays, and beside what changes.
	"write": func(s *switcher, r *rand.Rand) {
		dir := []string{"var/lib/app", "chg/d3", "same/d0"}[r.IntN(3)]
		name := s.path("%s/w%x", dir, r.Uint32())
		want := fmt.Sprintf("written %x", r.Uint64())
		err := os.WriteFile(name, []byte(want), 0o644)
		var b []byte
		if err == nil {
			b, err = os.ReadFile(name)
		}
		if err == nil {
			err = os.Rename(name, name+"r")
		}
		if err == nil {
			err = os.Remove(name + "r")
		}
		s.judged.Add(1)
		if err != nil || string(b) != want {
			s.bad("writing %s: %q, %v", name, b, err)
		}
	},
	// Changes one file of the base again and again: once copied up, it belongs to the overlay.
	"overwrite": func(s *switcher, r *rand.Rand) {
		name := s.path("same/d0/f%d", r.IntN(40))
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			s.bad("%v", err)
			return
		}
		defer f.Close()
		_, err = f.WriteAt([]byte("the same\n"), 0)
		s.judged.Add(1)
		if err != nil {
			s.bad("%v", err)
		}
	},
}

func TestSwitchUnderLoad(t *testing.T) {
	files, changed, switches := 3000, 300, 15
	if long() {
		files, changed, switches = 20000, 2000, 100
	}
	s := newSwitcher(t, files, changed)

	// What must stay where it is.
	bind := testenv.Dir(t)
	ok(t, os.WriteFile(filepath.Join(bind, "f"), []byte("bound"), 0o644))
	for _, m := range []struct{ src, typ, dst string }{
		{filepath.Join(bind, "f"), "", "mnt/file"}, {bind, "", "mnt/dir"}, {"tmpfs", "tmpfs", "mnt/tmp"},
	} {
		dst, flags := s.path("%s", m.dst), uintptr(0)
		if m.typ == "" {
			flags = unix.MS_BIND
		}
		ok(t, unix.Mount(m.src, dst, m.typ, flags, ""))
		t.Cleanup(func() {
			if err := Unmount(dst); err != nil {
				t.Error(err)
			}
		})
	}
	ok(t, os.WriteFile(s.path("mnt/tmp/x"), []byte("in tmpfs"), 0o644))
	mounts := func() {
		t.Helper()
		content(t, "bound", s.path("mnt/file"))
		content(t, "bound", s.path("mnt/dir/f"))
		content(t, "in tmpfs", s.path("mnt/tmp/x"))
	}
	mounts()

	// What old descriptors show is what they showed.
	type held struct {
		f    *os.File
		m    []byte
		want string
	}
	var olds []held
	hold := func(i int) {
		rel := s.b.chgPath(i)
		f := open(t, os.O_RDONLY, s.path("%s", rel))
		want := versionContent(rel, int(s.finished.Load()%2), manyPages(i))
		m, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
		ok(t, err)
		t.Cleanup(func() { unix.Munmap(m) })
		olds = append(olds, held{f, m, want})
	}
	cwd := open(t, unix.O_PATH, s.path("chg/d0")) // a working directory whose content changes
	gone := open(t, os.O_RDONLY, s.path("only0")) // one that is removed by the first switch
	stream := open(t, os.O_RDONLY, s.path("both"))
	_, err := unix.Getdents(int(stream.Fd()), make([]byte, 512))
	ok(t, err)

	var wg sync.WaitGroup
	for name, f := range users {
		r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(len(name))))
		wg.Go(func() {
			for !s.stop.Load() {
				f(s, r)
			}
		})
	}
	var paused, total []time.Duration
	r := rand.New(rand.NewPCG(1, 1))
	for n := 1; n <= switches && s.wrong.Load() == 0; n++ {
		time.Sleep(time.Duration(r.IntN(250)) * time.Millisecond)
		for range 3 {
			hold(r.IntN(s.b.changed))
		}
		do := s.switchBase
		if n%3 == 0 {
			do = s.switchFollowing
		}
		rep, err := do(t.Context())
		if err != nil {
			t.Errorf("switch %d: %v", n, err)
			break
		}
		paused, total = append(paused, rep.Paused), append(total, rep.Total)
		mounts()
		// By a working directory, at once.
		b := make([]byte, 20000)
		fd, err := unix.Openat(int(cwd.Fd()), "f0", unix.O_RDONLY, 0)
		ok(t, err)
		k, err := unix.Read(fd, b)
		unix.Close(fd)
		ok(t, err)
		if v := versionOf(string(b[:k]), "chg/d0/f0", true); v != n%2 {
			t.Errorf("from its working directory a program sees version %d after switch %d", v, n)
		}
	}
	s.stop.Store(true)
	wg.Wait()
	for i, h := range olds {
		b := make([]byte, len(h.want)+1)
		k, _ := h.f.ReadAt(b, 0)
		if string(b[:k]) != h.want {
			t.Errorf("old descriptor %d shows %.60q, expected %.60q", i, b[:k], h.want)
		}
		if string(h.m) != h.want {
			t.Errorf("old mapping %d shows %.60q, expected %.60q", i, h.m, h.want)
		}
	}
	if _, err := unix.Openat(int(gone.Fd()), "new", unix.O_CREAT|unix.O_WRONLY, 0o644); !errors.Is(err, unix.ENOENT) {
		t.Errorf("creating in a removed directory: %v", err)
	}
	for {
		k, err := unix.Getdents(int(stream.Fd()), make([]byte, 512))
		ok(t, err)
		if k == 0 {
			break
		}
	}
	slices.Sort(paused)
	slices.Sort(total)
	if len(paused) > 0 {
		t.Logf("%d switches, %d reads judged, %d wrong; paused median %v, most %v; switched median %v, most %v", len(paused),
			s.judged.Load(), s.wrong.Load(), paused[len(paused)/2], paused[len(paused)-1], total[len(total)/2], total[len(total)-1])
	}
}

// run1 runs a program and returns its exit code. Not os/exec, which makes pipes and
// goroutines that this test has no use for.
func run1(path string) (int, error) {
	p, err := os.StartProcess(path, []string{path}, &os.ProcAttr{})
	if err != nil {
		return 0, err
	}
	st, err := p.Wait()
	if err != nil {
		return 0, err
	}
	return st.ExitCode(), nil
}

// Two bases of 80,000 files, 5,000 of them changed, everything cached.
func TestSwitchAtScale(t *testing.T) {
	files, changed, rounds := 4000, 250, 4
	if long() {
		files, changed, rounds = 80000, 5000, 10
	}
	s := newSwitcher(t, files, changed)
	know := func() {
		for i := range changed {
			if _, err := os.ReadFile(s.path("%s", s.b.chgPath(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := filepath.WalkDir(s.root, func(p string, d os.DirEntry, err error) error {
			if err == nil {
				var st unix.Stat_t
				err = unix.Lstat(p, &st)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for n := range rounds {
		know()
		do := s.switchBase
		if n%2 == 1 {
			do = s.switchFollowing
		}
		r, err := do(t.Context())
		ok(t, err)
		t.Logf("switch %d: %d changed, %d objects known; prepared %v, paused %v, changes waited %v, all switched after %v", n+1, r.Changed, r.Nodes,
			r.Prepared, r.Paused, r.Frozen, r.Total)
		// Somebody may have let the kernel drop its caches since: what it does not know
		// need not be told.
		if r.Changed < changed && r.Nodes >= files {
			t.Errorf("only %d changes were found", r.Changed)
		}
		for i := range changed {
			rel := s.b.chgPath(i)
			b, err := os.ReadFile(s.path("%s", rel))
			if v := versionOf(string(b), rel, manyPages(i)); err != nil || v != (n+1)%2 {
				t.Fatalf("%s has version %d, %v", rel, v, err)
			}
		}
	}
	got, err := Tree(t.Context(), s.root)
	ok(t, err)
	want, err := Tree(t.Context(), s.b.path[rounds%2])
	ok(t, err)
	if diff := DiffTrees("view", "base", got, want, 5); diff != nil {
		t.Errorf("the view is not its base:\n  %s", strings.Join(diff, "\n  "))
	}
}
