package tree

import (
	"context"
	"encoding/binary"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func mkdir(t testing.TB, path string) *os.File {
	t.Helper()
	testenv.Must(t, os.MkdirAll(path, 0o755))
	return testenv.Open(t, path)
}

func digest(t testing.TB, path string) (Sum, Stats) {
	t.Helper()
	sum, stats, err := Digest(context.Background(), testenv.Open(t, path), DigestOptions{})
	testenv.Must(t, err)
	return sum, stats
}

// capability is security.capability of "cap_net_raw=ep" (struct vfs_cap_data, version 2).
func capability() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<13)
	return append(b, make([]byte, 12)...)
}

// fixture fills dir with one of everything that a system tree may hold. sockets says
// whether to make one, which tar cannot carry.
func fixture(t testing.TB, dir string, sockets bool) {
	t.Helper()
	p := func(s string) string { return filepath.Join(dir, s) }
	write := func(name, content string, mode os.FileMode) {
		testenv.Must(t, os.WriteFile(p(name), []byte(content), 0o600))
		testenv.Must(t, os.Chmod(p(name), mode))
	}
	for _, d := range []string{"bin", "etc/deep/er", "var/empty", "home/joe", "a", "a-b", "a.b"} {
		testenv.Must(t, os.MkdirAll(p(d), 0o755))
	}
	write("bin/tool", strings.Repeat("code", 5000), 0o755)
	write("bin/setuid", "s", 0o755|os.ModeSetuid|os.ModeSetgid)
	write("bin/capable", "c", 0o755)
	write("etc/empty", "", 0o644)
	write("etc/deep/er/file", "x", 0o000)
	write("a/b", "slash before dash in walk order", 0o644)
	write("home/joe/\xff\x01 odd\nname", "odd", 0o640)
	write("home/joe/"+strings.Repeat("n", 255), "long", 0o640)
	write("home/joe/acl", "acl", 0o640)
	testenv.Must(t, os.Symlink("../bin/tool", p("etc/link")))
	testenv.Must(t, os.Symlink(strings.Repeat("far/", 600), p("etc/long-link")))
	testenv.Must(t, os.Symlink("nowhere", p("a.b/dangling")))
	testenv.Must(t, os.Link(p("bin/tool"), p("home/joe/tool")))
	testenv.Must(t, os.Link(p("bin/tool"), p("a-b/tool")))
	testenv.Must(t, unix.Mkfifo(p("var/fifo"), 0o622))
	testenv.Must(t, unix.Mknod(p("var/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	testenv.Must(t, unix.Mknod(p("var/whiteout"), unix.S_IFCHR, 0))
	testenv.Must(t, unix.Mknod(p("var/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	if sockets {
		testenv.Must(t, unix.Mknod(p("var/socket"), unix.S_IFSOCK|0o700, 0))
	}
	// A sparse file with data in the middle and a hole at its end.
	f, err := os.Create(p("var/sparse"))
	testenv.Must(t, err)
	_, err = f.WriteAt([]byte("island"), 2<<20)
	testenv.Must(t, err)
	testenv.Must(t, f.Truncate(6<<20))
	testenv.Must(t, f.Close())
	big := make([]byte, 1<<20+17)
	rand.New(rand.NewSource(1)).Read(big)
	write("var/big", string(big), 0o644)

	testenv.Must(t, unix.Setxattr(p("home/joe/acl"), "user.note", []byte("zero\x00byte=sign\n"), 0))
	testenv.Must(t, unix.Setxattr(p("home/joe/acl"), "user.empty", nil, 0))
	testenv.Must(t, unix.Setxattr(p("a-b"), "trusted.overlay.opaque", []byte("y"), 0))
	testenv.Must(t, unix.Lsetxattr(p("etc/link"), "trusted.on-a-link", []byte("1"), 0))
	acl, err := parseACL("user::rw-,user:1234:r--,group::r-x,group:77:rwx,mask::rwx,other::---")
	testenv.Must(t, err)
	testenv.Must(t, unix.Setxattr(p("home/joe/acl"), "system.posix_acl_access", acl, 0))
	testenv.Must(t, unix.Setxattr(p("home"), "system.posix_acl_default", acl, 0))

	testenv.Must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, len(path)%7*1000, len(path)%5*70000)
	}))
	// After chown, which takes them away.
	testenv.Must(t, os.Chmod(p("bin/setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	testenv.Must(t, os.Chmod(p("var/empty"), 0o777|os.ModeSticky))
	testenv.Must(t, os.Chmod(p("home"), 0o775|os.ModeSetgid))
	testenv.Must(t, unix.Setxattr(p("bin/capable"), "security.capability", capability(), 0))
	testenv.Must(t, os.Chmod(dir, 0o751))
	times := []time.Time{
		time.Unix(1, 1), time.Unix(1600000000, 999999999), time.Unix(-86400, 0),
		time.Unix(1<<32+5, 123456789), time.Unix(0, 0),
	}
	n := 0
	var paths []string
	testenv.Must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i := len(paths) - 1; i >= 0; i-- { // directories after what is in them
		at := unix.NsecToTimespec(times[n%len(times)].UnixNano())
		n++
		testenv.Must(t, unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
}
