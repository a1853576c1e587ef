package fusefs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Walks, by what they ask of the server. The first one pays for what nobody knows: the
// nodes come with the lists, so there are no lookups. The second one asks once for the
// attributes of everything that was read, because Linux takes the access time of what was
// read for stale and a server cannot tell it otherwise. From then on nothing is asked.
func TestWarmWalksAskNothing(t *testing.T) {
	const dirs, files = 20, 30
	p := newPool(t)
	base := p.base("", fmt.Sprintf(`for d in $(seq %d); do mkdir -p t/d$d; for f in $(seq %d); do echo "$d $f" >t/d$d/f$f; done; ln -s f1 t/d$d/l; done
mkdir wide; for i in $(seq 600); do : >wide/a-name-that-makes-the-list-longer-than-one-answer-$i; done`, dirs, files))
	s := p.mount(layers{Base: base, Uppers: []upperDir{p.upper("sys", "/")}})
	p.sh(s.mnt, "echo mine >t/d1/f1; echo new >t/d2/new; ln -s new t/d2/m")
	for _, w := range []struct {
		script string
		lookup uint64 // the first time
		again  uint64 // GETATTR the second time
	}{
		{"cd t && find . -ls", 0, 1 + dirs + dirs + 1},
		{"cd t && grep -r nosuchstring . || true", 0, dirs*files + dirs + 2},
		{"ls -l wide", 1, 1},
	} {
		p.sh("/", "echo 2 >/proc/sys/vm/drop_caches")
		var first, second, third map[string]uint64
		if !undisturbed(t, func() {
			first = s.requests(func() { p.sh(s.mnt, w.script) })
			second = s.requests(func() { p.sh(s.mnt, w.script) })
			third = s.requests(func() { p.sh(s.mnt, w.script) })
		}) {
			t.Log("others keep dropping the caches of this machine")
			continue
		}
		// The way into the walk is looked up; a name on it that was known is not.
		if n := first["lookup"]; n > w.lookup+1 {
			t.Errorf("%s: %d lookups the first time: %v", w.script, n, first)
		}
		// ls asks for attributes that no kernel caches.
		delete(second, "getxattr")
		delete(third, "getxattr")
		if n := second["getattr"]; n > w.again || len(second) > 1 {
			t.Errorf("%s, second time: %v, at most %d getattr expected", w.script, second, w.again)
		}
		if len(third) > 0 {
			t.Errorf("%s, third time: %v", w.script, third)
		}
	}
}

// A list of a large directory makes few nodes, unless its names are looked up.
func TestLargeDirectoriesAreListedWithoutNodes(t *testing.T) {
	const files = 12000
	p := newPool(t)
	base := p.base("", fmt.Sprintf("mkdir big; cd big; seq -f file%%05g %d | xargs touch", files))
	s := p.mount(layers{Base: base, Uppers: []upperDir{p.upper("sys", "/")}})
	s.eq("ls big | wc -l", fmt.Sprint(files))
	if n := s.stats().Nodes; n > 1000 {
		t.Errorf("%d nodes after ls of %d names", n, files)
	}
	p.sh("/", "echo 2 >/proc/sys/vm/drop_caches")
	r := s.requests(func() { p.sh(s.mnt, "ls -l big >/dev/null") })
	if r["lookup"] > files/20 {
		t.Errorf("ls -l: %v", r)
	}
}

// undisturbed repeats what counts on caches that somebody else on the machine may drop.
func undisturbed(t *testing.T, f func()) bool {
	drops := func() string {
		b, err := os.ReadFile("/proc/vmstat")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "drop_slab ")
		n, _, _ := strings.Cut(rest, "\n")
		return n
	}
	for range 10 {
		before := drops()
		if f(); drops() == before {
			return true
		}
	}
	return false
}

// A file that is read from its beginning to its end is read in the largest requests there are, and ahead.
func TestSequentialReads(t *testing.T) {
	const size = 32
	p := newPool(t)
	s := p.mount(layers{Base: p.base("", fmt.Sprintf("head -c %dM /dev/urandom >f", size)), Uppers: []upperDir{p.upper("sys", "/")}})
	var st unix.Stat_t
	if err := unix.Stat(s.mnt, &st); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev))))
	if got := strings.TrimSpace(string(b)); err != nil || got != strconv.Itoa(readAheadKB) {
		t.Errorf("reads %q KiB ahead, %v; expected %d", got, err, readAheadKB)
	}
	asked := s.requests(func() { p.sh(s.mnt, "cat f >/dev/null") })
	if n := asked["read"]; n < size*1<<20/maxRequest || n > size*1<<20/maxRequest+8 {
		t.Errorf("%d requests for %d MiB: %v", n, size, asked)
	}
}
