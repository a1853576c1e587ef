package overlay

import (
	"context"
	"fmt"
	"slices"
	"testing"
)

// walkInto lists a directory as a walk does.
func (w *world) walkInto(path string) {
	w.t.Helper()
	n := w.must(path)
	if err := w.u.ReadDirPlus(n, 0, func(*Entry) bool { return true }, func(*Node, *Attr) {}); err != nil {
		w.t.Fatal(err)
	}
}

// ahead returns what would be read ahead, the next one last, and lets nobody read it.
func (w *world) ahead() []string {
	s := &w.u.scout
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, f := range s.stack {
		names = append(names, f.path)
	}
	s.stack = nil
	return names
}

func TestWalksAreReadAhead(t *testing.T) {
	w := newWorld(t, "for d in a b c; do mkdir -p t/$d/sub1 t/$d/sub2; done; mkdir -p t/wide; for i in $(seq 100); do mkdir t/wide/$i; done; mkdir f; for i in $(seq 40); do echo $i >f/$i; done", "sys=/")
	s := &w.u.scout
	s.running = true // nobody reads: what is sighted stays
	w.walkInto("")
	w.walkInto("t/b")
	if got := w.ahead(); got != nil {
		t.Errorf("somebody lists a directory and another elsewhere: %v is read ahead", got)
	}
	w.walkInto("t")
	w.ahead()
	w.walkInto("t/a")
	// Its own directories first, then the next ones of the parent that were not listed.
	if got, want := fmt.Sprint(w.ahead()), "[t/wide t/c t/a/sub2 t/a/sub1]"; got != want {
		t.Errorf("after a walk into t/a: %v, expected %v", got, want)
	}
	w.walkInto("t/wide")
	got := w.ahead()
	slices.Reverse(got)
	if len(got) != scoutAhead || got[0] != "t/wide/1" {
		t.Errorf("after a walk into t/wide: %v", got)
	}
	for i := range 10 {
		w.walkInto(fmt.Sprintf("t/wide/%d", 1+i*3))
	}
	w.ahead()

	w.walkInto("f")
	var order []string
	w.u.ReadDir(w.must("f"), 2, func(e *Entry) bool { order = append(order, e.Name); return true })
	for i, name := range order[:len(order)-1] {
		w.read(w.must("f/" + name))
		got := w.ahead()
		switch {
		case i == 0 && got != nil:
			t.Errorf("after one file: %v is read ahead", got)
		case i == 1 && (len(got) != 2*scoutFiles || got[len(got)-1] != "f/"+order[2]):
			t.Errorf("after two files in the order of the list %v: %v is read ahead", order[:4], got)
		}
	}
	w.walkInto("t/wide")
	s.mu.Lock()
	if n := len(s.stack); n > scoutDepth || n == 0 {
		t.Errorf("%d directories wait, at most %d may", n, scoutDepth)
	}
	s.running = false
	s.mu.Unlock()

	// What waits is forgotten with its base, and the reader ends by itself.
	next := w.config
	next.Base = openDir(t, w.dir+"/sys")
	p, err := w.u.Prepare(context.Background(), next, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Commit(false); err != nil {
		t.Fatal(err)
	}
	s.send(w.u, []sighting{{w.u.cur.base, "no such directory", w.u.root, "x", false}})
	s.done.Wait()
	if got := w.ahead(); got != nil || s.running {
		t.Errorf("left: %v, running %v", got, s.running)
	}
}
