package viewtest

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

// chattr, which asks for the flags that were before it sets some.
func inodeFlags(t *testing.T, root string) {
	const nodump, immutable = 0x40, 0x10 // FS_NODUMP_FL, FS_IMMUTABLE_FL
	flags := func(fd int) int {
		t.Helper()
		n, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		ok(t, err)
		return n & (nodump | immutable)
	}
	ok(t, os.WriteFile(filepath.Join(root, "flags"), []byte("new"), 0o644))
	for _, name := range []string{"f", "flags", "d"} { // of the base, of the overlay, a directory
		path := filepath.Join(root, name)
		f := open(t, os.O_RDONLY, root, name)
		fd := int(f.Fd())
		if got := flags(fd); got != 0 {
			t.Errorf("%s has flags %#x", name, got)
		}
		ok(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, nodump))
		if got := flags(fd); got != nodump {
			t.Errorf("%s has flags %#x, expected nodump", name, got)
		}
		write := func() error {
			g, err := os.OpenFile(filepath.Join(path), os.O_WRONLY, 0)
			if name == "d" {
				g, err = os.Create(filepath.Join(path, "inside"))
			}
			if err != nil {
				return err
			}
			defer g.Close()
			_, err = g.Write([]byte("x"))
			return err
		}
		ok(t, write())
		ok(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, nodump|immutable))
		if got := flags(fd); got != nodump|immutable {
			t.Errorf("%s has flags %#x, expected immutable", name, got)
		}
		if name != "d" {
			wantErr(t, write(), unix.EPERM)
		} else {
			_, err := os.Create(filepath.Join(path, "another"))
			wantErr(t, err, unix.EPERM)
		}
		wantErr(t, os.Rename(path, path+".other"), unix.EPERM)
		wantErr(t, os.Chmod(path, 0o700), unix.EPERM)
		ok(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0))
		ok(t, write())
		ok(t, os.Chmod(path, 0o700))
	}
}
