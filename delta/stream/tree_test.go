package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// list describes a tree with everything that a send stream carries, one line for
// each entry. Hard links are told by the first path of the inode.
func list(t testing.TB, root string) string {
	t.Helper()
	var out []string
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		line := fmt.Sprintf("%s %o %d:%d %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if first[st.Ino] == "" {
			first[st.Ino] = rel
		}
		line += " =" + first[st.Ino]
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
		case unix.S_IFLNK:
			l, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + l
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %d", st.Rdev)
		}
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(p, names)
		if err != nil {
			return err
		}
		xattrs := strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00")
		sort.Strings(xattrs)
		for _, x := range xattrs {
			if x != "" {
				v := make([]byte, 64<<10)
				n, err := unix.Lgetxattr(p, x, v)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %s=%q", x, v[:n])
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// sameTree fails the test where two trees differ.
func sameTree(t testing.TB, what, want, got string) {
	t.Helper()
	a, b := strings.Split(list(t, want), "\n"), strings.Split(list(t, got), "\n")
	in := func(s []string) map[string]bool {
		m := map[string]bool{}
		for _, l := range s {
			m[l] = true
		}
		return m
	}
	ma, mb := in(a), in(b)
	bad := 0
	for _, l := range a {
		if !mb[l] && bad < 10 {
			t.Errorf("%s: missing: %.300s", what, l)
			bad++
		}
	}
	for _, l := range b {
		if !ma[l] && bad < 20 {
			t.Errorf("%s: not expected: %.300s", what, l)
			bad++
		}
	}
}

// run runs a command, for at most two minutes, and returns what it printed.
func run(t testing.TB, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Command(t, name), args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, msg.Bytes())
	}
	return out.Bytes()
}

// steps collects errors of preparations.
type steps struct{ t testing.TB }

func (s steps) do(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// plant makes a tree with one of everything.
func plant(t testing.TB, root string) {
	t.Helper()
	s := steps{t}
	p := func(name string) string { return filepath.Join(root, name) }
	s.do(os.MkdirAll(p("etc/deep/er"), 0o755))
	s.do(os.MkdirAll(p("dir with space/ünïcode"), 0o1777))
	s.do(os.WriteFile(p("etc/plain"), []byte("plain\n"), 0o640))
	s.do(os.WriteFile(p("etc/empty"), nil, 0o600))
	s.do(os.WriteFile(p("etc/setuid"), []byte("#!/bin/sh\n"), 0o755))
	s.do(os.Chown(p("etc/setuid"), 12, 34))
	s.do(os.Chmod(p("etc/setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	big := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	for i := range big {
		big[i] += byte(i >> 12)
	}
	s.do(os.WriteFile(p("etc/big"), big, 0o644))
	s.do(os.WriteFile(p("etc/text"), bytes.Repeat([]byte("compress me, please. "), 30000), 0o644))
	s.do(os.Link(p("etc/big"), p("etc/deep/big link")))
	s.do(os.Symlink("../etc/plain", p("etc/deep/symlink")))
	s.do(os.Symlink("/nowhere/at all", p("dangling")))
	s.do(os.Lchown(p("dangling"), 5, 6))
	s.do(unix.Mkfifo(p("etc/fifo"), 0o620))
	s.do(unix.Mknod(p("etc/sock"), unix.S_IFSOCK|0o600, 0))
	s.do(unix.Mknod(p("etc/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	s.do(unix.Mknod(p("etc/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 100000))))
	s.do(unix.Lsetxattr(p("etc/plain"), "user.note", []byte("value\x00binary"), 0))
	s.do(unix.Lsetxattr(p("etc/deep"), "trusted.overlay.opaque", []byte("y"), 0))
	s.do(unix.Lsetxattr(p("dangling"), "trusted.on.symlink", []byte("x"), 0))
	// security.capability: cap_net_raw=ep
	s.do(unix.Lsetxattr(p("etc/text"), "security.capability", []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	sparse, err := os.Create(p("sparse"))
	s.do(err)
	_, err = sparse.WriteAt([]byte("far away"), 50<<20)
	s.do(err)
	s.do(sparse.Truncate(60 << 20))
	s.do(sparse.Close())
	for i := range 200 {
		s.do(os.WriteFile(p(fmt.Sprintf("etc/deep/er/%03d", i)), fmt.Appendf(nil, "file %d\n", i), 0o644))
	}
	for i, name := range []string{"etc/plain", "dangling", "etc/fifo", "etc/deep", "."} {
		ts := []unix.Timespec{unix.NsecToTimespec(int64(i) * 1e15), unix.NsecToTimespec(int64(i)*1e15 + 123456789)}
		s.do(unix.UtimesNanoAt(unix.AT_FDCWD, p(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// change makes changes of every kind to a planted tree.
func change(t testing.TB, root string) {
	t.Helper()
	s := steps{t}
	p := func(name string) string { return filepath.Join(root, name) }
	s.do(os.WriteFile(p("etc/plain"), []byte("changed\n"), 0))
	s.do(os.Rename(p("etc/deep"), p("deeper")))
	s.do(os.Mkdir(p("etc/deep"), 0o700)) // the name is used again
	s.do(os.Rename(p("deeper/er/001"), p("etc/deep/001")))
	s.do(unix.Renameat2(unix.AT_FDCWD, p("deeper/er/002"), unix.AT_FDCWD, p("deeper/er/003"), unix.RENAME_EXCHANGE))
	s.do(os.Remove(p("etc/fifo")))
	s.do(os.Mkdir(p("etc/fifo"), 0o755)) // and is another kind
	s.do(os.RemoveAll(p("dir with space")))
	s.do(os.Remove(p("etc/big"))) // the link stays
	s.do(unix.Lremovexattr(p("etc/plain"), "user.note"))
	s.do(unix.Lsetxattr(p("etc/empty"), "user.new", []byte("1"), 0))
	s.do(os.Truncate(p("sparse"), 30<<20))
	s.do(os.Chmod(p("etc/setuid"), 0o711|os.ModeSetuid))
	s.do(os.Lchown(p("etc/text"), 77, 78)) // takes its capability
	s.do(unix.Lsetxattr(p("etc/text"), "security.capability", []byte{1, 0, 0, 2, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	run(t, nil, "cp", "--reflink=always", p("deeper/big link"), p("etc/clone"))
	f, err := os.OpenFile(p("deeper/big link"), os.O_WRONLY, 0)
	s.do(err)
	_, err = f.WriteAt([]byte("in the middle"), 100_001)
	s.do(err)
	s.do(f.Close())
	for i := range 50 {
		s.do(os.Remove(p(fmt.Sprintf("deeper/er/%03d", 100+i))))
	}
}
