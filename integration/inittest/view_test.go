package inittest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// hostTree imports what makes this machine's programs run: shell, dpkg, Python, libraries.
const hostTree = `
set -eu
cd /
list() {
	find bin sbin lib lib64 -maxdepth 0 2>/dev/null || true
	find etc usr/bin usr/sbin -xdev -size -8M 2>/dev/null || true
	find usr/lib/*-linux-gnu* usr/lib64 -xdev -maxdepth 1 -size -8M 2>/dev/null || true
	find var/lib/dpkg usr/lib/python3.* usr/lib/dpkg usr/share/dpkg usr/lib/os-release usr/lib/locale/C.utf8 -xdev -size -8M 2>/dev/null || true
}
list | tar -cf - --no-recursion --numeric-owner --xattrs -T - | "$BTROVL" base import host -
`

// The script that lives in the view for a while. It is PID 1 of nothing: it has a mount
// namespace of its own, in which the view becomes the root directory, and comes back.
const visit = `
set -eu
view=$1
cd "$view"
mkdir -p proc dev tmp run old home/guest
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs tmp
chmod 1777 tmp
pivot_root . old
cd /
hash -r

# As root.
[ -e /old/proc/self ] && [ "$(stat -f -c %T /)" = fuseblk -o "$(stat -f -c %T /)" = fuse ]
echo "shell: $(sh -c 'echo $((6 * 7))')"
if command -v dpkg >/dev/null; then echo "packages: $(dpkg -l | grep -c ^ii)"; fi
if [ -x /usr/bin/python3 ]; then /usr/bin/python3 -c 'import os, sys; print("python:", sys.version_info[0], os.path.exists("/etc/passwd"))'; fi
echo visited >/etc/btrovl-visit
[ "$(cat /proc/self/mounts | awk '$2 == "/" { print $3 }' | tail -n 1 | cut -c1-4)" = fuse ]

# As somebody else: permissions hold, own files can be made.
chown 1000:1000 home/guest
setpriv --reuid 1000 --regid 1000 --clear-groups sh -eu -c '
	echo "guest: $(id -u)"
	echo mine >/home/guest/file
	if (echo not mine >/etc/btrovl-visit) 2>/dev/null; then echo "guest wrote /etc"; exit 1; fi
	if cat /etc/shadow >/dev/null 2>&1; then echo "guest read shadow"; exit 1; fi
	if [ -x /usr/bin/python3 ]; then /usr/bin/python3 -c "import os; print(\"guest python:\", os.getuid())"; fi
'
# And back.
umount tmp
umount -R dev
umount proc
cd /old
pivot_root . ."$view"
cd /
[ -e "$view/etc/btrovl-visit" ]
echo "back: $(stat -f -c %T "$view")"
`

// A real system tree is entered by pivot_root and lived in, as root and as another user.
func TestEnterView(t *testing.T) {
	testenv.FUSE(t)
	for _, c := range []string{"unshare", "pivot_root", "setpriv", "tar"} {
		testenv.Command(t, c)
	}
	dir, run := pool(t)
	start := time.Now()
	_, err := command(3*time.Minute, append(poolEnv(dir), "BTROVL="+testenv.Program(t)), "sh", "-c", hostTree)
	testenv.Must(t, err)
	t.Logf("imported the host in %v", time.Since(start).Round(time.Millisecond))
	run("overlay", "add", "system", "--path", "/")
	run("overlay", "add", "home", "--path", "/home")
	view := testenv.Dir(t)
	run("mount", view)
	out, err := command(2*time.Minute, nil, "unshare", "--mount", "--propagation", "private", "sh", "-c", visit, "visit", view)
	t.Log("\n" + out)
	testenv.Must(t, err)
	for _, want := range []string{"shell: 42", "guest: 1000", "back: fuse"} {
		if !strings.Contains(out, want) {
			t.Errorf("the visit did not say %q", want)
		}
	}
	// What was done there is here, with its owner.
	b, err := os.ReadFile(view + "/etc/btrovl-visit")
	if err != nil || string(b) != "visited\n" {
		t.Errorf("/etc/btrovl-visit: %q, %v", b, err)
	}
	st, err := os.Stat(view + "/home/guest/file")
	testenv.Must(t, err)
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != 1000 {
		t.Errorf("the guest's file belongs to %d", uid)
	}
	run("umount", view)
}

// mount(8) finds the view by its helper, as for a line in fstab.
func TestMountHelper(t *testing.T) {
	testenv.FUSE(t)
	dir, run := pool(t)
	tree := t.TempDir()
	testenv.Must(t, os.WriteFile(tree+"/hello", []byte("from the base"), 0o644))
	run("base", "import", "1", tree)
	run("overlay", "add", "system", "--path", "/")
	helper := filepath.Join(filepath.Dir(testenv.Program(t)), "mount.btrovl")
	if _, err := os.Lstat(helper); err != nil {
		testenv.Must(t, os.Symlink("btrovl", helper))
	}
	view := testenv.Dir(t)
	// As mount(8) calls it.
	_, err := command(2*time.Minute, []string{"BTROVL_CONFIG=/nonexistent"}, helper, dir, view, "-o", "rw,nosuid,x-systemd.automount")
	testenv.Must(t, err)
	b, err := os.ReadFile(view + "/hello")
	if err != nil || string(b) != "from the base" {
		t.Errorf("the view shows %q, %v", b, err)
	}
	run("umount", view)
}
