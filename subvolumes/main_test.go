package subvolumes

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var ctx = context.Background()

// stamp is the time of the files in test bases.
var stamp = time.Unix(1e9, 0)

// newPool makes an empty pool.
func newPool(t testing.TB) *Pool {
	t.Helper()
	p, err := Init(testenv.Btrfs(t) + "/pool")
	testenv.Must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func lock(t testing.TB, p *Pool) *Writer {
	t.Helper()
	w, err := p.Lock(ctx, t.Name(), 20*time.Second)
	testenv.Must(t, err)
	t.Cleanup(func() { w.Close() })
	return w
}

// system writes a small system tree whose content depends on mark.
func system(t testing.TB, dir, mark string) *os.File {
	t.Helper()
	for _, d := range []string{"etc", "var/lib/app", "home", "usr/bin"} {
		testenv.Must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	testenv.Must(t, os.WriteFile(dir+"/etc/release", []byte(mark), 0o644))
	testenv.Must(t, os.WriteFile(dir+"/usr/bin/prog", []byte(strings.Repeat(mark, 3000)), 0o755))
	testenv.Must(t, os.Chown(dir+"/home", 7, 8))
	testenv.Must(t, os.Chmod(dir+"/var/lib/app", 0o2770))
	testenv.Must(t, unix.Setxattr(dir+"/var/lib/app", "user.note", []byte("base"), 0))
	testenv.Must(t, unix.Setxattr(dir+"/var/lib", "trusted.overlay.origin", []byte("x"), 0))
	testenv.Must(t, filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, stamp, stamp)
	}))
	for _, d := range []string{"usr/bin", "usr", "etc", "home", "var/lib/app", "var/lib", "var", "."} {
		testenv.Must(t, os.Chtimes(filepath.Join(dir, d), stamp, stamp))
	}
	f, err := os.Open(dir)
	testenv.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func importSystem(t testing.TB, w *Writer, version string, counter uint64) BaseInfo {
	t.Helper()
	b, err := w.ImportTree(ctx, version, system(t, t.TempDir(), version), ImportOptions{Counter: counter, Source: "import test"})
	testenv.Must(t, err)
	return b
}

// standard makes a pool with base 1 and the overlays conf (follows the base), data and
// system, and the first deployment.
func standard(t testing.TB) (*Pool, *Writer) {
	t.Helper()
	p := newPool(t)
	w := lock(t, p)
	importSystem(t, w, "1", 1)
	addOverlays(t, w)
	_, err := w.EnsureDeployment(ctx, "")
	testenv.Must(t, err)
	return p, w
}

func addOverlays(t testing.TB, w *Writer) {
	t.Helper()
	for _, def := range []OverlayDef{
		{Name: "system", Paths: []string{"/"}},
		{Name: "data", Paths: []string{"/var/lib/app", "/home"}},
		{Name: "conf", Paths: []string{"/etc"}, FollowBase: true},
	} {
		_, err := w.AddOverlay(ctx, def)
		testenv.Must(t, err)
	}
}

// file is the path of a file in an overlay of the active deployment.
func file(t testing.TB, p *Pool, overlay, path string) string {
	t.Helper()
	r, err := p.Record()
	testenv.Must(t, err)
	ref := r.Active().Overlay(overlay)
	if ref == nil {
		t.Fatalf("deployment %d has no overlay %q", r.Active().ID, overlay)
	}
	return filepath.Join(p.OverlayPath(*ref), "upper", path)
}

func put(t testing.TB, p *Pool, overlay, path, content string) {
	t.Helper()
	testenv.Must(t, os.WriteFile(file(t, p, overlay, path), []byte(content), 0o644))
}

// get returns a file's content, "" if it is not there.
func get(t testing.TB, p *Pool, overlay, path string) string {
	t.Helper()
	b, err := os.ReadFile(file(t, p, overlay, path))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// stageFrom makes base version of base from by changing a file, as an update does.
func stageFrom(t testing.TB, w *Writer, from, version string, counter uint64) BaseInfo {
	t.Helper()
	s, err := w.NewStage(ctx, version, from)
	testenv.Must(t, err)
	defer s.Discard()
	testenv.Must(t, os.WriteFile(s.Root().Name()+"/etc/release", []byte(version), 0o644))
	b, err := s.Seal(ctx, "", SealOptions{Counter: counter, Source: "bundle"})
	testenv.Must(t, err)
	return b
}

func digestOf(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	testenv.Must(t, err)
	defer f.Close()
	sum, _, err := tree.Digest(ctx, f, tree.DigestOptions{})
	testenv.Must(t, err)
	return sum.String()
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	f, err := os.Open(dir)
	testenv.Must(t, err)
	defer f.Close()
	list, err := listNames(f)
	testenv.Must(t, err)
	return list
}
