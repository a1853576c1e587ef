package subvolumes

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

func summary(list []Removed) []string {
	var out []string
	for _, r := range list {
		s := r.Kind + " " + r.Name
		if r.Held {
			s += " held"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// reset does what package reset does: fresh overlays for all but one.
func reset(t testing.TB, w *Writer, keep string) *Record {
	t.Helper()
	r, err := w.Record()
	testenv.Must(t, err)
	var refs []OverlayRef
	for _, o := range r.Active().Overlays {
		if o.Name != keep {
			o, err = w.FreshOverlay(ctx, *r.Overlay(o.Name), "")
			testenv.Must(t, err)
		}
		refs = append(refs, o)
	}
	r, err = w.Deploy(ctx, Deployment{Base: r.Active().Base, Overlays: refs, Reason: "reset"}, DeployOptions{})
	testenv.Must(t, err)
	return r
}

func TestCollect(t *testing.T) {
	p, w := standard(t) // deployment 4: system.1, data.2, conf.3, of base 1
	r, err := p.Record()
	testenv.Must(t, err)
	first := r.Current
	firstRefs := slices.Clone(r.Active().Overlays)
	importSystem(t, w, "unused", 0)
	if got, err := w.Collect(ctx, false); err != nil || len(got) != 0 {
		t.Fatalf("in a fresh pool: %v, %v", summary(got), err)
	}
	reset(t, w, "data") // previous is the first now
	if got, err := w.Collect(ctx, false); err != nil || len(got) != 0 {
		t.Fatalf("the undo of reset is garbage: %v, %v", summary(got), err)
	}
	for _, v := range []string{"2", "3"} { // two updates: the first deployment is only the factory's
		stageFrom(t, w, "1", v, 2)
		_, err = w.Deploy(ctx, Deployment{Base: v}, DeployOptions{Trial: 1})
		testenv.Must(t, err)
		_, err = w.MarkGood(ctx)
		testenv.Must(t, err)
	}
	// What a crash may leave.
	bases, err := os.Open(p.Dir() + "/bases")
	testenv.Must(t, err)
	defer bases.Close()
	testenv.Must(t, btrfs.CreateSubvolume(bases, "4.partial"))
	testenv.Must(t, os.WriteFile(p.Dir()+"/bases/7.meta", nil, 0o600))
	testenv.Must(t, os.WriteFile(p.Dir()+"/state.new", nil, 0o600))

	h, err := p.Hold(r.Deployment(first)) // a view still on the first
	testenv.Must(t, err)
	dry, err := w.Collect(ctx, true)
	testenv.Must(t, err)
	if _, err := os.Stat(p.Dir() + "/bases/4.partial"); err != nil {
		t.Error("the dry run removed something")
	}
	got, err := w.Collect(ctx, false)
	testenv.Must(t, err)
	if d := cmp.Diff(summary(dry), summary(got)); d != "" {
		t.Errorf("the dry run told something else: %s", d)
	}
	if s := strings.Join(summary(got), "\n"); !strings.Contains(s, "held") || !strings.Contains(s, "stage 4.partial") ||
		!strings.Contains(s, "temporary bases/7.meta") || !strings.Contains(s, "temporary state.new") {
		t.Errorf("removed:\n%s", s)
	}
	for _, o := range firstRefs {
		if _, err := os.Stat(p.OverlayPath(o)); err != nil {
			t.Errorf("held, but gone: %v", err)
		}
	}
	testenv.Must(t, h.Release())
	_, err = w.Collect(ctx, false)
	testenv.Must(t, err)
	r, err = p.Record()
	testenv.Must(t, err)
	for _, o := range firstRefs {
		_, err := os.Stat(p.OverlayPath(o))
		if inUse := r.names(o.Subvolume); inUse != (err == nil) {
			t.Errorf("%s: named by the record: %v, on disk: %v", o.Subvolume, inUse, err)
		}
	}
	f := r.Deployment(r.Factory)
	if f == nil || f.Base != "1" || f.Overlay("system").Subvolume != "" || f.Overlay("data").Subvolume == "" {
		t.Errorf("factory deployment: %+v", f)
	}
	if d := cmp.Diff([]string{"1", "unused", "2", "3"}, r.versions()); d != "" {
		t.Error(d)
	}
	if got, err := w.Collect(ctx, false); err != nil || len(got) != 0 {
		t.Errorf("a second collection: %v, %v", summary(got), err)
	}
	// Going back to the factory deployment makes its overlays anew.
	r, err = w.Rollback(ctx, r.Factory, "")
	testenv.Must(t, err)
	if a := r.Active(); a.Base != "1" || a.Overlay("system").Subvolume == "" {
		t.Errorf("%+v", a)
	}
	testenv.Must(t, p.usable(r.Active()))
}

func TestHoldKeepsABase(t *testing.T) {
	p, w := standard(t)
	r, err := p.Record()
	testenv.Must(t, err)
	h, err := p.Hold(r.Active())
	testenv.Must(t, err)
	if len(h.Overlays()) != 3 || h.Base() == nil || h.Deployment().ID != r.Current {
		t.Errorf("%+v", h)
	}
	h2, err := p.Hold(r.Active()) // several views
	testenv.Must(t, err)
	testenv.Must(t, h.Release())
	testenv.Must(t, h.Release())
	importSystem(t, w, "2", 0)
	d := Deployment{Base: "2"}
	h3, err := p.Hold(&d)
	testenv.Must(t, err)
	if err := w.RemoveBase(ctx, "2"); err == nil || !strings.Contains(err.Error(), "mounted view") {
		t.Errorf("%v", err)
	}
	testenv.Must(t, h3.Release())
	testenv.Must(t, w.RemoveBase(ctx, "2"))
	if _, err := p.Hold(&d); err == nil {
		t.Error("held a base that is gone")
	}
	testenv.Must(t, h2.Release())
}
