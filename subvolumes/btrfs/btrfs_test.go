package btrfs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// show is what btrfs-progs, the peer, says of a subvolume.
func show(t testing.TB, path, field string) string {
	t.Helper()
	for line := range strings.Lines(testenv.Run(t, "btrfs", "subvolume", "show", path)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && k == field {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("btrfs subvolume show %s has no %q", path, field)
	return ""
}

func TestIsBtrfs(t *testing.T) {
	is, typ, err := IsBtrfs(testenv.Open(t, testenv.Btrfs(t)))
	if !is || typ != "btrfs" || err != nil {
		t.Errorf("%v, %q, %v", is, typ, err)
	}
	for path, want := range map[string]string{"/proc": "type 0x9fa0", "/dev/shm": "tmpfs"} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		is, typ, err := IsBtrfs(f)
		f.Close()
		if is || typ != want || err != nil {
			t.Errorf("%s: %v, %q, %v", path, is, typ, err)
		}
	}
}

func TestSubvolumes(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := testenv.Open(t, dir)
	testenv.Must(t, CreateSubvolume(d, "s"))
	if err := CreateSubvolume(d, "s"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second time: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("n", 256)} {
		if err := CreateSubvolume(d, name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	testenv.Must(t, os.WriteFile(dir+"/s/f", []byte("content"), 0o644))
	s := testenv.Open(t, dir+"/s")
	testenv.Must(t, Snapshot(d, "rw", s, false))
	testenv.Must(t, Snapshot(d, "ro", s, true))
	for name, readonly := range map[string]bool{"s": false, "rw": false, "ro": true} {
		f := testenv.Open(t, filepath.Join(dir, name))
		in, err := SubvolumeInfo(f)
		testenv.Must(t, err)
		if is, err := IsSubvolume(f); !is || err != nil {
			t.Errorf("%s is no subvolume: %v", name, err)
		}
		if in.ReadOnly != readonly || in.Name != name || in.UUID.String() != show(t, f.Name(), "UUID") ||
			in.Created.Format("2006-01-02 15:04:05 -0700") != show(t, f.Name(), "Creation time") {
			t.Errorf("%s: %+v", name, in)
		}
		parent := show(t, f.Name(), "Parent UUID")
		if parent == "-" {
			parent = ""
		}
		if in.ParentUUID.String() != parent {
			t.Errorf("%s: parent %s, want %s", name, in.ParentUUID, parent)
		}
	}
	if is, _ := IsSubvolume(d); is {
		t.Error("a directory is a subvolume")
	}
	if err := os.WriteFile(dir+"/ro/g", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only snapshot: %v", err)
	}
	// Deleting one in use succeeds, which is why package subvolumes counts users.
	held := testenv.Open(t, dir+"/ro/f")
	testenv.Must(t, DestroySubvolume(d, "ro"))
	buf := make([]byte, 7)
	if _, err := held.ReadAt(buf, 0); err != nil || string(buf) != "content" {
		t.Errorf("a deleted subvolume's open file: %q, %v", buf, err)
	}
	if err := DestroySubvolume(d, "ro"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a second time: %v", err)
	}
}

func TestDestroyTree(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := testenv.Open(t, dir)
	testenv.Must(t, CreateSubvolume(d, "s"))
	testenv.Must(t, os.MkdirAll(dir+"/s/a/b", 0o755))
	testenv.Must(t, CreateSubvolume(testenv.Open(t, dir+"/s/a/b"), "inner"))
	testenv.Must(t, os.Mkdir(dir+"/s/a/b/inner/c", 0o755))
	testenv.Must(t, CreateSubvolume(testenv.Open(t, dir+"/s/a/b/inner/c"), "innermost"))
	testenv.Must(t, os.Symlink("/", dir+"/s/root"))
	if err := DestroySubvolume(d, "s"); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("with another inside: %v", err)
	}
	testenv.Must(t, DestroyTree(context.Background(), d, "s"))
	if _, err := os.Lstat(dir + "/s"); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestReceivedAndReadOnly(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := testenv.Open(t, dir)
	testenv.Must(t, CreateSubvolume(d, "s"))
	s := testenv.Open(t, dir+"/s")
	uuid := UUID{0xab, 1: 0xcd, 15: 0xef}
	testenv.Must(t, SetReceived(s, uuid, 4711))
	testenv.Must(t, SetReadOnly(s, true))
	in, err := SubvolumeInfo(s)
	testenv.Must(t, err)
	if in.ReceivedUUID != uuid || in.STransID != 4711 || !in.ReadOnly || show(t, s.Name(), "Received UUID") != uuid.String() {
		t.Errorf("%+v", in)
	}
	// A read-only snapshot keeps it, a writable one loses it.
	testenv.Must(t, Snapshot(d, "ro", s, true))
	testenv.Must(t, Snapshot(d, "rw", s, false))
	for name, want := range map[string]UUID{"ro": uuid, "rw": {}} {
		if in, err := SubvolumeInfo(testenv.Open(t, filepath.Join(dir, name))); err != nil || in.ReceivedUUID != want {
			t.Errorf("%s: %+v, %v", name, in, err)
		}
	}
	testenv.Must(t, SetReadOnly(s, false))
	testenv.Must(t, os.WriteFile(dir+"/s/f", nil, 0o644))
}

func TestCloneAndExtents(t *testing.T) {
	dir := testenv.Btrfs(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
	testenv.Must(t, os.WriteFile(dir+"/a", content, 0o644))
	a := testenv.Open(t, dir+"/a")
	b, err := os.Create(dir + "/b")
	testenv.Must(t, err)
	defer b.Close()
	before, err := Exclusive(context.Background(), testenv.Open(t, dir))
	testenv.Must(t, err)
	if before != uint64(len(content)) {
		t.Errorf("exclusive %d, want %d", before, len(content))
	}
	testenv.Must(t, Clone(b, a))
	testenv.Must(t, CloneRange(b, int64(len(content)), a, 4096, 8192))
	got, err := os.ReadFile(dir + "/b")
	testenv.Must(t, err)
	if !bytes.Equal(got, append(slices.Clone(content), content[4096:4096+8192]...)) {
		t.Error("the clone differs")
	}
	for _, f := range []*os.File{a, b} {
		var n uint64
		testenv.Must(t, Extents(f, func(e Extent) error {
			if !e.Shared || e.Inline || e.Delayed || e.Encoded {
				t.Errorf("%s: %+v", f.Name(), e)
			}
			n += e.Length
			return nil
		}))
		if st, _ := f.Stat(); n != uint64(st.Size()) {
			t.Errorf("%s: extents of %d bytes", f.Name(), n)
		}
	}
	if n, err := Exclusive(context.Background(), testenv.Open(t, dir)); err != nil || n != 0 {
		t.Errorf("exclusive %d, %v", n, err)
	}
	other, err := os.Create(testenv.Dir(t) + "/x")
	testenv.Must(t, err)
	defer other.Close()
	if err := Clone(other, a); !errors.Is(err, unix.EXDEV) {
		t.Errorf("across file systems: %v", err)
	}
}

// TestExtentsOfManyPieces needs more than one call to the kernel.
func TestExtentsOfManyPieces(t *testing.T) {
	dir := testenv.Btrfs(t)
	f, err := os.Create(dir + "/f")
	testenv.Must(t, err)
	defer f.Close()
	const pieces = 300
	for i := range pieces {
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), int64(i)*8192)
		testenv.Must(t, err)
	}
	n := 0
	testenv.Must(t, Extents(f, func(e Extent) error {
		if e.Logical != uint64(n)*8192 || e.Length != 4096 {
			t.Errorf("extent %d: %+v", n, e)
		}
		n++
		return nil
	}))
	if n != pieces {
		t.Errorf("%d extents", n)
	}
}

// TestSnapshotWritesItsSource keeps the fact that a snapshot is durable with what was
// written to its source, while SetReadOnly and SetReceived leave data unwritten.
func TestSnapshotWritesItsSource(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := testenv.Open(t, dir)
	dirty := func(name string) *os.File {
		testenv.Must(t, CreateSubvolume(d, name))
		testenv.Must(t, os.WriteFile(filepath.Join(dir, name, "f"), bytes.Repeat([]byte("data"), 1<<15), 0o644))
		return testenv.Open(t, filepath.Join(dir, name))
	}
	// The number of extents in the tree itself: delayed data has none yet.
	onDisk := func(s *os.File) (n int) {
		testenv.Must(t, Search(s, 0, Key{Type: ExtentData}, Key{1 << 62, ExtentData, 1 << 62}, 0, func(it Item) error {
			if it.Type == ExtentData {
				n++
			}
			return nil
		}))
		return n
	}
	a := dirty("a")
	testenv.Must(t, SetReceived(a, UUID{1}, 1))
	testenv.Must(t, SetReadOnly(a, true))
	if onDisk(a) != 0 {
		t.Log("the data was written already; nothing to see")
	}
	b := dirty("b")
	testenv.Must(t, Snapshot(d, "snap", b, true))
	if n := onDisk(testenv.Open(t, dir+"/snap")); n == 0 {
		t.Error("the snapshot's data is not on disk")
	}
	in, err := SubvolumeInfo(testenv.Open(t, dir+"/snap"))
	testenv.Must(t, err)
	running, err := StartSync(d)
	testenv.Must(t, err)
	if in.OTransID >= running+1 {
		t.Errorf("the snapshot of generation %d is not committed, %d runs", in.OTransID, running)
	}
	testenv.Must(t, WaitSync(d, running))
	testenv.Must(t, WaitSync(d, 0))
	testenv.Must(t, Sync(d))
	testenv.Must(t, Syncfs(d))
}

func TestSend(t *testing.T) {
	dir := testenv.Btrfs(t)
	d := testenv.Open(t, dir)
	testenv.Must(t, CreateSubvolume(d, "s"))
	testenv.Must(t, os.WriteFile(dir+"/s/f", bytes.Repeat([]byte("content of a file\n"), 30000), 0o644))
	s := testenv.Open(t, dir+"/s")
	testenv.Must(t, Snapshot(d, "1", s, true))
	testenv.Must(t, os.WriteFile(dir+"/s/g", []byte("new"), 0o644))
	testenv.Must(t, os.Rename(dir+"/s/f", dir+"/s/h"))
	testenv.Must(t, Snapshot(d, "2", s, true))
	one, two := testenv.Open(t, dir+"/1"), testenv.Open(t, dir+"/2")
	send := func(sub *os.File, o SendOptions) []byte {
		var b bytes.Buffer
		testenv.Must(t, Send(context.Background(), &b, sub, o))
		return b.Bytes()
	}
	full := send(one, SendOptions{})
	delta := send(two, SendOptions{Parent: one})
	if out := testenv.Run(t, "btrfs", "send", "-q", "-f", dir+"/peer", dir+"/1"); out != "" {
		t.Log(out)
	}
	peer, err := os.ReadFile(dir + "/peer")
	testenv.Must(t, err)
	if !bytes.Equal(full, peer) {
		t.Errorf("%d bytes, btrfs-progs sends %d others", len(full), len(peer))
	}
	if len(delta) > 2000 || !bytes.HasPrefix(delta, []byte("btrfs-stream\x00")) {
		t.Errorf("the difference has %d bytes", len(delta))
	}
	if n := len(send(one, SendOptions{NoFileData: true})); n > 2000 {
		t.Errorf("without data it has %d bytes", n)
	}
	boom := errors.New("boom")
	if err := Send(context.Background(), failing{boom}, one, SendOptions{}); !errors.Is(err, boom) {
		t.Errorf("with a failing writer: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Send(ctx, blocking{cancel, ctx}, one, SendOptions{}) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it does not end with its context")
	}
	if err := Send(context.Background(), failing{}, s, SendOptions{}); err == nil {
		t.Error("a writable subvolume was sent")
	}
}

type failing struct{ err error }

func (f failing) Write(b []byte) (int, error) { return len(b), f.err }

// blocking cancels at the first write and takes everything.
type blocking struct {
	cancel context.CancelFunc
	ctx    context.Context
}

func (b blocking) Write(p []byte) (int, error) { b.cancel(); <-b.ctx.Done(); return len(p), nil }

func TestInodePaths(t *testing.T) {
	dir := testenv.Btrfs(t)
	testenv.Must(t, CreateSubvolume(testenv.Open(t, dir), "s"))
	testenv.Must(t, os.MkdirAll(dir+"/s/d/e", 0o755))
	testenv.Must(t, os.WriteFile(dir+"/s/d/f", nil, 0o644))
	testenv.Must(t, os.Link(dir+"/s/d/f", dir+"/s/d/e/g"))
	var st unix.Stat_t
	testenv.Must(t, unix.Stat(dir+"/s/d/f", &st))
	paths, err := InodePaths(testenv.Open(t, dir+"/s"), uint64(st.Ino))
	testenv.Must(t, err)
	slices.Sort(paths)
	if !slices.Equal(paths, []string{"d/e/g", "d/f"}) {
		t.Errorf("%q", paths)
	}
	for i := range 200 {
		testenv.Must(t, os.Link(dir+"/s/d/f", dir+"/s/d/"+strings.Repeat("x", 100)+string(rune('a'+i%26))+strings.Repeat("y", i/26)))
	}
	paths, err = InodePaths(testenv.Open(t, dir+"/s"), uint64(st.Ino))
	if err != nil || len(paths) != 202 {
		t.Errorf("%d paths, %v", len(paths), err)
	}
	if _, err := InodePaths(testenv.Open(t, dir+"/s"), 1<<40); !errors.Is(err, unix.ENOENT) {
		t.Errorf("an inode that is not there: %v", err)
	}
}

func TestUsage(t *testing.T) {
	mnt := testenv.NewBtrfs(t, 1<<30)
	d := testenv.Open(t, mnt)
	sp, err := Usage(d)
	testenv.Must(t, err)
	if sp.Total != 1<<30 || sp.Free < 800<<20 || sp.Free > sp.Total || sp.MetadataUsed == 0 ||
		sp.MetadataUsed > sp.MetadataTotal || sp.Unallocated == 0 || sp.Unallocated > sp.Total {
		t.Errorf("%+v", sp)
	}
	testenv.Must(t, os.WriteFile(mnt+"/f", make([]byte, 100<<20), 0o644))
	testenv.Must(t, Syncfs(d))
	after, err := Usage(d)
	testenv.Must(t, err)
	if used := sp.Free - after.Free; used < 90<<20 || used > 200<<20 {
		t.Errorf("100 MiB written, %d bytes less", used)
	}
	if n, err := NodeSize(d); n != 16384 || err != nil {
		t.Errorf("node size %d, %v", n, err)
	}
	id, err := FilesystemUUID(d)
	testenv.Must(t, err)
	if want := testenv.Run(t, "findmnt", "-no", "UUID", mnt); id.String() != strings.TrimSpace(want) {
		t.Errorf("fsid %s, want %s", id, want)
	}
}

func TestUUID(t *testing.T) {
	const text = "0b1e5a3c-7d1f-4c43-9d25-3f0f6f6a2b11"
	u, err := ParseUUID(text)
	if err != nil || u.String() != text {
		t.Errorf("%s, %v", u, err)
	}
	var v UUID
	b, _ := u.MarshalText()
	if err := v.UnmarshalText(b); err != nil || v != u {
		t.Errorf("%s, %v", v, err)
	}
	if z, err := ParseUUID(""); err != nil || !z.IsZero() || z.String() != "" {
		t.Errorf("%q, %v", z, err)
	}
	for _, bad := range []string{"x", text[1:], text + "0", strings.Replace(text, "-", "0", 1), strings.Replace(text, "0", "g", 1),
		"0b1e5a3c-7d1f-4c43-7d1f-4c43-96aFb11"} {
		if _, err := ParseUUID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
