package reset

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/stream"
	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes"
)

func TestBackupAndRestore(t *testing.T) {
	d := newDevice(t, testenv.Btrfs(t))
	before := d.digests()
	list, err := Backup(t.Context(), d.w, []string{"data", "conf", "data"})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != list[1].Name {
		t.Fatalf("not one moment: %+v", list)
	}
	d.write(d.upper("data"), "home/user/photo", "spoilt")
	if err := os.Remove(filepath.Join(d.upper("data"), "var/lib/app/records")); err != nil {
		t.Fatal(err)
	}
	spoilt := d.digests()
	r, err := Restore(t.Context(), d.w, "data", "")
	if err != nil {
		t.Fatal(err)
	}
	if want := "restore data " + list[0].Name; r.Active().Reason != want {
		t.Errorf("reason %q, expected %q", r.Active().Reason, want)
	}
	if got := d.digests(); got["data"] != before["data"] || got["system"] != before["system"] {
		t.Error("data is not what it was, or system changed")
	}
	// The backup can be written to by nobody, and is still there.
	d.write(d.upper("data"), "home/later", "x")
	if _, err := Restore(t.Context(), d.w, "data", list[0].Name); err != nil {
		t.Fatal(err)
	}
	if got := d.digests(); got["data"] != before["data"] {
		t.Error("the backup changed with what was restored from it")
	}
	for range 2 {
		if _, err := d.w.Rollback(t.Context(), r.Active().Parent, ""); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.digests(); got["data"] != spoilt["data"] {
		t.Error("rollback did not undo the restore")
	}
}

func TestBackupNames(t *testing.T) {
	d := newDevice(t, testenv.Btrfs(t))
	_, err := Backup(t.Context(), d.w, []string{"data", "photos"})
	if unknown, ok := errors.AsType[*subvolumes.UnknownError](err); !ok || unknown.Name != "photos" {
		t.Fatalf("error %v", err)
	}
	if list, err := List(d.p, ""); err != nil || len(list) != 0 {
		t.Errorf("a backup was made all the same: %v %v", list, err)
	}
	_, err = Restore(t.Context(), d.w, "data", "")
	if unknown, ok := errors.AsType[*subvolumes.UnknownError](err); !ok || unknown.Kind != "backup of overlay" {
		t.Errorf("restore without a backup: %v", err)
	}
	all, err := Backup(t.Context(), d.w, nil)
	if err != nil || len(all) != 3 {
		t.Fatalf("backup of all: %v %v", all, err)
	}
	second, err := Backup(t.Context(), d.w, []string{"data"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := List(d.p, "data")
	if err != nil || len(list) != 2 || list[1].Name != second[0].Name {
		t.Errorf("list %v %v", list, err)
	}
	if b, err := Find(d.p, "data", ""); err != nil || b.Name != second[0].Name {
		t.Errorf("the newest is %v %v", b, err)
	}
	_, err = Find(d.p, "data", "yesterday")
	if unknown, ok := errors.AsType[*subvolumes.UnknownError](err); !ok || len(unknown.Known) != 2 {
		t.Errorf("unknown backup: %v", err)
	}
	if _, err = List(d.p, "photos"); !errors.As(err, new(*subvolumes.UnknownError)) {
		t.Errorf("list of an unknown overlay: %v", err)
	}
}

func TestExportAndRestoreStream(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := newDevice(t, dir)
	if err := unix.Setxattr(filepath.Join(d.upper("data"), "home/user"), "user.note", []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	d.whiteout("data", "home/hidden")
	before := d.digests()
	list, err := Backup(t.Context(), d.w, []string{"data"})
	if err != nil {
		t.Fatal(err)
	}
	var sent bytes.Buffer
	if err := Export(t.Context(), d.p, list[0], &sent); err != nil {
		t.Fatal(err)
	}
	// The stock tool takes it.
	rx := filepath.Join(dir, "rx")
	if err := os.Mkdir(rx, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "data.send")
	if err := os.WriteFile(file, sent.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "btrfs", "-q", "receive", "-f", file, rx)

	// Another machine takes it, into an overlay of the same name.
	other := newDevice(t, testenv.Btrfs(t))
	r, err := RestoreStream(t.Context(), other.w, "data", bytes.NewReader(sent.Bytes()), file)
	if err != nil {
		t.Fatal(err)
	}
	if got := other.digests(); got["data"] != before["data"] {
		t.Error("the restored overlay differs from the exported one")
	}
	if r.Active().Reason != "restore data --from data.send" {
		t.Errorf("reason %q", r.Active().Reason)
	}
	if found, err := other.p.Check(t.Context(), true); err != nil || slices.ContainsFunc(found, func(f subvolumes.Finding) bool { return f.Severity == "error" }) {
		t.Errorf("after it: %v %v", found, err)
	}

	// What is not a backup is refused, and the overlay stays as it is.
	active := other.record().Active().ID
	for what, b := range map[string][]byte{
		"a truncated stream": sent.Bytes()[:sent.Len()/2],
		"something else":     []byte(strings.Repeat("noise", 100)),
		"nothing":            nil,
	} {
		_, err := RestoreStream(t.Context(), other.w, "data", bytes.NewReader(b), "x")
		if !errors.As(err, new(*stream.FormatError)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := other.record().Active().ID; got != active {
		t.Errorf("deployment %d is active, expected %d", got, active)
	}
}

func TestChanges(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := newDevice(t, dir)
	base, upper := filepath.Join(dir, "tree"), d.upper("system")
	// Copied up and as it was: no change. Only touched: metadata.
	copyUp(t, base, upper, "usr/bin/tool")
	copyUp(t, base, upper, "usr/bin/touched")
	if err := os.Chmod(filepath.Join(upper, "usr/bin/touched"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	r := d.record()
	for _, o := range r.Active().Overlays {
		err := Changes(t.Context(), d.p, r.Active(), o.Name, func(c Change) error {
			s := c.Kind + " " + c.Path
			if c.MetadataOnly {
				s += " (metadata)"
			}
			got[o.Name] = append(got[o.Name], s)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]string{
		"system": {"changed /usr/bin/touched (metadata)", "added /usr/local", "added /usr/local/new"},
		"conf":   {"changed /etc/conf", "deleted /etc/gone"},
		"data":   {"added /home/user", "added /home/user/photo", "added /var/lib/app/records"},
	} {
		if !slices.Equal(got[name], want) {
			t.Errorf("%s: %q, expected %q", name, got[name], want)
		}
	}
	err := Changes(t.Context(), d.p, r.Active(), "photos", nil)
	if !errors.As(err, new(*subvolumes.UnknownError)) {
		t.Errorf("unknown overlay: %v", err)
	}
}

func TestChangesOfOpaqueAndReplacedDirectories(t *testing.T) {
	d := newDevice(t, testenv.Btrfs(t))
	upper := d.upper("conf")
	if err := os.Remove(filepath.Join(upper, "etc/gone")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(upper, "etc/conf")); err != nil {
		t.Fatal(err)
	}
	// An opaque directory hides gone and brings conf back.
	d.write(upper, "etc/conf", "new")
	if err := unix.Setxattr(filepath.Join(upper, "etc"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	sys := d.upper("system")
	// A directory of the base became a file.
	if err := os.WriteFile(filepath.Join(sys, "var"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// A whiteout of a directory, and one of nothing.
	if err := os.RemoveAll(filepath.Join(sys, "usr")); err != nil {
		t.Fatal(err)
	}
	d.whiteout("system", "usr")
	d.whiteout("system", "nothing")
	r := d.record()
	for name, want := range map[string][]string{
		"conf":   {"changed /etc/conf", "deleted /etc/gone"},
		"system": {"deleted /usr", "deleted /usr/bin", "deleted /usr/bin/tool", "deleted /usr/bin/touched", "deleted /var/lib", "deleted /var/lib/app", "changed /var"},
	} {
		var got []string
		if err := Changes(t.Context(), d.p, r.Active(), name, func(c Change) error {
			got = append(got, c.Kind+" "+c.Path)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, expected %q", name, got, want)
		}
	}
}

// copyUp copies a file with mode and times, as a view does.
func copyUp(t *testing.T, base, upper, rel string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(upper, filepath.Dir(rel)), 0o755); err != nil {
		t.Fatal(err)
	}
	testenv.Run(t, "cp", "-a", filepath.Join(base, rel), filepath.Join(upper, rel))
}
