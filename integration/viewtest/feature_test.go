package viewtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// features are what users of unions complain about, and what random programs
// do not reach: each one is exact on a local file system. A check gets the root of
// a tree that featureBase made.
var features = []struct {
	name  string
	check func(t *testing.T, root string)
}{
	{"descriptor from before copy up", descriptorBeforeCopyUp},
	{"mapping from before copy up", mappingBeforeCopyUp},
	{"hard links of the base", baseHardLinks},
	{"renamed base directory", renamedBaseDirectory},
	{"recreated directory", recreatedDirectory},
	{"inode numbers stay", inodeNumbersStay},
	{"d_ino is st_ino", listedInodes},
	{"unlinking while reading a directory", unlinkWhileReading},
	{"removed working directory", removedCwd},
	{"deleted but open", deletedButOpen},
	{"holes", holes},
	{"mapping and read agree", mappingCoherence},
	{"flock", flocks},
	{"open file description locks", ofdLocks},
	{"leases", leases},
	{"inotify", inotify},
	{"birth time", birthTime},
	{"file handles", fileHandles},
	{"sockets and pipes", socketsAndPipes},
	{"statfs", statfs},
	{"names of any bytes", oddNames},
	{"large offsets", largeOffsets},
	{"appends do not overwrite", appends},
	{"large xattrs", largeXattrs},
	{"busy programs", busyProgram},
}

const lowerFiles = 1200 // in the directory many

func featureBase(dir string) error {
	w := func(name string, data []byte) error { return os.WriteFile(filepath.Join(dir, name), data, 0o644) }
	errs := []error{
		w("f", []byte("old content\n")),
		w("h1", bytes.Repeat([]byte("h"), 9000)),
		os.Link(filepath.Join(dir, "h1"), filepath.Join(dir, "h2")),
		os.MkdirAll(filepath.Join(dir, "d/sub/deep"), 0o755),
		w("d/file", []byte("in d")),
		w("d/sub/file", []byte("in sub")),
		w("d/sub/deep/file", []byte("in deep")),
		os.Symlink("sub/file", filepath.Join(dir, "d/link")),
		os.Mkdir(filepath.Join(dir, "many"), 0o755),
		os.Mkdir(filepath.Join(dir, "cwd"), 0o755),
	}
	for i := range lowerFiles {
		errs = append(errs, w(fmt.Sprintf("many/lower%d", i), nil))
	}
	e := entry{holes: true, size: 2 << 20, seed: 3}
	return errors.Join(append(errs, e.fill(filepath.Join(dir, "sparse")),
		(&entry{path: program}).fill(filepath.Join(dir, "prog")), os.Chmod(filepath.Join(dir, "prog"), 0o755))...)
}

func TestFeatures(t *testing.T) {
	testenv.FUSE(t)
	for _, target := range []Target{Native(), View()} {
		t.Run(target.Name, func(t *testing.T) {
			for _, f := range features {
				t.Run(f.name, func(t *testing.T) { f.check(t, mountOnce(t, target, featureBase).Root) })
			}
		})
	}
}

// The same on kernel overlayfs, for the table in docs/testing.md.
func TestFeaturesOfOverlayfs(t *testing.T) {
	if !long() {
		t.Skip("part of make test-posix; kernel overlayfs does not pass all of it")
	}
	for _, f := range features {
		t.Run(f.name, func(t *testing.T) { f.check(t, mountOnce(t, Overlayfs(), featureBase).Root) })
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, expected %v", err, want)
	}
}

func open(t *testing.T, flags int, elem ...string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(elem...), flags, 0o644)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func lstat(t *testing.T, elem ...string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	ok(t, unix.Lstat(filepath.Join(elem...), &st))
	return st
}

func content(t *testing.T, want string, elem ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	ok(t, err)
	if string(b) != want {
		t.Errorf("%s holds %.40q, expected %.40q", filepath.Join(elem...), b, want)
	}
}

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

// What rm -rf does: nothing may be left out because entries vanish meanwhile.
func unlinkWhileReading(t *testing.T, root string) {
	dir := filepath.Join(root, "many")
	for i := range 800 {
		ok(t, os.WriteFile(fmt.Sprintf("%s/upper%d", dir, i), nil, 0o644))
	}
	f := open(t, os.O_RDONLY, dir)
	buf := make([]byte, 4096)
	seen := 0
	for {
		n, err := unix.Getdents(int(f.Fd()), buf)
		ok(t, err)
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			l := *(*uint16)(unsafe.Pointer(&b[16]))
			name, _, _ := strings.Cut(string(b[19:l]), "\x00")
			b = b[l:]
			if name != "." && name != ".." {
				seen++
				ok(t, os.Remove(filepath.Join(dir, name)))
			}
		}
	}
	if seen != lowerFiles+800 {
		t.Errorf("%d entries were read, expected %d", seen, lowerFiles+800)
	}
	ok(t, os.Remove(dir))
}

func removedCwd(t *testing.T, root string) {
	dir := open(t, os.O_RDONLY, root, "cwd")
	ok(t, os.Remove(filepath.Join(root, "cwd")))
	var st unix.Stat_t
	ok(t, unix.Fstat(int(dir.Fd()), &st))
	if st.Nlink != 0 {
		t.Errorf("%d links", st.Nlink)
	}
	_, err := unix.Openat(int(dir.Fd()), "new", unix.O_CREAT|unix.O_WRONLY, 0o644)
	wantErr(t, err, unix.ENOENT)
	wantErr(t, unix.Mkdirat(int(dir.Fd()), "new", 0o755), unix.ENOENT)
	if n, err := unix.Getdents(int(dir.Fd()), make([]byte, 4096)); err == nil && n > 48 {
		t.Errorf("it lists %d bytes", n)
	}
	ok(t, os.Mkdir(filepath.Join(root, "cwd"), 0o755)) // another one
	ok(t, os.WriteFile(filepath.Join(root, "cwd/x"), nil, 0o644))
	_, err = unix.Openat(int(dir.Fd()), "x", unix.O_RDONLY, 0)
	wantErr(t, err, unix.ENOENT)
}

func deletedButOpen(t *testing.T, root string) {
	for _, how := range []string{"unlink", "rename over"} {
		for _, name := range []string{"f", "new"} {
			path := filepath.Join(root, name)
			ok(t, os.WriteFile(path+".src", []byte("other"), 0o644))
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
			ok(t, err)
			if how == "unlink" {
				ok(t, os.Remove(path))
			} else {
				ok(t, os.Rename(path+".src", path))
			}
			_, err = f.WriteAt([]byte("after"), 100)
			ok(t, err)
			b := make([]byte, 5)
			_, err = f.ReadAt(b, 100)
			ok(t, err)
			if string(b) != "after" {
				t.Errorf("%s of %s: %q was read", how, name, b)
			}
			ok(t, f.Chmod(0o640))
			ok(t, f.Truncate(200))
			ok(t, unix.Fsetxattr(int(f.Fd()), "user.x", []byte("v"), 0))
			var st unix.Stat_t
			ok(t, unix.Fstat(int(f.Fd()), &st))
			if st.Nlink != 0 || st.Size != 200 || st.Mode&0o777 != 0o640 {
				t.Errorf("%s of %s: %d links, size %d, mode %o", how, name, st.Nlink, st.Size, st.Mode)
			}
			if n, err := unix.Fgetxattr(int(f.Fd()), "user.x", b); err != nil || n != 1 {
				t.Errorf("%s of %s: xattr %d, %v", how, name, n, err)
			}
			ok(t, f.Close())
			if how == "rename over" {
				content(t, "other", path)
			}
		}
	}
}

func holes(t *testing.T, root string) {
	check := func(when string) {
		t.Helper()
		f := open(t, os.O_RDONLY, root, "sparse")
		for _, s := range []struct {
			off    int64
			whence int
			want   int64
		}{
			{0, unix.SEEK_DATA, 8192}, {0, unix.SEEK_HOLE, 0}, {8192, unix.SEEK_HOLE, 12288},
			{12288, unix.SEEK_DATA, 1 << 20}, {1<<20 + 4096, unix.SEEK_HOLE, 1<<20 + 4096},
		} {
			if got, err := unix.Seek(int(f.Fd()), s.off, s.whence); err != nil || got != s.want {
				t.Errorf("%s: seek(%d, %d) is %d, %v; expected %d", when, s.off, s.whence, got, err, s.want)
			}
		}
		_, err := unix.Seek(int(f.Fd()), 1<<20+4096, unix.SEEK_DATA)
		wantErr(t, err, unix.ENXIO)
	}
	check("before copy up")
	ok(t, os.Chmod(filepath.Join(root, "sparse"), 0o600))
	check("after copy up")
	if st := lstat(t, root, "sparse"); st.Blocks > 64 {
		t.Errorf("the copy takes %d blocks", st.Blocks)
	}
	f := open(t, os.O_RDWR, root, "sparse")
	ok(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096))
	if got, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || got != 1<<20 {
		t.Errorf("after punching: data at %d, %v", got, err)
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

func flocks(t *testing.T, root string) {
	a, b := open(t, os.O_RDONLY, root, "f"), open(t, os.O_RDWR, root, "f")
	ok(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	wantErr(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	_, err := b.WriteAt([]byte("x"), 0) // copy up must not lose the lock
	ok(t, err)
	c := open(t, os.O_RDONLY, root, "f")
	wantErr(t, unix.Flock(int(c.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	a.Close()
	ok(t, unix.Flock(int(c.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

func ofdLocks(t *testing.T, root string) {
	a, b := open(t, os.O_RDWR, root, "f"), open(t, os.O_RDWR, root, "f")
	lock := func(f *os.File, typ int16, start int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: 10})
	}
	ok(t, lock(a, unix.F_WRLCK, 0))
	wantErr(t, lock(b, unix.F_RDLCK, 5), unix.EAGAIN)
	ok(t, lock(b, unix.F_WRLCK, 10))
	q := unix.Flock_t{Type: unix.F_WRLCK, Len: 5}
	ok(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_GETLK, &q))
	if q.Type != unix.F_WRLCK || q.Start != 0 || q.Len != 10 {
		t.Errorf("F_OFD_GETLK says %+v", q)
	}
	a.Close()
	ok(t, lock(b, unix.F_WRLCK, 0))
}

func leases(t *testing.T, root string) {
	f := open(t, os.O_RDONLY, root, "f")
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Fatalf("F_SETLEASE: %v", err)
	}
	// Somebody opens for writing: the lease is to be given back first.
	_, err := unix.Open(filepath.Join(root, "f"), unix.O_WRONLY|unix.O_NONBLOCK, 0)
	wantErr(t, err, unix.EWOULDBLOCK)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	open(t, os.O_WRONLY, root, "f")
}

func inotify(t *testing.T, root string) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	ok(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, filepath.Join(root, "d"), unix.IN_ALL_EVENTS&^(unix.IN_OPEN|unix.IN_CLOSE_NOWRITE|unix.IN_ACCESS))
	ok(t, err)
	p := func(name string) string { return filepath.Join(root, "d", name) }
	ok(t, os.WriteFile(p("file"), []byte("changed"), 0o644))
	ok(t, os.Chmod(p("file"), 0o600))
	ok(t, os.Rename(p("file"), p("g")))
	ok(t, os.Link(p("g"), p("l")))
	ok(t, os.Remove(p("g")))
	ok(t, os.Mkdir(p("m"), 0o755))
	buf := make([]byte, 1<<14)
	n, err := unix.Read(fd, buf)
	ok(t, err)
	var got []string
	for b := buf[:n]; len(b) > 0; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		name, _, _ := strings.Cut(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+e.Len]), "\x00")
		got = append(got, fmt.Sprintf("%x %s", e.Mask, name))
		b = b[unix.SizeofInotifyEvent+e.Len:]
	}
	want := "2 file, 8 file, 4 file, 40 file, 80 g, 100 l, 200 g, 40000100 m"
	// Truncation is an event of its own, which the kernel may merge with the write's.
	if s := strings.ReplaceAll(strings.Join(got, ", "), "2 file, 2 file", "2 file"); s != want {
		t.Errorf("events:   %s\nexpected: %s", s, want)
	}
}

func birthTime(t *testing.T, root string) {
	for _, name := range []string{"f", "d"} {
		var a, b unix.Statx_t
		ok(t, unix.Statx(unix.AT_FDCWD, filepath.Join(root, name), 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &a))
		if a.Mask&unix.STATX_BTIME == 0 || time.Since(time.Unix(a.Btime.Sec, 0)) > time.Hour {
			t.Errorf("%s has no birth time: mask %x, %v", name, a.Mask, a.Btime)
			continue
		}
		ok(t, os.Chmod(filepath.Join(root, name), 0o700))
		ok(t, unix.Statx(unix.AT_FDCWD, filepath.Join(root, name), 0, unix.STATX_BTIME, &b))
		if a.Btime != b.Btime {
			t.Errorf("%s was born at %v, and after a change at %v", name, a.Btime, b.Btime)
		}
	}
}

func fileHandles(t *testing.T, root string) {
	mount := open(t, os.O_RDONLY, root)
	for _, name := range []string{"f", "d/sub"} {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(root, name), 0)
		ok(t, err)
		ok(t, os.Rename(filepath.Join(root, name), filepath.Join(root, "moved")))
		fd, err := unix.OpenByHandleAt(int(mount.Fd()), h, unix.O_RDONLY)
		ok(t, err)
		var st unix.Stat_t
		ok(t, unix.Fstat(fd, &st))
		unix.Close(fd)
		if want := lstat(t, root, "moved"); st.Ino != want.Ino {
			t.Errorf("the handle of %s opens inode %d, expected %d", name, st.Ino, want.Ino)
		}
		ok(t, os.RemoveAll(filepath.Join(root, "moved")))
		if fd, err = unix.OpenByHandleAt(int(mount.Fd()), h, unix.O_RDONLY); err == nil {
			unix.Close(fd)
		}
		wantErr(t, err, unix.ESTALE)
	}
}

func socketsAndPipes(t *testing.T, root string) {
	path := filepath.Join(root, "sock")
	if len(path) < 100 {
		ln, err := net.Listen("unix", path)
		ok(t, err)
		defer ln.Close()
		c, err := net.DialTimeout("unix", path, time.Minute)
		ok(t, err)
		c.Close()
	}
	fifo := filepath.Join(root, "d/fifo")
	ok(t, unix.Mkfifo(fifo, 0o644))
	r := open(t, os.O_RDWR, fifo) // does not wait for a peer
	_, err := open(t, os.O_WRONLY, fifo).WriteString("through")
	ok(t, err)
	b := make([]byte, 7)
	_, err = io.ReadFull(r, b)
	ok(t, err)
	if string(b) != "through" {
		t.Errorf("%q came through the FIFO", b)
	}
}

func statfs(t *testing.T, root string) {
	var st unix.Statfs_t
	ok(t, unix.Statfs(root, &st))
	if st.Blocks == 0 || st.Bavail == 0 || st.Bfree > st.Blocks || st.Bsize != 4096 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
}

func oddNames(t *testing.T, root string) {
	for _, name := range []string{"\xff\xfe", "new\nline", " ", "-", `back\slash`, "\x01", "ünï", strings.Repeat("\xe2\x82\xac", 85), ".wh.x", ".wh..wh..opq"} {
		path := root + "/d/" + name
		ok(t, os.WriteFile(path, []byte(name), 0o644))
		content(t, name, path)
		names, err := os.ReadDir(filepath.Join(root, "d"))
		ok(t, err)
		found := 0
		for _, n := range names {
			if n.Name() == name {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%q is listed %d times", name, found)
		}
		ok(t, os.Remove(path))
	}
}

func largeOffsets(t *testing.T, root string) {
	f := open(t, os.O_RDWR, root, "f")
	const off = 5 << 40
	_, err := f.WriteAt([]byte("far"), off)
	ok(t, err)
	b := make([]byte, 3)
	_, err = f.ReadAt(b, off)
	ok(t, err)
	if st := lstat(t, root, "f"); string(b) != "far" || st.Size != off+3 {
		t.Errorf("%q, size %d", b, st.Size)
	}
	ok(t, f.Truncate(4))
	content(t, "old ", root, "f")
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

func largeXattrs(t *testing.T, root string) {
	value := pattern(9, 12000)
	for _, name := range []string{"f", "d"} {
		path := filepath.Join(root, name)
		ok(t, unix.Setxattr(path, "user.large", value, 0))
		ok(t, os.Chmod(path, 0o700))
		got := make([]byte, 20000)
		n, err := unix.Getxattr(path, "user.large", got)
		ok(t, err)
		if !bytes.Equal(got[:n], value) {
			t.Errorf("%s: %d bytes came back", name, n)
		}
		_, err = unix.Getxattr(path, "user.large", got[:100])
		wantErr(t, err, unix.ERANGE)
	}
}

func busyProgram(t *testing.T, root string) {
	if exitELF(runtime.GOARCH, 0) == nil {
		t.Skip("no program for this architecture")
	}
	w := open(t, os.O_WRONLY, root, "prog")
	a := &actor{root: int(open(t, unix.O_PATH, root).Fd())}
	_, err := a.exec(&Op{Path: "prog"})
	wantErr(t, err, unix.ETXTBSY)
	w.Close()
	// The kernel gives back a FUSE file's write access with its last reference, at once.
	r, err := a.exec(&Op{Path: "prog"})
	if err != nil || r.N != 0 {
		t.Errorf("%v, %v", r, err)
	}
}
