package viewtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// Users of the base are 0 to 9999; an idmapped mount shows them as 10000 to 19999, as a
// container does that has a user namespace of its own.
const idmapShift = 10000

func idmapBase(dir string) error {
	p := func(name string) string { return filepath.Join(dir, name) }
	return errors.Join(
		os.Mkdir(p("home"), 0o755),
		os.WriteFile(p("home/f"), []byte("text\n"), 0o640),
		os.WriteFile(p("home/root"), []byte("secret\n"), 0o600),
		os.WriteFile(p("home/setid"), []byte("program\n"), 0o755),
		os.Symlink("f", p("home/l")),
		os.Lchown(p("home/l"), 1000, 1000),
		os.Chown(p("home/f"), 1000, 1000),
		os.Chown(p("home/setid"), 1000, 1000),
		os.Chmod(p("home/setid"), 0o755|os.ModeSetuid|os.ModeSetgid),
		os.Chown(p("home"), 1000, 1000),
	)
}

// idmapScripts run in the idmapped mount, each as a user of the machine.
var idmapScripts = []struct {
	uid    uint32
	script string
}{
	{11000, `cd home; stat -c '%n %u %g %a' f root setid l .; cat f; echo more >>f; cat f; cat root`},
	{11000, `cd home; echo new >new; mkdir sub; mkfifo sub/p; ln -s new sym; ln f hard; mv sub moved; stat -c '%n %u %g %a %h' new moved moved/p sym hard`},
	{11000, `cd home; chown 11001 new; chgrp 11000 new; chmod 4711 new; setfacl -m u:11005:r new; getfacl -cn new; stat -c '%u %g %a' new`},
	{11000, `cd home; fallocate -l 100 setid; stat -c '%a %s' setid`},
	{11005, `cd home; cat new; cat f; rm -f f; touch theirs; echo >>new`},
	{1000, `cd home; cat f; echo >>f; touch mine; ls`}, // a user whom the mount does not know
	{0, `cd home; cat root; cat f; chown 11007:11008 new; stat -c '%u %g' new; touch by-root; mkdir dir-by-root`},
	{0, `cd home; chmod 6755 setid; fallocate -l 200 setid; stat -c '%a %s' setid; chown 5:5 setid; stat -c '%u' setid`},
	{10000, `cd home; cat root; chown 11009 root; touch other; stat -c '%u' root`},
}

// An idmapped mount of a view behaves as one of btrfs: users are translated both ways, and
// rights follow the translated ones.
func TestIdmapped(t *testing.T) {
	testenv.FUSE(t)
	testenv.Kernel(t, 6, 12) // FUSE_ALLOW_IDMAP
	for _, tool := range []string{"setfacl", "getfacl", "fallocate"} {
		testenv.Command(t, tool)
	}
	said := map[string]string{}
	for _, target := range []Target{Native(), View()} {
		root := mountOnce(t, target, idmapBase).Root
		mnt, err := idmapped(t, root)
		if err != nil {
			t.Fatalf("%s: %v", target.Name, err)
		}
		var out strings.Builder
		for i, s := range idmapScripts {
			fmt.Fprintf(&out, "== %d, as %d\n%s", i, s.uid, runAs(t, s.uid, mnt, s.script))
		}
		// What lies below carries the users of the file system.
		fmt.Fprintf(&out, "== below\n%s", runAs(t, 0, root, `find home -printf '%p %U %G %m %n\n' | sort; getfacl -cn home/new`))
		said[target.Name] = out.String()
	}
	if said["native"] != said["view"] {
		t.Errorf("on btrfs:\n%s\non a view:\n%s", said["native"], said["view"])
	}
	if !strings.Contains(said["native"], "f 11000 11000 640") {
		t.Errorf("the mount translates nothing:\n%s", said["native"])
	}
}

// idmapped mounts dir once more, with users shifted.
func idmapped(t *testing.T, dir string) (mnt string, err error) {
	ns := exec.Command("sleep", "60")
	shift := []syscall.SysProcIDMap{{ContainerID: 0, HostID: idmapShift, Size: 10000}}
	ns.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: shift, GidMappings: shift, Pdeathsig: syscall.SIGKILL}
	if err := ns.Start(); err != nil {
		return "", err
	}
	defer ns.Wait()
	defer ns.Process.Kill()
	user, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", ns.Process.Pid))
	if err != nil {
		return "", err
	}
	defer user.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	mnt = testenv.Dir(t)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, mnt, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("move_mount: %w", err)
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	return mnt, nil
}

// runAs runs a script, line by line of ";", as a user, and returns what it said.
func runAs(t *testing.T, uid uint32, dir, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
