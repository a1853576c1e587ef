package subvolumes

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

func TestImport(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	dir := t.TempDir()
	src := system(t, dir, "1")
	phases := map[string]int64{}
	b, err := w.ImportTree(ctx, "1", src, ImportOptions{
		Counter: 3, Compatible: "board", Source: "import " + dir,
		Progress: func(phase string, done, _ int64) { phases[phase] = done },
	})
	testenv.Must(t, err)
	if b.Digest != digestOf(t, dir) || b.Digest != digestOf(t, p.BasePath("1")) {
		t.Error("the digests differ")
	}
	if b.Files != 2 || b.Bytes != 3001 || b.Counter != 3 || b.Compatible != "board" || !b.Pinned || b.UUID == "" {
		t.Errorf("%+v", b)
	}
	if phases["copy"] != b.Bytes || phases["verify"] != b.Bytes {
		t.Errorf("progress %v", phases)
	}
	r, err := p.Record()
	testenv.Must(t, err)
	if d := cmp.Diff(b, *r.Base("1"), cmp.AllowUnexported(BaseInfo{})); d != "" {
		t.Error(d)
	}
	_, err = w.ImportTree(ctx, "1", src, ImportOptions{})
	if _, ok := errors.AsType[*ExistsError](err); !ok {
		t.Errorf("a second time: %v", err)
	}
	if n, err := p.ExclusiveSize(ctx, "1"); err != nil || n > 1<<20 {
		t.Errorf("exclusive size %d, %v", n, err)
	}
}

func TestImportTar(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	dir := t.TempDir()
	system(t, dir, "1")
	tarball := testenv.Run(t, "tar", "-C", dir, "--xattrs", "--xattrs-include=*", "-cz", "--format=pax", ".")
	b, err := w.ImportTar(ctx, "1", strings.NewReader(tarball), ImportOptions{Want: digestOf(t, dir)})
	testenv.Must(t, err)
	if b.Digest != digestOf(t, p.BasePath("1")) {
		t.Error("the digests differ")
	}
	_, err = w.ImportTar(ctx, "2", strings.NewReader(tarball[:len(tarball)/2]), ImportOptions{})
	if err == nil {
		t.Error("half an archive was imported")
	}
	_, err = w.ImportTar(ctx, "2", strings.NewReader("text"), ImportOptions{})
	if _, ok := errors.AsType[*tree.ArchiveError](err); !ok {
		t.Errorf("%v", err)
	}
	var empty bytes.Buffer
	testenv.Must(t, tar.NewWriter(&empty).Close())
	c, cancel := context.WithCancel(ctx)
	_, err = w.ImportTar(c, "2", io.MultiReader(strings.NewReader(tarball[:100]), cancelReader(cancel)), ImportOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := names(t, p.Dir()+"/bases"); cmp.Diff(got, []string{"1", "1.meta"}) != "" {
		t.Errorf("failed imports left %q", got)
	}
}

type cancelReader context.CancelFunc

func (c cancelReader) Read([]byte) (int, error) { c(); return 0, nil }

func TestStageOfBase(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	importSystem(t, w, "1", 0)
	before := digestOf(t, p.BasePath("1"))
	b := stageFrom(t, w, "1", "2", 7)
	if digestOf(t, p.BasePath("1")) != before || b.Digest == before {
		t.Error("the old base changed or the new one did not")
	}
	var a1, a2 unix.Stat_t
	testenv.Must(t, unix.Lstat(p.BasePath("1")+"/usr/bin/prog", &a1))
	testenv.Must(t, unix.Lstat(p.BasePath("2")+"/usr/bin/prog", &a2))
	if a1.Ino != a2.Ino {
		t.Error("inode numbers differ: btrfs send -p would send everything")
	}
	testenv.Run(t, "sh", "-c", "btrfs send -q -p "+p.BasePath("1")+" "+p.BasePath("2")+" >/dev/null")
	f, err := p.OpenBase("2")
	testenv.Must(t, err)
	defer f.Close()
	if in, err := btrfs.SubvolumeInfo(f); err != nil || !in.ReadOnly {
		t.Errorf("%+v, %v", in, err)
	}
	for version, want := range map[string]string{
		"": "empty", "..": "only letters", "a/b": "only letters", "x.partial": "another meaning", "x.meta": "another meaning",
		"1": "exists", strings.Repeat("v", 129): "128 bytes", "a\n": "only letters",
	} {
		if _, err := w.NewStage(ctx, version, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("version %q: %v", version, err)
		}
	}
	_, err = w.NewStage(ctx, "3", "nope")
	if e, ok := errors.AsType[*UnknownError](err); !ok || cmp.Diff(e.Known, []string{"1", "2"}) != "" {
		t.Errorf("%v", err)
	}
}

func TestSealComparesDigest(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	s, err := w.NewStage(ctx, "1", "")
	testenv.Must(t, err)
	testenv.Must(t, os.WriteFile(s.Root().Name()+"/f", []byte("x"), 0o644))
	_, err = s.Seal(ctx, strings.Repeat("0", 64), SealOptions{})
	if e, ok := errors.AsType[*DigestError](err); !ok || e.Have != digestOf(t, s.Root().Name()) {
		t.Errorf("%v", err)
	}
	testenv.Must(t, s.Discard())
	testenv.Must(t, s.Discard())
	if got := names(t, p.Dir()+"/bases"); len(got) != 0 {
		t.Errorf("Discard left %q", got)
	}
}

// TestSealKeepsReceivedUUID, so that stock btrfs receive can go on from the base.
func TestSealKeepsReceivedUUID(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	s, err := w.NewStage(ctx, "1", "")
	testenv.Must(t, err)
	uuid := btrfs.UUID{1, 2, 3}
	b, err := s.Seal(ctx, "", SealOptions{Received: uuid, ReceivedAt: 77})
	testenv.Must(t, err)
	f, err := p.OpenBase("1")
	testenv.Must(t, err)
	defer f.Close()
	in, err := btrfs.SubvolumeInfo(f)
	testenv.Must(t, err)
	if in.ReceivedUUID != uuid || in.STransID != 77 || b.Received != uuid.String() {
		t.Errorf("%+v", in)
	}
}

// TestSealWithOpenDescriptor: whoever still has a file of the stage open for writing
// cannot change the base (switching the stage read-only would let it).
func TestSealWithOpenDescriptor(t *testing.T) {
	p := newPool(t)
	w := lock(t, p)
	s, err := w.NewStage(ctx, "1", "")
	testenv.Must(t, err)
	f, err := os.Create(s.Root().Name() + "/f")
	testenv.Must(t, err)
	defer f.Close()
	_, err = f.WriteString("sealed")
	testenv.Must(t, err)
	mapped, err := unix.Mmap(int(f.Fd()), 0, 6, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	testenv.Must(t, err)
	defer unix.Munmap(mapped)
	b, err := s.Seal(ctx, "", SealOptions{})
	testenv.Must(t, err)
	mapped[0] = 'X'
	f.WriteAt([]byte("YYY"), 3)
	f.Sync()
	if got, _ := os.ReadFile(p.BasePath("1") + "/f"); string(got) != "sealed" {
		t.Errorf("the base holds %q", got)
	}
	if digestOf(t, p.BasePath("1")) != b.Digest {
		t.Error("the base has changed")
	}
}

// TestReadOnlyFlagDoesNotSeal keeps the fact that the above rests on.
func TestReadOnlyFlagDoesNotSeal(t *testing.T) {
	dir := testenv.Btrfs(t)
	d, err := os.Open(dir)
	testenv.Must(t, err)
	defer d.Close()
	testenv.Must(t, btrfs.CreateSubvolume(d, "s"))
	s, err := os.Open(dir + "/s")
	testenv.Must(t, err)
	defer s.Close()
	f, err := os.Create(dir + "/s/f")
	testenv.Must(t, err)
	defer f.Close()
	testenv.Must(t, btrfs.SetReadOnly(s, true))
	if _, err := os.Create(dir + "/s/g"); !errors.Is(err, unix.EROFS) {
		t.Errorf("a new file: %v", err)
	}
	if _, err := f.WriteString("late"); err != nil {
		t.Skipf("this kernel refuses writes through open descriptors: %v", err)
	}
	if got, _ := os.ReadFile(dir + "/s/f"); string(got) != "late" {
		t.Errorf("it holds %q", got)
	}
}

// TestReadOnlyRename: within a directory a read-only subvolume can be renamed, across not.
func TestReadOnlyRename(t *testing.T) {
	dir := testenv.Btrfs(t)
	d, err := os.Open(dir)
	testenv.Must(t, err)
	defer d.Close()
	testenv.Must(t, btrfs.CreateSubvolume(d, "s"))
	s, err := os.Open(dir + "/s")
	testenv.Must(t, err)
	defer s.Close()
	testenv.Must(t, btrfs.Snapshot(d, "ro", s, true))
	testenv.Must(t, os.Rename(dir+"/ro", dir+"/renamed"))
	testenv.Must(t, os.Mkdir(dir+"/sub", 0o755))
	if err := os.Rename(dir+"/renamed", dir+"/sub/ro"); !errors.Is(err, unix.EROFS) {
		t.Logf("this kernel renames it across directories too: %v", err) // nothing relies on that
	}
}
