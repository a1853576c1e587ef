package subvolumes

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestFirstDeployment(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	_, err := w.EnsureDeployment(ctx, "")
	if _, ok := errors.AsType[*UnknownError](err); !ok {
		t.Errorf("without a base: %v", err)
	}
	importSystem(t, w, "1", 0)
	importSystem(t, w, "2", 0)
	addOverlays(t, w)
	r, err := w.EnsureDeployment(ctx, "1")
	testenv.Must(t, err)
	d := r.Active()
	if d.Base != "1" || len(d.Overlays) != 3 || r.Current != d.ID || r.Factory != d.ID || r.Trial != nil || !d.Good {
		t.Errorf("%+v", r)
	}
	again, err := w.EnsureDeployment(ctx, "2")
	testenv.Must(t, err)
	if again.Active().ID != d.ID {
		t.Error("it made another one")
	}
}

// TestUpperHasTheBasesAttributes: in a union the upper directory's are shown.
func TestUpperHasTheBasesAttributes(t *testing.T) {
	p, w := standard(t)
	_, err := w.AddOverlay(ctx, OverlayDef{Name: "new", Paths: []string{"/srv/not/in/base", "/etc/conf.d"}})
	testenv.Must(t, err)
	base := p.BasePath("1")
	stat := func(path string) [5]int64 {
		var st unix.Stat_t
		testenv.Must(t, unix.Lstat(path, &st))
		return [5]int64{int64(st.Mode), int64(st.Uid), int64(st.Gid), int64(st.Mtim.Sec), int64(st.Mtim.Nsec)}
	}
	for overlay, paths := range map[string][]string{
		"system": {""}, "data": {"", "home", "var", "var/lib", "var/lib/app"}, "conf": {"", "etc"}, "new": {"", "etc"},
	} {
		for _, path := range paths {
			if d := cmp.Diff(stat(base+"/"+path), stat(file(t, p, overlay, path))); d != "" {
				t.Errorf("%s of overlay %s: %s", path, overlay, d)
			}
		}
	}
	buf := make([]byte, 16)
	if n, err := unix.Getxattr(file(t, p, "data", "var/lib/app"), "user.note", buf); err != nil || string(buf[:n]) != "base" {
		t.Errorf("attribute: %v", err)
	}
	if _, err := unix.Getxattr(file(t, p, "data", "var/lib"), "trusted.overlay.origin", buf); err == nil {
		t.Error("overlayfs's own attribute was copied")
	}
	if got := stat(file(t, p, "new", "srv/not")); got[0] != unix.S_IFDIR|0o755 || got[1] != 0 {
		t.Errorf("a directory that the base lacks: %v", got)
	}
	if got := names(t, file(t, p, "data", "..")); cmp.Diff(got, []string{"meta", "upper", "work"}) != "" {
		t.Errorf("the subvolume holds %q", got)
	}
}

func TestClaims(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	dir := t.TempDir()
	system(t, dir, "1")
	testenv.Must(t, os.Symlink("run", dir+"/var/run"))
	f, err := os.Open(dir)
	testenv.Must(t, err)
	defer f.Close()
	_, err = w.ImportTree(ctx, "1", f, ImportOptions{})
	testenv.Must(t, err)
	_, err = w.AddOverlay(ctx, OverlayDef{Name: "system", Paths: []string{"/"}})
	testenv.Must(t, err)
	_, err = w.EnsureDeployment(ctx, "")
	testenv.Must(t, err)
	for _, c := range []struct {
		def  OverlayDef
		want string
	}{
		{OverlayDef{Name: "a", Paths: nil}, "at least one path"},
		{OverlayDef{Name: "a", Paths: []string{"etc"}}, "must begin with /"},
		{OverlayDef{Name: "a", Paths: []string{"/etc/../root"}}, `".."`},
		{OverlayDef{Name: "a", Paths: []string{"/x", "//"}}, `overlay "system" claims it`},
		{OverlayDef{Name: "a", Paths: []string{"/var/run/x"}}, `symbolic link to "run"`},
		{OverlayDef{Name: "a", Paths: []string{"/var/run"}}, `symbolic link to "run"`},
		{OverlayDef{Name: "a", Paths: []string{"/etc/release/x"}}, "no directory"},
		{OverlayDef{Name: "a", Paths: []string{"/etc/release"}}, "no directory"},
		{OverlayDef{Name: "a.b", Paths: []string{"/x"}}, "only letters"},
		{OverlayDef{Name: "", Paths: []string{"/x"}}, "empty"},
		{OverlayDef{Name: "../x", Paths: []string{"/x"}}, "only letters"},
		{OverlayDef{Name: "system", Paths: []string{"/x"}}, "exists already"},
	} {
		if _, err := w.AddOverlay(ctx, c.def); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.def, err, c.want)
		}
	}
	r, err := w.AddOverlay(ctx, OverlayDef{Name: "a", Paths: []string{"/etc//", "/etc", "/a/"}})
	testenv.Must(t, err)
	if d := cmp.Diff([]string{"/a", "/etc"}, r.Active().Overlay("a").Paths); d != "" {
		t.Error(d)
	}
	if got := names(t, p.Dir()+"/overlays"); len(got) != 2 {
		t.Errorf("refused overlays left %q", got)
	}
}

func TestUpdateTrialGoodRollback(t *testing.T) {
	p, w := standard(t)
	put(t, p, "data", "home/f", "before")
	put(t, p, "conf", "etc/f", "old conf")
	stageFrom(t, w, "1", "2", 2)
	r, err := w.Deploy(ctx, Deployment{Base: "2", Reason: "update 1-2.btrovl"}, DeployOptions{Trial: 2})
	testenv.Must(t, err)
	first := r.Current
	trial := r.Active()
	if r.Trial == nil || trial.Base != "2" || trial.Parent != first || trial.Good || r.Counter != 1 {
		t.Errorf("%+v", r)
	}
	old := r.Deployment(first)
	if trial.Overlay("data").Subvolume != old.Overlay("data").Subvolume {
		t.Error("data is not shared")
	}
	if trial.Overlay("conf").Subvolume == old.Overlay("conf").Subvolume {
		t.Error("conf, which follows the base, is shared")
	}
	put(t, p, "conf", "etc/f", "new conf")
	put(t, p, "data", "home/f", "after")
	r, err = w.MarkGood(ctx)
	testenv.Must(t, err)
	if r.Trial != nil || r.Current != trial.ID || r.Previous != first || r.Factory != first || r.Counter != 2 || !r.Active().Good {
		t.Errorf("%+v", r)
	}
	r, err = w.Rollback(ctx, 0, "")
	testenv.Must(t, err)
	if r.Active().Base != "1" || r.Previous != trial.ID || r.Counter != 2 {
		t.Errorf("%+v", r)
	}
	if got := get(t, p, "conf", "etc/f") + get(t, p, "data", "home/f"); got != "old confafter" {
		t.Errorf("overlays after rollback: %q", got)
	}
	put(t, p, "conf", "etc/f", "spoiled")
	_, err = w.Rollback(ctx, 0, "") // undoes the rollback
	testenv.Must(t, err)
	if got := get(t, p, "conf", "etc/f"); got != "new conf" {
		t.Errorf("conf after the second rollback: %q", got)
	}
	_, err = w.Rollback(ctx, first, "") // and the state of that time is still there
	testenv.Must(t, err)
	if got := get(t, p, "conf", "etc/f"); got != "old conf" {
		t.Errorf("conf of the first deployment: %q", got)
	}
	_, err = w.Rollback(ctx, 99, "")
	if e, ok := errors.AsType[*UnknownError](err); !ok || e.Kind != "deployment" || len(e.Known) == 0 {
		t.Errorf("%v", err)
	}
}

func TestBootCounting(t *testing.T) {
	p, w := standard(t)
	stageFrom(t, w, "1", "2", 2)
	r, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{Trial: 2})
	testenv.Must(t, err)
	trial, last := r.Active().ID, r.Current
	for _, want := range []BootChoice{{Trial: true, TriesLeft: 1}, {Trial: true, TriesLeft: 0}} {
		c, err := w.Boot(ctx)
		testenv.Must(t, err)
		if c.Deployment.ID != trial || c.Trial != want.Trial || c.TriesLeft != want.TriesLeft || c.FellBack != nil {
			t.Errorf("%+v", c)
		}
		r, err := p.Record()
		testenv.Must(t, err)
		if r.Trial.TriesLeft != want.TriesLeft || r.Active().ID != trial {
			t.Errorf("the record says %+v", r.Trial)
		}
	}
	c, err := w.Boot(ctx)
	testenv.Must(t, err)
	if c.Deployment.ID != last || c.FellBack == nil || c.FellBack.Deployment != trial || !strings.Contains(c.FellBack.Reason, "2 boots") {
		t.Errorf("%+v", c)
	}
	for range 3 { // no loop
		c, err = w.Boot(ctx)
		testenv.Must(t, err)
		if c.Deployment.ID != last || c.FellBack != nil || c.Trial {
			t.Errorf("%+v", c)
		}
	}
	r, err = p.Record()
	testenv.Must(t, err)
	if len(r.Fallbacks) != 1 || r.Fallbacks[0].To != last || r.Trial != nil {
		t.Errorf("%+v", r.Fallbacks)
	}
}

func TestRollbackEndsTrial(t *testing.T) {
	p, w := standard(t)
	put(t, p, "conf", "etc/f", "good")
	stageFrom(t, w, "1", "2", 2)
	r, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{Trial: 3})
	testenv.Must(t, err)
	trial := r.Active().ID
	put(t, p, "conf", "etc/f", "of the trial")
	r, err = w.Rollback(ctx, 0, "health check failed")
	testenv.Must(t, err)
	if r.Trial != nil || r.Active().Base != "1" || len(r.Fallbacks) != 1 ||
		r.Fallbacks[0].Reason != "health check failed" || r.Fallbacks[0].Deployment != trial {
		t.Errorf("%+v", r)
	}
	if got := get(t, p, "conf", "etc/f"); got != "good" {
		t.Errorf("conf: %q", got)
	}
}

func TestBootWithoutTheSubvolumes(t *testing.T) {
	p, w := standard(t)
	stageFrom(t, w, "1", "2", 2)
	_, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{Trial: 2})
	testenv.Must(t, err)
	testenv.Must(t, os.Rename(p.BasePath("2"), p.BasePath("hidden")))
	c, err := w.Boot(ctx)
	testenv.Must(t, err)
	if c.Deployment.Base != "1" || c.FellBack == nil || !strings.Contains(c.FellBack.Reason, "bases/2") {
		t.Errorf("%+v", c)
	}
	testenv.Must(t, os.Rename(p.BasePath("1"), p.BasePath("hidden1")))
	if _, err := w.Boot(ctx); err == nil || !strings.Contains(err.Error(), "bases/1") {
		t.Errorf("with nothing left: %v", err)
	}
}

// TestBootOnReadOnlyFilesystem: what cannot be counted is not tried.
func TestBootThatCannotCount(t *testing.T) {
	p, w := standard(t)
	stageFrom(t, w, "1", "2", 2)
	_, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{Trial: 2})
	testenv.Must(t, err)
	p.fault = func(step string) error { return unix.EROFS }
	c, err := w.Boot(ctx)
	testenv.Must(t, err)
	if c.Deployment.Base != "1" || c.Trial || c.FellBack == nil || !strings.Contains(c.FellBack.Reason, "cannot be counted") {
		t.Errorf("%+v", c)
	}
	p.fault = nil
	c, err = w.Boot(ctx)
	testenv.Must(t, err)
	if !c.Trial || c.TriesLeft != 1 {
		t.Errorf("with a working disk: %+v", c)
	}
}

func TestChangesDuringTrialStayOnTrial(t *testing.T) {
	_, w := standard(t)
	stageFrom(t, w, "1", "2", 2)
	_, err := w.Deploy(ctx, Deployment{Base: "2"}, DeployOptions{Trial: 3})
	testenv.Must(t, err)
	_, err = w.Boot(ctx)
	testenv.Must(t, err)
	r, err := w.AddOverlay(ctx, OverlayDef{Name: "x", Paths: []string{"/opt"}})
	testenv.Must(t, err)
	if r.Trial == nil || r.Trial.TriesLeft != 2 || r.Active().Overlay("x") == nil || r.Active().Base != "2" {
		t.Errorf("%+v", r.Trial)
	}
}

func TestDowngrade(t *testing.T) {
	_, w := standard(t)
	stageFrom(t, w, "1", "5", 5)
	stageFrom(t, w, "1", "4", 4)
	_, err := w.Deploy(ctx, Deployment{Base: "5"}, DeployOptions{Trial: 1})
	testenv.Must(t, err)
	// A trial that is not good does not count yet.
	_, err = w.Deploy(ctx, Deployment{Base: "4"}, DeployOptions{Trial: 1})
	testenv.Must(t, err)
	_, err = w.Deploy(ctx, Deployment{Base: "5"}, DeployOptions{})
	testenv.Must(t, err)
	_, err = w.Deploy(ctx, Deployment{Base: "4"}, DeployOptions{})
	if e, ok := errors.AsType[*DowngradeError](err); !ok || e.Have != 4 || e.Want != 5 {
		t.Errorf("%v", err)
	}
	r, err := w.Deploy(ctx, Deployment{Base: "4"}, DeployOptions{AllowDowngrade: true})
	testenv.Must(t, err)
	if !r.Active().Downgrade || r.Counter != 5 {
		t.Errorf("%+v", r)
	}
}

func TestRemoveOverlayAndBase(t *testing.T) {
	p, w := standard(t)
	put(t, p, "data", "home/f", "kept for rollback")
	r, err := w.RemoveOverlay(ctx, "data")
	testenv.Must(t, err)
	if r.Overlay("data") != nil || r.Active().Overlay("data") != nil || len(r.Active().Overlays) != 2 {
		t.Errorf("%+v", r)
	}
	_, err = w.RemoveOverlay(ctx, "data")
	if e, ok := errors.AsType[*UnknownError](err); !ok || cmp.Diff(e.Known, []string{"system", "conf"}) != "" {
		t.Errorf("%v", err)
	}
	_, err = w.Rollback(ctx, 0, "")
	testenv.Must(t, err)
	if get(t, p, "data", "home/f") != "kept for rollback" {
		t.Error("rollback does not bring it back")
	}
	err = w.RemoveBase(ctx, "1")
	if e, ok := errors.AsType[*InUseError](err); !ok || len(e.By) != 2 || !strings.Contains(e.By[0], "current") {
		t.Errorf("%v", err)
	}
	importSystem(t, w, "9", 0)
	testenv.Must(t, w.RemoveBase(ctx, "9"))
	if got := names(t, p.Dir()+"/bases"); cmp.Diff(got, []string{"1", "1.meta"}) != "" {
		t.Errorf("%q", got)
	}
}
