package subvolumes

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

func problems(t testing.TB, p *Pool, deep bool) string {
	t.Helper()
	list, err := p.Check(ctx, deep)
	testenv.Must(t, err)
	var b strings.Builder
	for _, f := range list {
		if f.Remedy == "" || f.What == "" {
			t.Errorf("a finding without a remedy: %+v", f)
		}
		b.WriteString(f.Severity + " " + f.What + ": " + f.Problem + "\n")
	}
	return b.String()
}

func TestCheck(t *testing.T) {
	p, w := standard(t)
	if s := problems(t, p, true); s != "" {
		t.Errorf("a sound pool:\n%s", s)
	}
	stageFrom(t, w, "1", "2", 2)
	_, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{Trial: 1})
	testenv.Must(t, err)
	_, err = w.Boot(ctx)
	testenv.Must(t, err)
	_, err = w.FreshOverlay(ctx, OverlayDef{Name: "left", Paths: []string{"/x"}}, "")
	testenv.Must(t, err)
	testenv.Must(t, w.ReleaseReserve())
	testenv.Must(t, os.Remove(file(t, p, "data", "../meta")))
	testenv.Must(t, os.RemoveAll(file(t, p, "conf", "../work")))
	testenv.Run(t, "btrfs", "property", "set", "-f", p.BasePath("1"), "ro", "false")
	testenv.Must(t, os.WriteFile(p.BasePath("1")+"/etc/release", []byte("tampered"), 0o644))
	shallow := problems(t, p, false)
	for _, want := range []string{
		"error bases/1: is writable", "note overlay left.", "warning reserve", "has no directory work", "its file meta",
		"is in its last try",
	} {
		if !strings.Contains(shallow, want) {
			t.Errorf("%q is missing in:\n%s", want, shallow)
		}
	}
	if deep := problems(t, p, true); !strings.Contains(deep, "error bases/1: has digest") || strings.Contains(deep, "bases/2") {
		t.Errorf("deep:\n%s", deep)
	}
	testenv.Must(t, os.Rename(p.BasePath("2"), p.BasePath("x")))
	if s := problems(t, p, false); !strings.Contains(s, "error bases/2: cannot be opened") || !strings.Contains(s, "note base x") {
		t.Errorf("without a base:\n%s", s)
	}
}

func TestRebuild(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(t *testing.T, p *Pool)
		full bool // nothing but the last commit may be lost
	}{
		{"state removed", func(t *testing.T, p *Pool) { testenv.Must(t, os.Remove(p.Dir()+"/state")) }, true},
		{"state empty", func(t *testing.T, p *Pool) { testenv.Must(t, os.Truncate(p.Dir()+"/state", 0)) }, true},
		{"state damaged", func(t *testing.T, p *Pool) {
			testenv.Must(t, os.WriteFile(p.Dir()+"/state", []byte(`{"format": 1, "pool"`), 0o600))
		}, true},
		{"state and its copy removed", func(t *testing.T, p *Pool) {
			testenv.Must(t, os.Remove(p.Dir()+"/state"))
			testenv.Must(t, os.Remove(p.Dir()+"/state.old"))
		}, false},
		{"meta files removed too", func(t *testing.T, p *Pool) {
			for _, n := range []string{"/state", "/state.old", "/bases/1.meta", "/bases/2.meta"} {
				testenv.Must(t, os.Remove(p.Dir()+n))
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, w := standard(t)
			put(t, p, "data", "home/f", "precious")
			stageFrom(t, w, "1", "2", 2)
			_, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{})
			testenv.Must(t, err)
			_, err = w.Commit(ctx, func(r *Record) error { r.Compatible = "board"; return nil })
			testenv.Must(t, err)
			old, err := w.Record()
			testenv.Must(t, err)
			testenv.Must(t, w.Close())
			c.lose(t, p)

			_, err = Open(p.Dir())
			if e, ok := errors.AsType[*NotPoolError](err); !ok || !e.Lost {
				t.Fatalf("Open: %v", err)
			}
			if _, err := Init(p.Dir()); err == nil {
				t.Fatal("Init took a pool with lost state for an empty directory")
			}
			q, err := OpenDamaged(p.Dir())
			testenv.Must(t, err)
			defer q.Close()
			if s := problems(t, q, false); !strings.Contains(s, "error state") {
				t.Errorf("Check:\n%s", s)
			}
			w = lock(t, q)
			r, err := w.Rebuild(ctx)
			testenv.Must(t, err)
			if q.ID() == "" || c.full && (q.ID() != p.ID() || len(r.Deployments) != len(old.Deployments)) {
				t.Errorf("%+v", r)
			}
			a := r.Active()
			if a == nil || a.Base != "2" || len(a.Overlays) != 3 || len(r.Bases) != 2 || len(r.Overlays) != 3 {
				t.Fatalf("%+v", r)
			}
			for _, b := range old.Bases {
				if got := r.Base(b.Version); got.Digest != b.Digest || got.UUID != b.UUID {
					t.Errorf("base %+v", got)
				}
			}
			if got := get(t, q, "data", "home/f"); got != "precious" {
				t.Errorf("data holds %q", got)
			}
			if r.Next < old.Next-1 {
				t.Errorf("numbers are used again: next is %d, was %d", r.Next, old.Next)
			}
			if s := problems(t, q, true); strings.Contains(s, "error") {
				t.Errorf("afterwards:\n%s", s)
			}
			if again, err := w.Rebuild(ctx); err != nil || again.Next != r.Next {
				t.Errorf("a second time: %v", err)
			}
			c2, err := w.Boot(ctx)
			testenv.Must(t, err)
			if c2.Deployment.Base != "2" {
				t.Errorf("it boots %+v", c2)
			}
		})
	}
}
