package fusefs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/overlay"
)

// rotating is a pool on a btrfs that lets the fsyncs of several threads wait for one another.
func rotating(t *testing.T) *pool {
	mnt := testenv.NewBtrfs(t, 1<<30)
	testenv.Run(t, "mount", "-o", "remount,nossd", mnt)
	return &pool{t: t, dir: mnt}
}

// One thread writes to the log tree for a program that fsyncs, renames and fsyncs.
func TestOneThreadFsyncs(t *testing.T) {
	strace := testenv.Command(t, "strace")
	p := rotating(t)
	s := p.mount(layers{Base: p.base("", "mkdir d"), Uppers: []upperDir{p.upper("sys", "/")}})
	trace := filepath.Join(testenv.Dir(t), "trace")
	cmd := exec.Command(strace, "-f", "-q", "-e", "trace=fsync,fdatasync,renameat2", "-o", trace, "-p", strconv.Itoa(s.cmd.Process.Pid))
	testenv.Must(t, cmd.Start())
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			cmd.Process.Signal(os.Interrupt)
			cmd.Wait()
		}
	}
	defer stop()
	save := func(name string) {
		t.Helper()
		path := filepath.Join(s.mnt, "d", name)
		f, err := os.Create(path + ".new")
		testenv.Must(t, err)
		_, err = f.WriteString(name)
		testenv.Must(t, err, f.Sync(), f.Close(), os.Rename(path+".new", path))
		d, err := os.Open(filepath.Dir(path))
		testenv.Must(t, err, d.Sync(), d.Close())
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		save("attached")
		if b, _ := os.ReadFile(trace); len(b) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("strace does not begin")
		}
	}
	const files = 100
	for i := range files {
		save(fmt.Sprint(i))
	}
	stop()
	b, err := os.ReadFile(trace)
	testenv.Must(t, err)
	calls := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^(\d+) +(fsync|fdatasync|renameat2)\(`).FindAllStringSubmatch(string(b), -1) {
		calls[m[1]]++
	}
	most, all := 0, 0
	for _, n := range calls {
		most, all = max(most, n), all+n
	}
	// Readers step in while the thread is at its last answer, under strace more often.
	if all < 3*files || most < all*9/10 {
		t.Errorf("calls by thread: %v; expected nearly all of one thread", calls)
	}
	for i := range files {
		if got, err := os.ReadFile(filepath.Join(s.mnt, "d", fmt.Sprint(i))); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("file %d: %q, %v", i, got, err)
		}
	}
}

// While the thread is busy, even for long, readers do its work.
func TestOthersFsyncMeanwhile(t *testing.T) {
	p := rotating(t)
	s := p.mountWith(request{Layers: layers{Base: p.base("", "echo a >a; echo b >b"), Uppers: []upperDir{p.upper("sys", "/")}}, FreezeMax: time.Minute})
	path := func(name string) string { return filepath.Join(s.mnt, name) }
	a, b := mustOpen(t, path("a"), os.O_RDWR), mustOpen(t, path("b"), os.O_RDWR)
	defer a.Close()
	defer b.Close()
	for _, f := range []*os.File{a, b} {
		_, err := f.WriteString("new")
		testenv.Must(t, err, f.Sync())
	}
	s.call(request{Op: "freeze"})
	renamed := make(chan error, 1)
	go func() { renamed <- os.Rename(path("a"), path("c")) }() // was fsynced: the thread's
	time.Sleep(100 * time.Millisecond)
	var all sync.WaitGroup
	synced := make(chan error, 8)
	for range cap(synced) {
		all.Go(func() { synced <- b.Sync() })
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("an fsync waits for a rename that waits for a frozen view")
	}
	for range cap(synced) {
		testenv.Must(t, <-synced)
	}
	select {
	case err := <-renamed:
		t.Errorf("a rename did not wait for the frozen view: %v", err)
	default:
	}
	s.call(request{Op: "thaw"})
	select {
	case err := <-renamed:
		testenv.Must(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the rename still waits")
	}
	s.eq("cat c b", "newnew")
}

// Only where it is of use is there such a thread, and only what it is for comes to it.
func TestWhatOneThreadFsyncs(t *testing.T) {
	p := rotating(t)
	l := layers{Base: p.base("", "mkdir d e; echo x >d/f; echo x >e/f"), Uppers: []upperDir{p.upper("sys", "/")}}
	config, done, err := l.open()
	testenv.Must(t, err)
	defer done()
	u, err := overlay.New(config)
	testenv.Must(t, err)
	defer u.Close()
	f := &rawFS{u: u}
	mnt := p.dir
	for _, c := range []struct {
		option string
		want   bool
	}{{"nossd", true}, {"ssd", false}, {"nossd", true}} {
		testenv.Run(t, "mount", "-o", "remount,"+c.option, mnt)
		if got := f.groupsFsyncs(); got != c.want {
			t.Errorf("on a btrfs with %s: %v, expected %v", c.option, got, c.want)
		}
	}
	conn := &connection{fs: f}
	look := func(dir *overlay.Node, name string) *overlay.Node {
		t.Helper()
		var a overlay.Attr
		n, err := u.Lookup(dir, name, &a)
		testenv.Must(t, err)
		return n
	}
	d, e := look(u.Root(), "d"), look(u.Root(), "e")
	file := look(d, "f")
	look(e, "f")
	_, err = u.Write(file, []byte("y"), 0, 0)
	testenv.Must(t, err)
	rename := func(opcode uint32, dir *overlay.Node, name string) []byte {
		args := words(1, 0)
		if opcode == opcodeRename2 {
			args = words(1, 0, 0, 0)
		}
		args = append(args, name+"\x00other\x00"...)
		return append(words(uint32(40+len(args)), opcode, 7, 0, uint32(dir.ID()), 0, 0, 0, 0, 0), args...)
	}
	link := func(n *overlay.Node) []byte {
		return words(56, opcodeLink, 7, 0, uint32(e.ID()), 0, 0, 0, 0, 0, uint32(n.ID()), 0, 0x66, 0)
	}
	check := func(when, want string) {
		t.Helper()
		var got []string
		for name, request := range map[string][]byte{"fsync": words(56, opcodeFsync, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), "fsyncdir": words(56, opcodeFsyncdir, 7, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0),
			"d/f": rename(opcodeRename, d, "f"), "2 d/f": rename(opcodeRename2, d, "f"), "d/none": rename(opcodeRename, d, "none"), "e/f": rename(opcodeRename, e, "f"),
			"link d/f": link(file), "link d": link(d), "link stale": words(56, opcodeLink, 7, 0, 1, 0, 0, 0, 0, 0, 99, 0, 0x66, 0),
			"stale": append(words(60, opcodeRename, 7, 0, 99, 0, 0, 0, 0, 0), "f\x00g\x00"...), "lookup": append(words(42, opcodeLookup, 7, 0, 1, 0, 0, 0, 0, 0), "d\x00"...)} {
			if conn.logs(request) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%s: %s, expected %s", when, s, want)
		}
	}
	check("before any fsync", "fsync, fsyncdir")
	testenv.Must(t, u.Sync(file, false))
	check("after one of d/f", "2 d/f, d/f, fsync, fsyncdir, link d/f")
	testenv.Must(t, u.Sync(d, false))
	check("after one of d", "2 d/f, d/f, d/none, fsync, fsyncdir, link d, link d/f")
}
