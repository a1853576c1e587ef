package viewtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

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

func deletedSpecial(t *testing.T, root string) {
	for _, name := range []string{"fifo", "null"} {
		path := filepath.Join(root, name)
		before := lstat(t, root, name)
		f := open(t, os.O_RDWR, root, name)
		ok(t, os.Remove(path))
		ok(t, f.Chmod(0o640))
		ok(t, f.Chown(7, 8))
		ok(t, unix.Fsetxattr(int(f.Fd()), "trusted.x", []byte("v"), 0))
		var st unix.Stat_t
		ok(t, unix.Fstat(int(f.Fd()), &st))
		if st.Nlink != 0 || st.Mode != before.Mode&unix.S_IFMT|0o640 || st.Uid != 7 || st.Gid != 8 || st.Rdev != before.Rdev || st.Ino != before.Ino {
			t.Errorf("%s: %d links, mode %o, owner %d:%d, device %#x, inode %d; was mode %o, device %#x, inode %d", name, st.Nlink, st.Mode, st.Uid, st.Gid, st.Rdev, st.Ino, before.Mode, before.Rdev, before.Ino)
		}
		b := make([]byte, 8)
		if n, err := unix.Fgetxattr(int(f.Fd()), "trusted.x", b); err != nil || n != 1 {
			t.Errorf("%s: xattr %d, %v", name, n, err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is there again: %v", name, err)
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
