package boottest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// report is a unit of the Debian machine: it says on the serial line what has come up,
// when systemd thinks that it is done, and switches the machine off.
const report = `[Unit]
Description=Tell the test
After=multi-user.target btrovl-mark-good.service
Wants=btrovl-mark-good.service
[Service]
Type=oneshot
Environment=BTROVL_POOL=/run/btrovl/disk/btrovl
ExecStart=/bin/sh -c '{ echo "GUEST root $(findmnt -n -o FSTYPE /)"; \
 echo "GUEST version $(cat /etc/version)"; \
 echo "GUEST failed $(systemctl --failed --no-legend --plain | cut -d" " -f1 | tr "\\n" " ")"; \
 for u in $(systemctl --failed --no-legend --plain | cut -d" " -f1); do journalctl -b --no-pager -n 15 -u $u; done; \
 echo "GUEST trial $(btrovl status --json | tr -d " \\n" | sed -n "s/.*\\"trial\\":\\(null\\|{\\).*/\\1/p")"; \
 if [ -e /run/btrovl/disk/1-2.btrovl ] && [ "$(cat /etc/version)" = 1 ]; then btrovl update /run/btrovl/disk/1-2.btrovl; echo "GUEST update $?"; fi; \
 echo "GUEST done"; } >/dev/ttyS0 2>&1; systemctl poweroff'
[Install]
WantedBy=multi-user.target
`

// A Debian machine, with its own kernel, its own initramfs (made by initramfs-tools or by
// dracut, with our hook or module) and systemd: boots from a view, updates itself, boots the
// new version and marks it good. BTROVL_BOOT_DEBIAN names a directory with a Debian system
// that has a kernel and one of the two, such as debootstrap makes with
// --include=linux-image-amd64,systemd-sysv,initramfs-tools,btrfs-progs.
func TestBootDebian(t *testing.T) {
	from := os.Getenv("BTROVL_BOOT_DEBIAN")
	if os.Getenv("BTROVL_BOOT") == "" || from == "" {
		t.Skip("needs BTROVL_BOOT=1 and BTROVL_BOOT_DEBIAN=DIR")
	}
	testenv.Root(t)
	dir := testenv.Dir(t)
	btrovl := testenv.Program(t)
	sh := func(script string, args ...string) {
		t.Helper()
		_, err := command(10*time.Minute, "sh", append([]string{"-euc", script, "sh"}, args...)...)
		testenv.Must(t, err)
	}
	root := filepath.Join(dir, "root")
	sh(`cp -a "$1" "$2" && rm -rf "$2"/proc/* "$2"/sys/* "$2"/dev/* "$2"/boot/initrd.img*`, from, root)
	sh(`../install.sh "$1" "$2" /usr >/dev/null`, btrovl, root)
	sh(`printf '%s' "$2" >"$1/etc/systemd/system/report.service"
		: >"$1/etc/fstab"
		mkdir -p "$1/etc/btrovl"
		echo 'pool = "/run/btrovl/disk/btrovl"' >"$1/etc/btrovl/config.toml"
		echo 1 >"$1/etc/version"
		trap 'umount "$1/proc"' EXIT
		mount -t proc proc "$1/proc"
		chroot "$1" systemctl mask -q serial-getty@ttyS0.service # it would take the line away from us
		chroot "$1" systemctl enable -q report.service btrovl-mark-good.service btrovl-health.service
		if [ ! -x "$1/usr/bin/dracut" ]; then chroot "$1" update-initramfs -c -k all; exit; fi
		for modules in "$1"/lib/modules/*; do
			version=${modules##*/}
			chroot "$1" depmod "$version"
			chroot "$1" dracut --quiet --force --no-hostonly --kver "$version" "/boot/initrd.img-$version"
		done`, root, report)

	mnt := filepath.Join(dir, "mnt")
	m := &machine{dir: dir, disk: filepath.Join(dir, "disk.img"), memory: "1536"}
	testenv.Must(t, testenv.MountImage(m.disk, mnt, 6<<30))
	pool := mnt + "/btrovl"
	run := func(args ...string) {
		t.Helper()
		_, err := command(10*time.Minute, btrovl, append([]string{"--pool", pool}, args...)...)
		testenv.Must(t, err)
	}
	run("init", pool)
	run("base", "import", "1", root)
	testenv.Must(t, os.WriteFile(root+"/etc/version", []byte("2\n"), 0o644))
	run("bundle", "keygen", dir+"/vendor", "--no-password")
	run("bundle", "create", "--from", "1="+pool+"/bases/1", "--to", "2="+root, "--key", dir+"/vendor.key", "-o", mnt+"/1-2.btrovl")
	run("key", "add", dir+"/vendor.pub")
	run("overlay", "add", "system", "--path", "/")
	unix.Sync()
	testenv.Must(t, unix.Unmount(mnt, 0))

	one := func(pattern string) string {
		t.Helper()
		files, _ := filepath.Glob(filepath.Join(root, pattern))
		if len(files) == 0 {
			t.Fatalf("no %s in %s", pattern, root)
		}
		return files[0]
	}
	m.kernel, m.initramfs = one("boot/vmlinuz-*"), one("boot/initrd.img-*")
	m.cmdline = "root=/dev/vda rootfstype=btrfs btrovl.pool=/btrovl systemd.show_status=false"
	for boot, lines := range [][]string{
		{`root fuse\S*`, "version 1", "failed ?", "trial null", "update 0", "done"},
		{`root fuse\S*`, "version 2", "failed ?", "trial null", "done"}, // marked good by the unit
	} {
		r := m.start(t, "")
		start := time.Now()
		for _, l := range lines {
			if _, err := r.await(l, 3*bootLimit); err != nil {
				t.Fatalf("boot %d: %v\n%s", boot+1, err, tail(r.said(), 6000))
			}
		}
		t.Logf("boot %d: up after %v", boot+1, time.Since(start).Round(time.Second))
		select {
		case <-r.done:
			t.Logf("boot %d: off after %v", boot+1, time.Since(start).Round(time.Second))
		case <-time.After(bootLimit):
			t.Errorf("boot %d: the machine does not switch off:\n%s", boot+1, tail(r.said(), 3000))
			r.cut()
		}
	}
	// What is on the disk is whole.
	testenv.Must(t, os.MkdirAll(mnt, 0o755))
	_, err := command(time.Minute, "mount", "-o", "loop", m.disk, mnt)
	testenv.Must(t, err)
	run("doctor", "--deep")
	testenv.Must(t, unix.Unmount(mnt, 0))
}

func tail(s string, n int) string {
	if len(s) > n {
		s = fmt.Sprintf("… %s", s[len(s)-n:])
	}
	return strings.TrimSpace(s)
}
