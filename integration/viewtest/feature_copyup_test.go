package viewtest

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func descriptorBeforeCopyUp(t *testing.T, root string) {
	r := open(t, os.O_RDONLY, root, "f")
	b := make([]byte, 3)
	_, err := r.ReadAt(b, 0) // the page is cached now
	ok(t, err)
	w := open(t, os.O_WRONLY, root, "f")
	_, err = w.WriteAt([]byte("new"), 0)
	ok(t, err)
	_, err = r.ReadAt(b, 0)
	ok(t, err)
	if string(b) != "new" {
		t.Errorf("the descriptor from before still reads %q", b)
	}
	ok(t, os.Truncate(filepath.Join(root, "f"), 5))
	if fi, err := r.Stat(); err != nil || fi.Size() != 5 {
		t.Errorf("its size is %d, %v", fi.Size(), err)
	}
}

func mappingBeforeCopyUp(t *testing.T, root string) {
	r := open(t, os.O_RDONLY, root, "f")
	m, err := unix.Mmap(int(r.Fd()), 0, 12, unix.PROT_READ, unix.MAP_SHARED)
	ok(t, err)
	defer unix.Munmap(m)
	if string(m) != "old content\n" {
		t.Fatalf("mapped: %q", m)
	}
	_, err = open(t, os.O_WRONLY, root, "f").WriteAt([]byte("new"), 0)
	ok(t, err)
	if string(m) != "new content\n" {
		t.Errorf("the mapping from before still shows %q", m)
	}
}

func baseHardLinks(t *testing.T, root string) {
	a, b := lstat(t, root, "h1"), lstat(t, root, "h2")
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Fatalf("before: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
	_, err := open(t, os.O_WRONLY, root, "h1").WriteAt([]byte("X"), 0)
	ok(t, err)
	got, err := os.ReadFile(filepath.Join(root, "h2"))
	ok(t, err)
	if got[0] != 'X' {
		t.Error("the other name shows the old content")
	}
	if b2 := lstat(t, root, "h2"); b2.Ino != a.Ino || b2.Nlink != 2 {
		t.Errorf("after: inode %d with %d links, expected %d with 2", b2.Ino, b2.Nlink, a.Ino)
	}
	ok(t, os.Link(filepath.Join(root, "h2"), filepath.Join(root, "h3")))
	ok(t, os.Remove(filepath.Join(root, "h1")))
	if c := lstat(t, root, "h3"); c.Ino != a.Ino || c.Nlink != 2 {
		t.Errorf("third name: inode %d with %d links, expected %d with 2", c.Ino, c.Nlink, a.Ino)
	}
}

func renamedBaseDirectory(t *testing.T, root string) {
	ino := lstat(t, root, "d/sub/deep/file").Ino
	ok(t, os.WriteFile(filepath.Join(root, "d/sub/new"), []byte("new"), 0o644))
	ok(t, os.Remove(filepath.Join(root, "d/sub/file")))
	cwd := open(t, os.O_RDONLY, root, "d/sub/deep")
	ok(t, os.Rename(filepath.Join(root, "d"), filepath.Join(root, "e")))
	ok(t, os.Rename(filepath.Join(root, "e/sub/deep"), filepath.Join(root, "deep")))
	_, err := os.Lstat(filepath.Join(root, "d"))
	wantErr(t, err, os.ErrNotExist)
	_, err = os.Lstat(filepath.Join(root, "e/sub/file"))
	wantErr(t, err, os.ErrNotExist)
	content(t, "in d", root, "e/file")
	content(t, "new", root, "e/sub/new")
	content(t, "in deep", root, "deep/file")
	if got := lstat(t, root, "deep/file").Ino; got != ino {
		t.Errorf("inode %d, expected %d", got, ino)
	}
	var st unix.Stat_t
	ok(t, unix.Fstatat(int(cwd.Fd()), "..", &st, 0))
	if want := lstat(t, root); st.Ino != want.Ino {
		t.Errorf(".. of a moved directory is inode %d, expected the root's %d", st.Ino, want.Ino)
	}
	ok(t, os.Mkdir(filepath.Join(root, "d"), 0o755))
	if names, err := os.ReadDir(filepath.Join(root, "d")); err != nil || len(names) != 0 {
		t.Errorf("a new directory in its place holds %v, %v", names, err)
	}
}

func recreatedDirectory(t *testing.T, root string) {
	ok(t, os.RemoveAll(filepath.Join(root, "d")))
	ok(t, os.MkdirAll(filepath.Join(root, "d/sub"), 0o755))
	for _, dir := range []string{"d", "d/sub"} {
		names, err := os.ReadDir(filepath.Join(root, dir))
		ok(t, err)
		for _, n := range names {
			if n.Name() != "sub" {
				t.Errorf("%s/%s came back", dir, n.Name())
			}
		}
	}
	_, err := os.Lstat(filepath.Join(root, "d/sub/deep"))
	wantErr(t, err, os.ErrNotExist)
}

func inodeNumbersStay(t *testing.T, root string) {
	for _, name := range []string{"f", "h1", "d", "d/link", "d/sub/file"} {
		before := lstat(t, root, name)
		ok(t, os.Lchown(filepath.Join(root, name), 7, 7))
		if after := lstat(t, root, name); after.Ino != before.Ino || after.Dev != before.Dev {
			t.Errorf("%s was inode %d:%d and is %d:%d after copy up", name, before.Dev, before.Ino, after.Dev, after.Ino)
		}
	}
}

func listedInodes(t *testing.T, root string) {
	ok(t, os.Chmod(filepath.Join(root, "f"), 0o600))
	ok(t, os.Chmod(filepath.Join(root, "d"), 0o700))
	ok(t, os.WriteFile(filepath.Join(root, "new"), nil, 0o644))
	for _, dir := range []string{".", "d", "d/sub"} {
		f := open(t, os.O_RDONLY, root, dir)
		buf := make([]byte, 1<<16)
		n, err := unix.Getdents(int(f.Fd()), buf)
		ok(t, err)
		for b := buf[:n]; len(b) > 0; {
			l := *(*uint16)(unsafe.Pointer(&b[16]))
			ino := *(*uint64)(unsafe.Pointer(&b[0]))
			name, _, _ := strings.Cut(string(b[19:l]), "\x00")
			b = b[l:]
			if name == ".." && dir == "." {
				continue // of the mount point: the file system cannot know
			}
			if st := lstat(t, root, dir, name); st.Ino != ino {
				t.Errorf("%s/%s is listed as inode %d, stat says %d", dir, name, ino, st.Ino)
			}
		}
	}
}

func mappingCoherence(t *testing.T, root string) {
	f := open(t, os.O_RDWR, root, "h1")
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	ok(t, err)
	defer unix.Munmap(m)
	m[5000] = 'M'
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 5000)
	ok(t, err)
	if b[0] != 'M' {
		t.Error("read does not see the mapping's change")
	}
	_, err = f.WriteAt([]byte("W"), 10)
	ok(t, err)
	if m[10] != 'W' {
		t.Error("the mapping does not see a write")
	}
	ok(t, unix.Msync(m, unix.MS_SYNC))
	d := open(t, os.O_RDONLY|unix.O_DIRECT, root, "h1")
	page := alignedBuffer(8192)
	_, err = d.ReadAt(page, 0)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if page[5000] != 'M' || page[10] != 'W' {
		t.Error("O_DIRECT does not see what was synced")
	}
}

func appends(t *testing.T, root string) {
	var wg sync.WaitGroup
	const n = 300
	for _, c := range "abcd" {
		f := open(t, os.O_WRONLY|os.O_APPEND, root, "f")
		wg.Go(func() {
			for range n {
				if _, err := f.WriteString(strings.Repeat(string(c), 9) + "\n"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(filepath.Join(root, "f"))
	ok(t, err)
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(lines) != 1+4*n {
		t.Errorf("%d lines, expected %d", len(lines), 1+4*n)
	}
	for _, l := range lines[1:] {
		if len(l) != 9 || strings.Trim(l, l[:1]) != "" {
			t.Fatalf("a mixed line: %q", l)
		}
	}
}
