package trusttest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// netRaw is cap_net_raw=ep, as setcap writes it.
var netRaw = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// privileged makes a tree with what carries rights. The programs are cat: given
// /proc/self/status it says what it may do.
func privileged(t testing.TB, tree string) {
	t.Helper()
	cat, err := os.ReadFile(testenv.Command(t, "cat"))
	testenv.Must(t, err, os.MkdirAll(filepath.Join(tree, "bin"), 0o755))
	for name, mode := range map[string]uint32{"plain": 0o755, "setuid": 0o4755, "setgid": 0o2755, "caps": 0o755, "loose": 0o4777, "private": 0o4700} {
		path := filepath.Join(tree, "bin", name)
		testenv.Must(t, os.WriteFile(path, cat, 0o755), unix.Chmod(path, mode))
	}
	testenv.Must(t, unix.Setxattr(filepath.Join(tree, "bin/caps"), "security.capability", netRaw, 0))
	for _, d := range []struct {
		name string
		mode uint32
	}{{"secret", 0o700}, {"tmp", 0o1777}, {"etc", 0o755}, {"mine", 0o755}} {
		path := filepath.Join(tree, d.name)
		testenv.Must(t, os.Mkdir(path, 0o755), os.WriteFile(filepath.Join(path, "file"), []byte("root's"), 0o644), unix.Chmod(path, d.mode))
	}
	testenv.Must(t, os.WriteFile(filepath.Join(tree, "shadow"), []byte("root's"), 0o600),
		os.WriteFile(filepath.Join(tree, "open"), []byte("anybody's"), 0o666), unix.Chmod(filepath.Join(tree, "open"), 0o666),
		os.Chown(filepath.Join(tree, "mine"), nobody, nobody))
	// An ACL that lets nobody read what the mode does not: user::rw-, user:65534:r--, group::---, mask::r--, other::---
	acl := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 4, nobody}, {4, 0, 1<<32 - 1}, {16, 4, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		acl = append(acl, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	testenv.Must(t, os.WriteFile(filepath.Join(tree, "acl"), []byte("for nobody"), 0o640),
		unix.Setxattr(filepath.Join(tree, "acl"), "system.posix_acl_access", acl, 0))
}

// rights is what a program said that it may do.
func rights(status string) string {
	return strings.Join(regexp.MustCompile(`(?m)^(Uid|Gid|CapPrm|CapEff):.*$`).FindAllString(status, -1), "; ")
}

// Another user can do through a view what he could on the base beneath it, and nothing
// else: set-id bits and capabilities have their effect, permissions, ACLs and the
// sticky bit are enforced, and what he changes loses its rights as it would there.
func TestViewGivesTheRightsOfTheBase(t *testing.T) {
	testenv.FUSE(t)
	sh := testenv.Command(t, "sh")
	dir, mounts := testenv.Btrfs(t), testenv.Dir(t)
	pool, tree, native, view := filepath.Join(dir, "pool"), filepath.Join(dir, "tree"), filepath.Join(mounts, "native"), filepath.Join(mounts, "view")
	testenv.Must(t, os.Mkdir(tree, 0o755), os.Mkdir(native, 0o755), os.Mkdir(view, 0o755))
	privileged(t, tree)
	must(t, pool, "init", pool)
	must(t, pool, "base", "import", "1", tree)
	must(t, pool, "overlay", "add", "system", "--path", "/")
	must(t, pool, "mount", view)
	t.Cleanup(func() { must(t, pool, "umount", "--lazy", view) })
	testenv.Must(t, unix.Mount(tree, native, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(native, unix.MNT_DETACH) })

	for _, name := range []string{"plain", "setuid", "setgid", "caps", "loose"} {
		_, a := output(t, nobody, "", filepath.Join(native, "bin", name), "/proc/self/status")
		_, b := output(t, nobody, "", filepath.Join(view, "bin", name), "/proc/self/status")
		if rights(a) != rights(b) || !strings.Contains(a, "Uid") {
			t.Errorf("%s has other rights:\non btrfs  %s\nview      %s", name, rights(a), rights(b))
		}
		switch effective := regexp.MustCompile(`Uid:\s+65534\s+0\s`).MatchString(b); {
		case effective != (name == "setuid" || name == "loose"),
			strings.Contains(b, "CapEff:\t0000000000002000") != (name == "caps"):
			t.Errorf("%s: the test itself is wrong: %s", name, rights(b))
		}
	}
	// Each line runs in both, as nobody, in this order; exit codes and effects must agree.
	for _, script := range []string{
		"cat shadow", "cat acl", "ls secret", "cat secret/file", "echo x >etc/file", "echo x >etc/new", "rm -f etc/file", "mv etc/file etc/other",
		"rm -f tmp/file", "mv tmp/file tmp/other", "echo x >tmp/new && rm tmp/new", "chmod 777 etc/file", "chown 65534 etc/file",
		"ln open mine/link", "ln -s /etc/passwd mine/sym && readlink mine/sym", "mkdir mine/d && rmdir mine/d", "touch etc/file", "touch -d 2001-01-01 open",
		"bin/private /proc/self/status", "echo x >>open && cat open", "echo x >>bin/loose; stat -c %a bin/loose", "chmod 4755 mine/own", "mknod mine/dev c 1 3",
		"stat -c %a:%u:%g mine/file bin/setuid bin/setgid acl tmp secret", "test -r acl; echo $?; test -w acl; echo $?; test -w open; echo $?; test -x bin/private; echo $?",
	} {
		code1, out1 := output(t, nobody, "", sh, "-c", "cd "+native+" && { "+script+"; }")
		code2, out2 := output(t, nobody, "", sh, "-c", "cd "+view+" && { "+script+"; }")
		if out2 = strings.ReplaceAll(out2, view, native); code1 != code2 || out1 != out2 {
			t.Errorf("%s: exit code %d on btrfs, %d in the view\n%s%s", script, code1, code2, out1, out2)
		}
	}
	// What was written through the view by root keeps, or loses, the same as there.
	for _, script := range []string{"echo >>bin/setuid", "echo >>bin/caps", "chown 0:0 bin/setgid", "cp -p bin/setgid bin/copy"} {
		for _, at := range []string{native, view} {
			if code, out := output(t, 0, "", sh, "-c", "cd "+at+" && "+script); code != 0 {
				t.Errorf("%s in %s: %s", script, at, out)
			}
		}
	}
	for _, name := range []string{"setuid", "setgid", "caps", "copy", "loose"} {
		if a, b := marks(t, filepath.Join(native, "bin", name)), marks(t, filepath.Join(view, "bin", name)); a != b {
			t.Errorf("%s after writing: %s on btrfs, %s in the view", name, a, b)
		}
	}

	// The process that serves it answers root only, and its socket cannot even be reached.
	socks, err := filepath.Glob("/run/btrovl/*/*.sock")
	testenv.Must(t, err)
	if len(socks) == 0 {
		t.Error("no control socket")
	}
	for _, s := range socks {
		for _, p := range []string{s, filepath.Dir(s)} {
			if st, err := os.Stat(p); err == nil && st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %o", p, st.Mode().Perm())
			}
		}
	}
	for _, args := range [][]string{{"status"}, {"umount", view}, {"rollback"}, {"gc"}, {"init", filepath.Join(mounts, "mine")}} {
		if code, out := output(t, nobody, pool, append([]string{testenv.Program(t)}, args...)...); code != 3 {
			t.Errorf("nobody could run %v: exit code %d\n%s", args, code, out)
		}
	}
}

func marks(t testing.TB, path string) string {
	var st unix.Stat_t
	testenv.Must(t, unix.Stat(path, &st))
	caps := make([]byte, 64)
	n, err := unix.Getxattr(path, "security.capability", caps)
	return fmt.Sprintf("mode %o, capabilities %x %v", st.Mode, caps[:max(n, 0)], err)
}

// A view that is mounted with nosuid gives no rights away.
func TestNosuidView(t *testing.T) {
	testenv.FUSE(t)
	dir, mounts := testenv.Btrfs(t), testenv.Dir(t)
	pool, tree, view := filepath.Join(dir, "pool"), filepath.Join(dir, "tree"), filepath.Join(mounts, "view")
	testenv.Must(t, os.Mkdir(tree, 0o755), os.Mkdir(view, 0o755))
	privileged(t, tree)
	must(t, pool, "init", pool)
	must(t, pool, "base", "import", "1", tree)
	must(t, pool, "mount", "--option", "nosuid,nodev", view)
	t.Cleanup(func() { must(t, pool, "umount", "--lazy", view) })
	for _, name := range []string{"setuid", "setgid", "caps"} {
		_, plain := output(t, nobody, "", filepath.Join(view, "bin/plain"), "/proc/self/status")
		if _, out := output(t, nobody, "", filepath.Join(view, "bin", name), "/proc/self/status"); rights(out) != rights(plain) || out == "" {
			t.Errorf("%s: %s, plain %s", name, rights(out), rights(plain))
		}
	}
}

// Nobody but root can look into a pool, and no secret turns up where it should not.
func TestPoolIsPrivate(t *testing.T) {
	testenv.Root(t)
	dir := testenv.Btrfs(t)
	pool, tree := filepath.Join(dir, "pool"), filepath.Join(dir, "tree")
	testenv.Must(t, os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, "file"), []byte("x"), 0o666))
	const secret = "correct horse battery staple"
	password, key := filepath.Join(dir, "password"), filepath.Join(dir, "k")
	testenv.Must(t, os.WriteFile(password, []byte(secret+"\n"), 0o600))
	var said []string
	say := func(args ...string) { said = append(said, must(t, pool, args...)) }
	say("init", pool)
	say("bundle", "keygen", key, "--no-password")
	say("key", "add", key+".pub")
	say("key", "revoke", "00000000000000AA", "--reason", "for the test")
	say("base", "import", "1", tree)
	say("overlay", "add", "system", "--path", "/")
	say("bundle", "create", "--to", "1", "--key", key+".key", "-o", key+".btrovl")
	say("update", "--tries", "0", key+".btrovl") // makes the first deployment
	say("backup", "create")
	say("status", "--json")
	// A wrong password, and a right one for a file that is no key: neither is repeated.
	if code, out := output(t, 0, pool, testenv.Program(t), "bundle", "create", "--to", "1", "--key", password, "--password-file", password, "-o", key+".2"); code == 0 {
		t.Error("signed with a password for a key")
	} else {
		said = append(said, out)
	}
	private, err := os.ReadFile(key + ".key")
	testenv.Must(t, err)
	lines := strings.Split(strings.TrimSpace(string(private)), "\n")
	for _, s := range []string{secret, lines[len(lines)-1]} {
		if strings.Contains(strings.Join(said, ""), s) {
			t.Errorf("%q was printed", s)
		}
	}
	testenv.Must(t, filepath.WalkDir(pool, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(pool, path)
		if d.IsDir() && slices.Contains([]string{"bases", "overlays", "backups"}, filepath.Dir(name)) || filepath.Dir(filepath.Dir(name)) == "backups" {
			// A subvolume: its content has the modes that it has. The pool's own mode guards it.
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		public := strings.HasPrefix(name, "trusted.d") || strings.HasPrefix(name, "revoked.d") // nothing secret in them
		if !public && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		if info.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s can be written by others: %v", name, info.Mode())
		}
		if info.Mode().IsRegular() && info.Size() < 1<<20 {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.Contains(string(b), secret) || strings.Contains(string(b), lines[len(lines)-1]) {
				t.Errorf("%s holds a secret", name)
			}
		}
		return nil
	}))
	for _, path := range []string{pool, filepath.Join(pool, "state"), filepath.Join(pool, "bases/1/file")} {
		if code, _ := output(t, nobody, "", testenv.Command(t, "cat"), path); code == 0 {
			t.Errorf("nobody read %s", path)
		}
		if code, _ := output(t, nobody, "", testenv.Command(t, "ls"), pool); code == 0 {
			t.Error("nobody listed the pool")
		}
	}
	// The secret half of a key is its owner's.
	st, err := os.Stat(key + ".key")
	testenv.Must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the secret key has mode %v", st.Mode())
	}
}
