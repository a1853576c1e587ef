package subvolumes

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestBackupAndRestore(t *testing.T) {
	p, w := standard(t)
	put(t, p, "data", "home/f", "one")
	put(t, p, "conf", "etc/f", "conf")
	b, err := w.Backup(ctx, []string{"data", "conf", "data"})
	testenv.Must(t, err)
	if len(b) != 2 || b[0].Overlay != "conf" || b[1].Overlay != "data" || b[0].Name != b[1].Name {
		t.Fatalf("%+v", b)
	}
	put(t, p, "data", "home/f", "two")
	b2, err := w.Backup(ctx, []string{"data"})
	testenv.Must(t, err)
	list, err := p.Backups("data")
	testenv.Must(t, err)
	if d := cmp.Diff([]BackupInfo{b[1], b2[0]}, list); d != "" {
		t.Error(d)
	}
	all, err := p.Backups("")
	testenv.Must(t, err)
	if len(all) != 3 || all[0].Overlay != "conf" {
		t.Errorf("%+v", all)
	}
	r, err := p.Record()
	testenv.Must(t, err)
	ref, err := w.RestoreOverlay(ctx, *r.Overlay("data"), b[1])
	testenv.Must(t, err)
	refs := r.Active().Overlays
	for i := range refs {
		if refs[i].Name == "data" {
			refs[i] = ref
		}
	}
	_, err = w.Deploy(ctx, Deployment{Base: "1", Overlays: refs, Reason: "restore"}, DeployOptions{})
	testenv.Must(t, err)
	if got := get(t, p, "data", "home/f"); got != "one" {
		t.Errorf("restored: %q", got)
	}
	put(t, p, "data", "home/f", "writable")
	f, err := p.OpenBackup("data", b[1].Name)
	testenv.Must(t, err)
	f.Close()
	if got, _ := os.ReadFile(p.BackupPath("data", b[1].Name) + "/upper/home/f"); string(got) != "one" {
		t.Errorf("the backup holds %q", got)
	}
	testenv.Must(t, w.RemoveBackup(ctx, b[1]))
	_, err = p.OpenBackup("data", b[1].Name)
	if e, ok := errors.AsType[*UnknownError](err); !ok || cmp.Diff(e.Known, []string{b2[0].Name}) != "" {
		t.Errorf("%v", err)
	}
	_, err = w.Backup(ctx, []string{"data", "nope"})
	if e, ok := errors.AsType[*UnknownError](err); !ok || e.Name != "nope" || len(e.Known) != 3 {
		t.Errorf("%v", err)
	}
}

// TestBackupGroupIsWhole: after a crash between two renames the group is there as a
// whole, before the first one not at all.
func TestBackupGroupIsWhole(t *testing.T) {
	p, w := standard(t)
	put(t, p, "data", "home/f", "data")
	cut := errors.New("cut")
	for step, want := range map[string]int{
		"snapshot backup of data": 0, "rename backup of conf": 0, "sync directory of backups of conf": 2, "rename backup of data": 2,
	} {
		p.fault = func(s string) error {
			if s == step {
				panic(cut)
			}
			return nil
		}
		func() {
			defer func() {
				if recover() != any(cut) {
					t.Errorf("step %q was not reached", step)
				}
			}()
			w.Backup(ctx, []string{"data", "conf"})
		}()
		p.fault = nil
		list, err := p.Backups("")
		testenv.Must(t, err)
		if len(list) != want {
			t.Errorf("cut before %q: %+v, want %d", step, list, want)
		}
		for _, b := range list {
			f, err := p.OpenBackup(b.Overlay, b.Name)
			testenv.Must(t, err)
			f.Close()
		}
		testenv.Must(t, w.settleBackups(ctx))
		again, err := p.Backups("")
		testenv.Must(t, err)
		if d := cmp.Diff(list, again); d != "" {
			t.Errorf("cut before %q: settling changed the list: %s", step, d)
		}
		for _, b := range list {
			testenv.Must(t, w.RemoveBackup(ctx, b))
		}
	}
}
