package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestWalkOrder(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"a/b", "a-b", "a.b", "a/B", "Z", "a/b/c", "é"} {
		testenv.Must(t, os.MkdirAll(filepath.Join(dir, p), 0o755))
	}
	walk := func(skip string) (got []string) {
		testenv.Must(t, Walk(context.Background(), testenv.Open(t, dir), func(e *Entry, _ Opener) error {
			got = append(got, e.Path)
			if e.Path == skip && skip != "" {
				return fs.SkipDir
			}
			return nil
		}))
		return got
	}
	want := []string{"", "Z", "a", "a/B", "a/b", "a/b/c", "a-b", "a.b", "é"}
	slices.SortFunc(want, comparePaths) // the order of Diff is the order of Walk
	if d := cmp.Diff(want, walk("")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"", "Z", "a", "a-b", "a.b", "é"}, walk("a")); d != "" {
		t.Error(d)
	}
}

func TestWalkStaysInSubvolume(t *testing.T) {
	dir := testenv.Btrfs(t)
	testenv.Run(t, "btrfs", "subvolume", "create", dir+"/outer")
	testenv.Run(t, "btrfs", "subvolume", "create", dir+"/outer/inner")
	testenv.Must(t, os.WriteFile(dir+"/outer/inner/secret", nil, 0o644))
	var got []string
	testenv.Must(t, Walk(context.Background(), testenv.Open(t, dir+"/outer"), func(e *Entry, _ Opener) error {
		got = append(got, e.Path)
		return nil
	}))
	if d := cmp.Diff([]string{"", "inner"}, got); d != "" {
		t.Error(d)
	}
}

func TestWalkStaysOutOfBindMounts(t *testing.T) {
	testenv.Root(t)
	dir := testenv.Dir(t)
	testenv.Must(t, os.MkdirAll(dir+"/a/inside", 0o755))
	testenv.Must(t, os.Mkdir(dir+"/b", 0o755))
	testenv.Must(t, unix.Mount(dir+"/a", dir+"/b", "", unix.MS_BIND, ""))
	var got []string
	err := Walk(context.Background(), testenv.Open(t, dir), func(e *Entry, _ Opener) error {
		got = append(got, e.Path)
		return nil
	})
	testenv.Must(t, unix.Unmount(dir+"/b", 0))
	testenv.Must(t, err)
	if d := cmp.Diff([]string{"", "a", "a/inside", "b"}, got); d != "" {
		t.Error(d)
	}
}

func TestWalkEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	for i := range 600 {
		testenv.Must(t, os.WriteFile(filepath.Join(dir, string(rune('a'+i%26))+strings.Repeat("x", i/26)), []byte("x"), 0o644))
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	err := Walk(ctx, testenv.Open(t, dir), func(*Entry, Opener) error {
		n++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || n > 300 {
		t.Errorf("got %v after %d entries", err, n)
	}
	if _, _, err := Digest(ctx, testenv.Open(t, dir), DigestOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Digest: %v", err)
	}
}

// TestDigestFormat writes the bytes that the package comment documents by hand, and
// also holds them as a constant: the digests of bases in the field must not change.
func TestDigestFormat(t *testing.T) {
	testenv.Root(t)
	dir := testenv.Dir(t)
	at := time.Unix(1700000000, 5)
	testenv.Must(t, os.WriteFile(dir+"/f", []byte("hello"), 0o640))
	testenv.Must(t, os.Link(dir+"/f", dir+"/g"))
	testenv.Must(t, os.Symlink("f", dir+"/l"))
	testenv.Must(t, unix.Mknod(dir+"/n", unix.S_IFCHR|0o600, int(unix.Mkdev(5, 300))))
	testenv.Must(t, unix.Setxattr(dir+"/f", "trusted.a", []byte("1"), 0))
	testenv.Must(t, os.Chmod(dir, 0o755))
	for _, n := range []string{"f", "l", "n", ""} {
		ts := unix.NsecToTimespec(at.UnixNano())
		testenv.Must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+n, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}

	var b []byte
	u32 := func(v uint32) { b = binary.LittleEndian.AppendUint32(b, v) }
	str := func(s string) { u32(uint32(len(s))); b = append(b, s...) }
	entry := func(path string, mode uint32, link string, xattrs ...string) {
		str(path)
		u32(mode)
		u32(0)
		u32(0)
		b = binary.LittleEndian.AppendUint64(b, 1700000000)
		u32(5)
		u32(uint32(len(xattrs) / 2))
		for _, x := range xattrs {
			str(x)
		}
		str(link)
	}
	b = append(b, "btrovl tree 1\n"...)
	entry("", unix.S_IFDIR|0o755, "")
	entry("f", unix.S_IFREG|0o640, "", "trusted.a", "1")
	b = binary.LittleEndian.AppendUint64(b, 5)
	hello := sha256.Sum256([]byte("hello"))
	b = append(b, hello[:]...)
	entry("g", unix.S_IFREG|0o640, "f", "trusted.a", "1")
	entry("l", unix.S_IFLNK|0o777, "")
	str("f")
	entry("n", unix.S_IFCHR|0o600, "")
	u32(5)
	u32(300)
	want := Sum(sha256.Sum256(b))
	got, stats := digest(t, dir)
	if got != want {
		t.Errorf("digest %s, by hand %s", got, want)
	}
	const frozen = "8038f38ed17442195874b7708e3eaf54965e9db2a6c219cf17c67fd5b05f2704"
	if got.String() != frozen {
		t.Errorf("digest %s, of all versions before %s", got, frozen)
	}
	if d := cmp.Diff(Stats{Files: 1, Dirs: 1, Symlinks: 1, Others: 1, Links: 1, Bytes: 5}, stats); d != "" {
		t.Error(d)
	}
}

// TestDigestSees changes one thing at a time.
func TestDigestSees(t *testing.T) {
	dir := testenv.Btrfs(t)
	fixture(t, dir, true)
	keepTime := func(name string, fn func(path string) error) func(string) error {
		return func(root string) error {
			path := filepath.Join(root, name)
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if err := fn(path); err != nil {
				return err
			}
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	last, _ := digest(t, dir)
	for _, c := range []struct {
		what string
		sees bool
		fn   func(root string) error
	}{
		{"content of the same size", true, keepTime("etc/deep/er/file", func(p string) error { return os.WriteFile(p, []byte("y"), 0) })},
		{"mode", true, keepTime("etc/empty", func(p string) error { return os.Chmod(p, 0o604) })},
		{"set-id bit", true, keepTime("bin/tool", func(p string) error { return os.Chmod(p, 0o755|os.ModeSetuid) })},
		{"owner", true, keepTime("etc/link", func(p string) error { return os.Lchown(p, 5, 5) })},
		{"mtime by a nanosecond", true, func(root string) error {
			ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(1700000000e9 + 1)}
			return unix.UtimesNanoAt(unix.AT_FDCWD, root+"/etc/empty", ts, 0)
		}},
		{"mtime of the root", true, func(root string) error { return os.Chtimes(root, time.Time{}, time.Unix(9, 9)) }},
		{"attribute's value", true, keepTime("home/joe/acl", func(p string) error { return unix.Setxattr(p, "user.note", []byte("n"), 0) })},
		{"attribute removed", true, keepTime("home/joe/acl", func(p string) error { return unix.Removexattr(p, "user.empty") })},
		{"attribute of a link", true, keepTime("etc/link", func(p string) error { return unix.Lsetxattr(p, "trusted.on-a-link", []byte("2"), 0) })},
		{"ACL", true, keepTime("home", func(p string) error { return unix.Removexattr(p, "system.posix_acl_default") })},
		{"hard link broken into a copy", true, keepTime("a-b", func(p string) error {
			if err := os.Remove(p + "/tool"); err != nil {
				return err
			}
			testenv.Run(t, "cp", "-a", dir+"/bin/tool", p+"/tool")
			return nil
		})},
		{"access time", false, func(root string) error {
			ts := []unix.Timespec{unix.NsecToTimespec(7e9), {Nsec: unix.UTIME_OMIT}}
			return unix.UtimesNanoAt(unix.AT_FDCWD, root+"/etc/empty", ts, 0)
		}},
		{"hole filled with zeros", false, keepTime("var/sparse", func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(make([]byte, 4096), 4<<20)
			return err
		})},
	} {
		testenv.Must(t, c.fn(dir))
		sum, _ := digest(t, dir)
		if c.sees == (sum == last) {
			t.Errorf("%s: digest changed: %v, want %v", c.what, sum != last, c.sees)
		}
		last = sum
	}
}

// TestDigestJobs: the same digest with any number of jobs, callbacks in order and progress that ends at all bytes.
func TestDigestJobs(t *testing.T) {
	dir := testenv.Btrfs(t)
	fixture(t, dir, true)
	want, stats := digest(t, dir)
	for _, jobs := range []int{1, 2, 7} {
		var paths []string
		var done int64
		sum, _, err := Digest(context.Background(), testenv.Open(t, dir), DigestOptions{
			Jobs: jobs,
			Progress: func(d, total int64) {
				if d <= done || total != 99 {
					t.Errorf("progress %d of %d after %d", d, total, done)
				}
				done = d
			},
			Total: 99,
			Entry: func(e *Entry, content Sum) error {
				paths = append(paths, e.Path)
				if regular := e.Mode&unix.S_IFMT == unix.S_IFREG && e.Link == ""; regular == (content == Sum{}) {
					t.Errorf("%s: content digest %s", e.Path, content)
				}
				return nil
			},
		})
		testenv.Must(t, err)
		if sum != want || done != stats.Bytes || !slices.IsSortedFunc(paths, comparePaths) {
			t.Errorf("%d jobs: %s, %d bytes; want %s, %d bytes", jobs, sum, done, want, stats.Bytes)
		}
	}
}

// TestErrorsCloseEverything counts descriptors.
func TestErrorsCloseEverything(t *testing.T) {
	dir := testenv.Btrfs(t)
	src := mkdir(t, dir+"/src")
	for i := range 300 {
		testenv.Must(t, os.WriteFile(filepath.Join(src.Name(), strings.Repeat("f", 1+i%200)+string(rune('a'+i/200))), []byte("content"), 0o644))
	}
	dst := mkdir(t, dir+"/dst")
	before := descriptors(t)
	boom := errors.New("boom")
	n := 0
	_, _, err := Digest(context.Background(), src, DigestOptions{Entry: func(*Entry, Sum) error {
		if n++; n == 100 {
			return boom
		}
		return nil
	}})
	if !errors.Is(err, boom) {
		t.Errorf("Digest: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err = Copy(ctx, dst, src, CopyOptions{Progress: func(done, _ int64) {
		if done > 500 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Copy: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	names, err := os.ReadDir("/proc/self/fd")
	testenv.Must(t, err)
	return len(names)
}

func TestDiff(t *testing.T) {
	dir := testenv.Btrfs(t)
	testenv.Run(t, "btrfs", "subvolume", "create", dir+"/a")
	fixture(t, dir+"/a", true)
	testenv.Run(t, "btrfs", "subvolume", "snapshot", dir+"/a", dir+"/b")
	a, b := dir+"/a", dir+"/b"
	// What changes by itself is set back, so that only what is meant differs.
	keepDir := func(path string, fn func()) {
		var st unix.Stat_t
		testenv.Must(t, unix.Lstat(path, &st))
		fn()
		testenv.Must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
	}
	diff := func() map[string]string {
		got := map[string]string{}
		var order []string
		testenv.Must(t, Diff(context.Background(), testenv.Open(t, a), testenv.Open(t, b), func(path string, kind Kind) error {
			got[path] += kind.String() + " "
			order = append(order, path)
			return nil
		}))
		if !slices.IsSortedFunc(order, comparePaths) {
			t.Errorf("not in walk order: %q", order)
		}
		return got
	}
	if got := diff(); len(got) != 0 {
		t.Fatalf("a snapshot differs: %v", got)
	}
	keepDir(b+"/a.b", func() {
		testenv.Must(t, os.WriteFile(b+"/a.b/new", nil, 0o644))
		testenv.Must(t, os.Remove(b+"/a.b/dangling"))
	})
	keepDir(b+"/var/big", func() { // one byte, same size, same time
		f, err := os.OpenFile(b+"/var/big", os.O_WRONLY, 0)
		testenv.Must(t, err)
		_, err = f.WriteAt([]byte{1}, 1<<19)
		testenv.Must(t, err)
		testenv.Must(t, f.Close())
	})
	keepDir(b+"/etc", func() {
		testenv.Must(t, os.RemoveAll(b+"/etc/deep"))
		testenv.Must(t, os.WriteFile(b+"/etc/deep", nil, 0o644))
	})
	testenv.Must(t, os.Chmod(b+"/bin/capable", 0o700))
	keepDir(b+"/etc/empty", func() { testenv.Must(t, unix.Setxattr(b+"/etc/empty", "user.x", nil, 0)) })
	want := map[string]string{
		"a.b/dangling": "removed ", "a.b/new": "added ", "var/big": "content ",
		"etc/deep": "removed added ", "etc/deep/er": "removed ", "etc/deep/er/file": "removed ",
		"bin/capable": "metadata ", "etc/empty": "metadata ",
	}
	if d := cmp.Diff(want, diff()); d != "" {
		t.Error(d)
	}
}

func TestParseSum(t *testing.T) {
	s := Sum(sha256.Sum256(nil))
	if got, err := ParseSum(s.String()); err != nil || got != s {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", "00", s.String()[1:], s.String() + "00", strings.Repeat("g", 64)} {
		if _, err := ParseSum(bad); err == nil {
			t.Errorf("%q is a digest", bad)
		}
	}
}
