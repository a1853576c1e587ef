package reset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// device is a pool with base 1, overlays system (/), conf (/etc, follows the
// base) and data (/home, /var/lib/app), a deployment, and something written to
// each overlay as a view would write it.
type device struct {
	t *testing.T
	p *subvolumes.Pool
	w *subvolumes.Writer
}

func newDevice(t *testing.T, dir string) *device {
	t.Helper()
	p, err := subvolumes.Init(filepath.Join(dir, "pool"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.Lock(t.Context(), "test", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); p.Close() })
	d := &device{t, p, w}
	src := filepath.Join(dir, "tree")
	for _, sub := range []string{"etc", "home", "usr/bin", "var/lib/app"} {
		if err := os.MkdirAll(filepath.Join(src, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d.write(src, "etc/conf", "base")
	d.write(src, "etc/gone", "base")
	d.write(src, "usr/bin/tool", "base")
	d.write(src, "usr/bin/touched", "base")
	d.importBase("1", src)
	for _, def := range []subvolumes.OverlayDef{
		{Name: "system", Paths: []string{"/"}},
		{Name: "conf", Paths: []string{"/etc"}, FollowBase: true},
		{Name: "data", Paths: []string{"/home", "/var/lib/app"}},
	} {
		if _, err := w.AddOverlay(t.Context(), def); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.EnsureDeployment(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	d.write(d.upper("system"), "usr/local/new", "system")
	d.write(d.upper("conf"), "etc/conf", "conf")
	d.whiteout("conf", "etc/gone")
	d.write(d.upper("data"), "home/user/photo", strings.Repeat("photo", 10000))
	d.write(d.upper("data"), "var/lib/app/records", "records")
	return d
}

func (d *device) importBase(version, src string) {
	d.t.Helper()
	f, err := os.Open(src)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if _, err := d.w.ImportTree(d.t.Context(), version, f, subvolumes.ImportOptions{}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) write(root, rel, text string) {
	d.t.Helper()
	p := filepath.Join(root, rel)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o640); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) whiteout(overlay, rel string) {
	d.t.Helper()
	if err := unix.Mknod(filepath.Join(d.upper(overlay), rel), unix.S_IFCHR, 0); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) record() *subvolumes.Record {
	d.t.Helper()
	r, err := d.p.Record()
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// upper is the upper directory of an overlay in the active deployment.
func (d *device) upper(overlay string) string {
	d.t.Helper()
	ref := d.record().Active().Overlay(overlay)
	if ref == nil {
		d.t.Fatalf("no overlay %s", overlay)
	}
	return filepath.Join(d.p.OverlayPath(*ref), "upper")
}

// digests are those of all overlays' upper directories.
func (d *device) digests() map[string]string {
	d.t.Helper()
	out := map[string]string{}
	for _, ref := range d.record().Active().Overlays {
		f, err := os.Open(d.upper(ref.Name))
		if err != nil {
			d.t.Fatal(err)
		}
		sum, _, err := tree.Digest(d.t.Context(), f, tree.DigestOptions{})
		f.Close()
		if err != nil {
			d.t.Fatal(err)
		}
		out[ref.Name] = sum.String()
	}
	return out
}

// files lists the regular files and whiteouts of an overlay.
func (d *device) files(overlay string) []string {
	d.t.Helper()
	var out []string
	root := d.upper(overlay)
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, strings.TrimPrefix(p, root+"/"))
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func TestResetKeepsWhatIsKept(t *testing.T) {
	d := newDevice(t, testenv.Btrfs(t))
	before := d.digests()
	r, err := Reset(t.Context(), d.w, Options{Keep: []string{"data"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Active().Reason; got != "reset --keep data" {
		t.Errorf("reason %q", got)
	}
	after := d.digests()
	if after["data"] != before["data"] {
		t.Error("the kept overlay changed")
	}
	for _, name := range []string{"system", "conf"} {
		if f := d.files(name); len(f) > 0 {
			t.Errorf("%s is not empty: %v", name, f)
		}
	}
	// A reset proves no base and loses no definition.
	if r.Trial != nil || len(r.Overlays) != 3 || r.Active().Base != "1" {
		t.Errorf("after the reset: %+v", r)
	}
	if _, err := d.w.Rollback(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	if got := d.digests(); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("rollback did not undo the reset:\n%v\n%v", before, got)
	}
}

func TestResetUnknownNameChangesNothing(t *testing.T) {
	d := newDevice(t, testenv.Btrfs(t))
	state, err := os.ReadFile(filepath.Join(d.p.Dir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	subs := d.incarnations()
	_, err = Reset(t.Context(), d.w, Options{Keep: []string{"data", "dat"}})
	unknown, ok := errors.AsType[*subvolumes.UnknownError](err)
	if !ok || unknown.Name != "dat" || !slices.Equal(unknown.Known, []string{"system", "conf", "data"}) {
		t.Fatalf("error %v", err)
	}
	again, err := os.ReadFile(filepath.Join(d.p.Dir(), "state"))
	if err != nil || !bytes.Equal(state, again) {
		t.Errorf("the state changed: %v", err)
	}
	if got := d.incarnations(); !slices.Equal(got, subs) {
		t.Errorf("subvolumes were made: %v, before %v", got, subs)
	}
}

func (d *device) incarnations() []string {
	d.t.Helper()
	names, err := os.ReadDir(filepath.Join(d.p.Dir(), "overlays"))
	if err != nil {
		d.t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		out = append(out, n.Name())
	}
	return out
}

func TestResetToFactory(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := newDevice(t, dir)
	d.write(filepath.Join(dir, "tree"), "etc/conf", "second")
	d.importBase("2", filepath.Join(dir, "tree"))
	if _, err := d.w.Deploy(t.Context(), subvolumes.Deployment{Base: "2", Reason: "update"}, subvolumes.DeployOptions{Trial: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.w.MarkGood(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := d.digests()
	r, err := Reset(t.Context(), d.w, Options{ToFactory: true, Keep: []string{"conf", "data"}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Active().Base != "1" || r.Trial != nil {
		t.Errorf("active is %+v, trial %v", r.Active(), r.Trial)
	}
	after := d.digests()
	if after["data"] != before["data"] || after["conf"] != before["conf"] {
		t.Error("a kept overlay changed")
	}
	if f := d.files("system"); len(f) > 0 {
		t.Errorf("system is not empty: %v", f)
	}
	// What is written to the kept overlay that follows the base must not reach the
	// deployment that a rollback goes to.
	d.write(d.upper("conf"), "etc/after", "x")
	if r, err = d.w.Rollback(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	if r.Active().Base != "2" {
		t.Errorf("rolled back to base %s", r.Active().Base)
	}
	if got := d.digests(); got["conf"] != before["conf"] {
		t.Error("the overlay that follows the base did not come back")
	}
}

func TestResetInATrialKeepsTheTrial(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := newDevice(t, dir)
	d.write(filepath.Join(dir, "tree"), "etc/conf", "second")
	d.importBase("2", filepath.Join(dir, "tree"))
	if _, err := d.w.Deploy(t.Context(), subvolumes.Deployment{Base: "2"}, subvolumes.DeployOptions{Trial: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.w.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := Reset(t.Context(), d.w, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Trial == nil || r.Trial.TriesLeft != 1 || r.Active().Base != "2" {
		t.Errorf("trial %+v, active %+v", r.Trial, r.Active())
	}
}

func TestResetWithoutDeployment(t *testing.T) {
	p, err := subvolumes.Init(filepath.Join(testenv.Btrfs(t), "pool"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w, err := p.Lock(t.Context(), "test", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for what, err := range map[string]error{
		"reset":   ignore(Reset(t.Context(), w, Options{})),
		"backup":  ignore(Backup(t.Context(), w, nil)),
		"restore": ignore(Restore(t.Context(), w, "data", "")),
	} {
		if _, ok := errors.AsType[*subvolumes.UnknownError](err); !ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func ignore[T any](_ T, err error) error { return err }

// On a full disk a reset must work, and after garbage collection the disk must
// not be full any more.
func TestResetOnAFullDisk(t *testing.T) {
	dir := testenv.NewBtrfs(t, 512<<20)
	d := newDevice(t, dir)
	fill(t, filepath.Join(d.upper("system"), "big"))
	before := d.digests()
	r, err := Reset(t.Context(), d.w, Options{Keep: []string{"data"}})
	if err != nil {
		t.Fatalf("a reset on a full disk: %v", err)
	}
	if got := d.digests(); got["data"] != before["data"] {
		t.Error("the kept overlay changed")
	}
	if f := d.files("system"); len(f) > 0 {
		t.Errorf("system is not empty: %v", f)
	}
	// The way back goes, and with it the space that the wiped overlay takes.
	if _, err := d.w.Commit(t.Context(), func(r *subvolumes.Record) error { r.Previous = 0; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.w.Collect(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if now := d.record(); now.Active().ID != r.Active().ID {
		t.Errorf("deployment %d is active, expected %d", now.Active().ID, r.Active().ID)
	}
}

// fill writes until the disk is full, in ever smaller pieces.
func fill(t *testing.T, path string) {
	t.Helper()
	for n := 0; n < 2; n++ {
		f, err := os.Create(fmt.Sprint(path, n))
		if err != nil {
			t.Fatal(err)
		}
		for size := 1 << 20; size >= 4096; size /= 4 {
			buf := make([]byte, size)
			for i := range buf {
				buf[i] = byte(i * 7)
			}
			for {
				if _, err := f.Write(buf); err != nil {
					break
				}
				if err := f.Sync(); err != nil {
					break
				}
			}
		}
		f.Close()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &st); err != nil {
		t.Fatal(err)
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free > 8<<20 {
		t.Fatalf("the disk is not full: %d bytes are free", free)
	}
}

func TestCancelledResetIsNone(t *testing.T) {
	d := newDevice(t, testenv.Btrfs(t))
	active := d.record().Active().ID
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Reset(ctx, d.w, Options{}); err == nil {
		t.Skip("a cancelled context did not stop it; the record decides")
	}
	if got := d.record().Active().ID; got != active {
		t.Errorf("deployment %d is active, expected %d", got, active)
	}
}
