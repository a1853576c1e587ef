package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// sameTree compares two trees by a peer that is not ours: rsync, told to report every
// difference that it knows of, contents included.
func sameTree(t *testing.T, a, b string) {
	t.Helper()
	out := testenv.Run(t, "rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", "--numeric-ids", a+"/", b+"/")
	if out != "" {
		t.Errorf("rsync sees differences between %s and %s:\n%s", a, b, out)
	}
	// rsync compares whole seconds here and does not look at sub-second times of directories.
	da, _ := digest(t, a)
	db, _ := digest(t, b)
	if da != db {
		Diff(context.Background(), testenv.Open(t, a), testenv.Open(t, b), func(path string, kind Kind) error {
			t.Errorf("%s: %s", kind, path)
			return nil
		})
		t.Errorf("digests %s and %s", da, db)
	}
}

func diskBytes(t *testing.T, path string) int64 {
	var st unix.Stat_t
	testenv.Must(t, unix.Lstat(path, &st))
	return st.Blocks * 512
}

func TestCopy(t *testing.T) {
	dir := testenv.Btrfs(t)
	testenv.Command(t, "rsync")
	elsewhere := testenv.Dir(t) // another file system: no reflinks
	fixture(t, dir+"/src", true)
	for name, dst := range map[string]string{"reflink": dir + "/dst", "across file systems": elsewhere + "/dst"} {
		t.Run(name, func(t *testing.T) {
			stats, err := Copy(context.Background(), mkdir(t, dst), testenv.Open(t, dir+"/src"), CopyOptions{})
			testenv.Must(t, err)
			_, want := digest(t, dir+"/src")
			if stats != want {
				t.Errorf("stats %+v, want %+v", stats, want)
			}
			sameTree(t, dir+"/src", dst)
			if n := diskBytes(t, dst+"/var/sparse"); n > 1<<20 {
				t.Errorf("the sparse file takes %d bytes", n)
			}
		})
	}
	t.Run("as cp does", func(t *testing.T) {
		testenv.Run(t, "cp", "-a", dir+"/src", dir+"/cp")
		sameTree(t, dir+"/cp", dir+"/dst")
	})
	t.Run("from a file system without attributes", func(t *testing.T) {
		back := dir + "/back"
		_, err := Copy(context.Background(), mkdir(t, back), testenv.Open(t, elsewhere+"/dst"), CopyOptions{Jobs: 1})
		testenv.Must(t, err)
		sameTree(t, dir+"/src", back)
	})
	t.Run("not into a full directory", func(t *testing.T) {
		_, err := Copy(context.Background(), testenv.Open(t, dir+"/dst"), testenv.Open(t, dir+"/src"), CopyOptions{})
		if !errors.Is(err, unix.ENOTEMPTY) {
			t.Error(err)
		}
	})
}

func TestCopyNoChecksums(t *testing.T) {
	// A file without checksums cannot be reflinked to one with: EINVAL.
	dir := testenv.Btrfs(t)
	src := mkdir(t, dir+"/src")
	testenv.Must(t, os.WriteFile(dir+"/src/nocow", nil, 0o644))
	testenv.Run(t, "chattr", "+C", dir+"/src/nocow")
	testenv.Must(t, os.WriteFile(dir+"/src/nocow", bytes.Repeat([]byte("data"), 9999), 0o644))
	_, err := Copy(context.Background(), mkdir(t, dir+"/dst"), src, CopyOptions{})
	testenv.Must(t, err)
	a, _ := digest(t, dir+"/src")
	if b, _ := digest(t, dir+"/dst"); a != b {
		t.Error("the copy differs")
	}
}

// TestExtractWhatTarWrites packs a tree with GNU tar in all the ways that occur and
// compares what Extract and GNU tar make of it.
func TestExtractWhatTarWrites(t *testing.T) {
	dir := testenv.Btrfs(t)
	testenv.Command(t, "rsync")
	fixture(t, dir+"/src", false)
	all := []string{"--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"}
	for name, args := range map[string][]string{
		"pax.tar":     {"--format=pax"},
		"pax.tar.gz":  {"--format=pax", "--gzip"},
		"pax.tar.xz":  {"--format=pax", "--xz"},
		"pax.tar.zst": {"--format=pax", "--zstd"},
		"pax.tar.bz2": {"--format=pax", "--bzip2"},
		"sparse.tar":  {"--format=pax", "--sparse"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name)
			testenv.Run(t, "tar", append(append([]string{"-C", dir + "/src", "-cf", file}, args...), append(all, ".")...)...)
			f, err := os.Open(file)
			testenv.Must(t, err)
			defer f.Close()
			st, _ := f.Stat()
			var done int64
			dst := dir + "/ours-" + name
			stats, err := Extract(context.Background(), mkdir(t, dst), f, ExtractOptions{
				Progress: func(d, _ int64) { done = d }, Total: st.Size(),
			})
			testenv.Must(t, err)
			if done != st.Size() {
				t.Errorf("progress ends at %d of %d bytes", done, st.Size())
			}
			if _, want := digest(t, dir+"/src"); stats != want {
				t.Errorf("stats %+v, want %+v", stats, want)
			}
			sameTree(t, dir+"/src", dst)
			if n := diskBytes(t, dst+"/var/sparse"); n > 1<<20 {
				t.Errorf("the sparse file takes %d bytes", n)
			}
		})
	}
	t.Run("as tar does", func(t *testing.T) {
		mkdir(t, dir+"/tar")
		testenv.Run(t, "tar", append([]string{"-C", dir + "/tar", "-xpf", dir + "/pax.tar"}, all...)...)
		sameTree(t, dir+"/tar", dir+"/ours-pax.tar")
	})
	t.Run("GNU format", func(t *testing.T) {
		// It carries no attributes and whole seconds only, but sparse files in its own way.
		testenv.Run(t, "tar", "-C", dir+"/src", "--format=gnu", "--sparse", "--numeric-owner", "-cf", dir+"/gnu.tar", ".")
		mkdir(t, dir+"/gnu")
		testenv.Run(t, "tar", "-C", dir+"/gnu", "-xpf", dir+"/gnu.tar", "--numeric-owner")
		f, err := os.Open(dir + "/gnu.tar")
		testenv.Must(t, err)
		defer f.Close()
		_, err = Extract(context.Background(), mkdir(t, dir+"/ours-gnu"), f, ExtractOptions{})
		testenv.Must(t, err)
		sameTree(t, dir+"/gnu", dir+"/ours-gnu")
	})
}

// archive is a small tar writer for crafted archives.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Uname // the tests' place for content
		h.Uname = ""
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		testenv.Must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(content))
			testenv.Must(t, err)
		}
	}
	testenv.Must(t, w.Close())
	return b.Bytes()
}

func TestExtractImpliedDirectoriesAndReplacement(t *testing.T) {
	testenv.Root(t)
	data := archive(t,
		tar.Header{Name: "x/y/z", Uname: "first"},
		tar.Header{Name: "./x/link", Typeflag: tar.TypeSymlink, Linkname: "y"},
		tar.Header{Name: "/abs", Uname: "leading slash"},
		tar.Header{Name: "x/y/z", Uname: "second"},
		tar.Header{Name: "x/hard", Typeflag: tar.TypeLink, Linkname: "/x/y/z"},
		tar.Header{Name: "x/y/", Typeflag: tar.TypeDir, Mode: 0o700},
	)
	var sums []Sum
	for range 2 {
		dir := testenv.Dir(t)
		stats, err := Extract(context.Background(), testenv.Open(t, dir), bytes.NewReader(data), ExtractOptions{})
		testenv.Must(t, err)
		sum, counted := digest(t, dir)
		if stats != counted {
			t.Errorf("stats %+v, the tree has %+v", stats, counted)
		}
		sums = append(sums, sum)
		b, err := os.ReadFile(dir + "/x/hard")
		if err != nil || string(b) != "second" {
			t.Errorf("x/hard: %q, %v", b, err)
		}
	}
	if sums[0] != sums[1] {
		t.Error("one archive gives two digests")
	}
}

func TestExtractRefuses(t *testing.T) {
	testenv.Root(t)
	good := archive(t, tar.Header{Name: "f", Uname: strings.Repeat("content", 1000)})
	dev := tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}
	for _, c := range []struct {
		name, want string
		data       []byte
		o          ExtractOptions
	}{
		{"empty input", "truncated or no tar", nil, ExtractOptions{}},
		{"text", "damaged or truncated", bytes.Repeat([]byte("no archive at all\n"), 99), ExtractOptions{}},
		{"cut in content", "truncated", good[:2000], ExtractOptions{}},
		{"cut between entries", "truncated", good[:len(good)-1024], ExtractOptions{}},
		{"cut in the end mark", "truncated", good[:len(good)-512], ExtractOptions{}},
		{"dot dot", "leads out", archive(t, tar.Header{Name: "a/../../etc/passwd"}), ExtractOptions{}},
		{"dot dot link", "leads out", archive(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "../x"}), ExtractOptions{}},
		{"through a link", "no directory", archive(t,
			tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}, tar.Header{Name: "l/f"}), ExtractOptions{}},
		{"a directory over a link, then through it", "", archive(t,
			tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"},
			tar.Header{Name: "l", Typeflag: tar.TypeDir}, tar.Header{Name: "l/f"}), ExtractOptions{}},
		{"a hard link through a link", "no directory", archive(t,
			tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"},
			tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l/victim"}), ExtractOptions{}},
		{"a link over a directory", "a directory already", archive(t,
			tar.Header{Name: "d", Typeflag: tar.TypeDir},
			tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}), ExtractOptions{}},
		{"a link for the root", "must be a directory", archive(t,
			tar.Header{Name: "./", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"}), ExtractOptions{}},
		{"a link to nothing", "not in the archive before", archive(t,
			tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "none"}), ExtractOptions{}},
		{"a link to the root", "link to the root", archive(t,
			tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/"}), ExtractOptions{}},
		{"device where not allowed", "not allowed", archive(t, dev), ExtractOptions{NoDevices: true}},
		{"too large", "exceeds the limit", good, ExtractOptions{MaxBytes: 6999}},
		{"attribute without a class", "extended attribute", archive(t, tar.Header{Name: "f", Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.nonsense": "x"}}), ExtractOptions{}},
		{"damaged ACL", "ACL entry", archive(t, tar.Header{Name: "f", Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.acl.access": "user:::::"}}), ExtractOptions{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := testenv.Dir(t)
			outside := mkdir(t, dir+"/outside").Name()
			testenv.Must(t, os.WriteFile(outside+"/victim", []byte("untouched"), 0o644))
			before, _ := digest(t, outside)
			data := bytes.ReplaceAll(c.data, []byte("OUTSIDE"), []byte("../outs")) // of one length
			testenv.Must(t, os.Symlink("outside", dir+"/outs"))
			_, err := Extract(context.Background(), mkdir(t, dir+"/root"), bytes.NewReader(fixChecksums(data)), c.o)
			var ae *ArchiveError
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.As(err, &ae) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want *ArchiveError with %q", err, c.want)
			}
			if after, _ := digest(t, outside); after != before {
				t.Error("it reached outside")
			}
		})
	}
	for _, kind := range []string{"gz", "xz", "zst"} {
		t.Run("damaged "+kind, func(t *testing.T) {
			dir := testenv.Dir(t)
			testenv.Must(t, os.WriteFile(dir+"/a.tar", archive(t, tar.Header{Name: "f", Uname: randomText()}), 0o644))
			tool := map[string]string{"gz": "gzip", "xz": "xz", "zst": "zstd"}[kind]
			testenv.Run(t, tool, "-q", dir+"/a.tar")
			data, err := os.ReadFile(dir + "/a.tar." + kind)
			testenv.Must(t, err)
			for _, n := range []int{len(data) / 2, len(data) - 2} {
				cut := data[:n]
				if _, err := Extract(context.Background(), mkdir(t, testenv.Dir(t)), bytes.NewReader(cut), ExtractOptions{}); err == nil {
					t.Errorf("%d of %d bytes were accepted", n, len(data))
				}
			}
			flipped := bytes.Clone(data)
			flipped[len(data)/2] ^= 1
			if _, err := Extract(context.Background(), mkdir(t, testenv.Dir(t)), bytes.NewReader(flipped), ExtractOptions{}); err == nil {
				t.Error("a flipped bit was accepted")
			}
		})
	}
}

func randomText() string {
	var b strings.Builder
	for i := range 20000 {
		b.WriteByte(byte('a' + i*i%23 + i%3))
	}
	return b.String()
}

// fixChecksums makes the header checksums right again after a name was replaced.
func fixChecksums(data []byte) []byte {
	data = bytes.Clone(data)
	for off := 0; off+512 <= len(data); off += 512 {
		b := data[off : off+512]
		if string(b[257:262]) != "ustar" {
			continue
		}
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:156], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7),
			'0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
	}
	return data
}

func TestParseACL(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		err  bool
	}{
		{"user::rw-\nuser:root:r--\ngroup::r--\nmask::r--\nother::---\n", 5, false},
		{"u::rwx,g::r-x,o::r-x,g:0:r--:0,m::rwx", 5, false},
		{"user:nosuchname:rwx:4242,user::r--,group::---,mask::rwx,other:---", 5, false},
		{"user::rw- #effective:r--", 1, false},
		{"", 0, false},
		{"user", 0, true},
		{"user:no such name:rwx", 0, true},
		{"king::rwx", 0, true},
		{"user::rwz", 0, true},
		{strings.Repeat("user::rwx,", 5000), 0, true},
	} {
		acl, err := parseACL(c.text)
		if (err != nil) != c.err || !c.err && c.n > 0 && len(acl) != 4+8*c.n || c.n == 0 && acl != nil {
			t.Errorf("%.50q: %d bytes, %v", c.text, len(acl), err)
		}
	}
}

// FuzzExtract looks for archives that reach outside or that make Extract hang or panic.
func FuzzExtract(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "d/f", Uname: "content"}, tar.Header{Name: "d/l", Typeflag: tar.TypeLink, Linkname: "d/f"}))
	f.Add(archive(f, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, tar.Header{Name: "l/victim", Uname: "x"}))
	f.Add(archive(f, tar.Header{Name: "../outside/victim", Uname: "x"}))
	f.Add(archive(f, tar.Header{Name: "f", Format: tar.FormatPAX, PAXRecords: map[string]string{
		"SCHILY.xattr.user.a": "b", "SCHILY.acl.access": "user::rwx,group::---,other::---", "LIBARCHIVE.xattr.user%2Eb": "YQ=="}}))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte("\xfd7zXZ\x00\x00\x04"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		dir := t.TempDir()
		outside := mkdir(t, dir+"/outside").Name()
		testenv.Must(t, os.WriteFile(outside+"/victim", []byte("untouched"), 0o644))
		before, _ := digest(t, dir+"/outside")
		root := mkdir(t, dir+"/root")
		ctx := context.Background()
		_, err := Extract(ctx, root, bytes.NewReader(data), ExtractOptions{MaxBytes: 1 << 20, NoDevices: true})
		if after, _ := digest(t, outside); after != before {
			t.Fatalf("it reached outside (%v)", err)
		}
		if names, _ := os.ReadDir(dir); len(names) != 2 {
			t.Fatalf("it made something beside the root (%v)", err)
		}
	})
}
