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

// must fails the test at an error of a set-up step.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openDir(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func mkdir(t testing.TB, path string) *os.File {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	return openDir(t, path)
}

func digest(t testing.TB, path string) (Sum, Stats) {
	t.Helper()
	sum, stats, err := Digest(context.Background(), openDir(t, path), DigestOptions{})
	must(t, err)
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
		must(t, os.WriteFile(p(name), []byte(content), 0o600))
		must(t, os.Chmod(p(name), mode))
	}
	for _, d := range []string{"bin", "etc/deep/er", "var/empty", "home/joe", "a", "a-b", "a.b"} {
		must(t, os.MkdirAll(p(d), 0o755))
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
	must(t, os.Symlink("../bin/tool", p("etc/link")))
	must(t, os.Symlink(strings.Repeat("far/", 600), p("etc/long-link")))
	must(t, os.Symlink("nowhere", p("a.b/dangling")))
	must(t, os.Link(p("bin/tool"), p("home/joe/tool")))
	must(t, os.Link(p("bin/tool"), p("a-b/tool")))
	must(t, unix.Mkfifo(p("var/fifo"), 0o622))
	must(t, unix.Mknod(p("var/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(p("var/whiteout"), unix.S_IFCHR, 0))
	must(t, unix.Mknod(p("var/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	if sockets {
		must(t, unix.Mknod(p("var/socket"), unix.S_IFSOCK|0o700, 0))
	}
	// A sparse file with data in the middle and a hole at its end.
	f, err := os.Create(p("var/sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("island"), 2<<20)
	must(t, err)
	must(t, f.Truncate(6<<20))
	must(t, f.Close())
	big := make([]byte, 1<<20+17)
	rand.New(rand.NewSource(1)).Read(big)
	write("var/big", string(big), 0o644)

	must(t, unix.Setxattr(p("home/joe/acl"), "user.note", []byte("zero\x00byte=sign\n"), 0))
	must(t, unix.Setxattr(p("home/joe/acl"), "user.empty", nil, 0))
	must(t, unix.Setxattr(p("a-b"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Lsetxattr(p("etc/link"), "trusted.on-a-link", []byte("1"), 0))
	acl, err := parseACL("user::rw-,user:1234:r--,group::r-x,group:77:rwx,mask::rwx,other::---")
	must(t, err)
	must(t, unix.Setxattr(p("home/joe/acl"), "system.posix_acl_access", acl, 0))
	must(t, unix.Setxattr(p("home"), "system.posix_acl_default", acl, 0))

	must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, len(path)%7*1000, len(path)%5*70000)
	}))
	// After chown, which takes them away.
	must(t, os.Chmod(p("bin/setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, os.Chmod(p("var/empty"), 0o777|os.ModeSticky))
	must(t, os.Chmod(p("home"), 0o775|os.ModeSetgid))
	must(t, unix.Setxattr(p("bin/capable"), "security.capability", capability(), 0))
	must(t, os.Chmod(dir, 0o751))
	times := []time.Time{
		time.Unix(1, 1), time.Unix(1600000000, 999999999), time.Unix(-86400, 0),
		time.Unix(1<<32+5, 123456789), time.Unix(0, 0),
	}
	n := 0
	var paths []string
	must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i := len(paths) - 1; i >= 0; i-- { // directories after what is in them
		at := unix.NsecToTimespec(times[n%len(times)].UnixNano())
		n++
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
}
