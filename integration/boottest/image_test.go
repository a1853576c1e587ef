package boottest

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ulikunitz/xz"

	"github.com/btrovl/btrovl/integration/testenv"
)

// kernel returns the path of a kernel image and of its modules' directory. The package
// is downloaded once and unpacked below the cache directory.
func kernel(t testing.TB) (image, modules string) {
	t.Helper()
	cache := os.Getenv("BTROVL_BOOT_CACHE")
	if cache == "" {
		cache = filepath.Join("..", "..", "build", "boot")
	}
	cache, err := filepath.Abs(cache)
	testenv.Must(t, err)
	find := func() bool {
		images, _ := filepath.Glob(filepath.Join(cache, "kernel/boot/vmlinuz-*"))
		dirs, _ := filepath.Glob(filepath.Join(cache, "kernel/lib/modules/*"))
		if usr, _ := filepath.Glob(filepath.Join(cache, "kernel/usr/lib/modules/*")); len(dirs) == 0 {
			dirs = usr
		}
		if len(images) != 1 || len(dirs) != 1 {
			return false
		}
		image, modules = images[0], dirs[0]
		return true
	}
	if find() {
		return image, modules
	}
	testenv.Must(t, os.RemoveAll(filepath.Join(cache, "kernel")))
	testenv.Must(t, os.MkdirAll(cache, 0o755))
	const get = `
set -eu
cd "$1"
rm -f ./*.deb
find_package() {
	for meta in linux-image-6.12-cloud-amd64 linux-image-cloud-amd64; do
		package=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9.]*[^ ]*\)$/\1/p' | head -n 1)
		[ -z "$package" ] || break
	done
}
find_package
[ -n "$package" ] || { apt-get -qq update; find_package; }
[ -n "$package" ] || { echo "no cloud kernel in the package lists"; exit 1; }
apt-get -q download "$package"
dpkg-deb -x ./*.deb kernel
rm -f ./*.deb
`
	_, err = command(5*time.Minute, "sh", "-c", get, "get", cache)
	testenv.Must(t, err)
	if !find() {
		t.Fatalf("no kernel in %s", cache)
	}
	return image, modules
}

// A cpio archive as the kernel unpacks it into the initramfs (newc).
type cpio struct {
	b   bytes.Buffer
	ino int
}

func (c *cpio) add(name string, mode os.FileMode, data []byte) {
	m := uint32(mode.Perm())
	switch {
	case mode.IsDir():
		m |= 0o040000
	case mode&os.ModeSymlink != 0:
		m |= 0o120000
	default:
		m |= 0o100000
	}
	c.ino++
	fmt.Fprintf(&c.b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, m, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.b.WriteString(name + "\x00")
	c.pad()
	c.b.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.b.Len()%4 != 0 {
		c.b.WriteByte(0)
	}
}

func (c *cpio) file(t testing.TB, name string, mode os.FileMode, from string) {
	t.Helper()
	b, err := os.ReadFile(from)
	testenv.Must(t, err)
	c.add(name, mode, b)
}

func (c *cpio) store(path string) error {
	c.add("TRAILER!!!", 0, nil)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := z.Write(c.b.Bytes()); err != nil {
		return err
	}
	return z.Close()
}

// initramfs makes the initramfs of integration/init/shell.
func initramfs(t testing.TB, btrovl, modules string) string {
	t.Helper()
	var c cpio
	for _, d := range []string{"bin", "lib", "lib/modules", "lib/modules/btrovl", "proc", "sys", "dev", "run", "root"} {
		c.add(d, os.ModeDir|0o755, nil)
	}
	c.file(t, "init", 0o755, "../init/shell/init")
	c.file(t, "bin/btrovl", 0o755, btrovl)
	c.file(t, "bin/busybox", 0o755, busybox(t))
	for _, tool := range strings.Fields("sh mount umount mkdir cat sleep insmod switch_root reboot echo") {
		c.add("bin/"+tool, os.ModeSymlink|0o777, []byte("busybox"))
	}
	for i, m := range moduleOrder(t, modules, "virtio_pci", "virtio_blk", "fuse", "btrfs") {
		c.add(fmt.Sprintf("lib/modules/btrovl/%02d-%s.ko", i, m.name), 0o644, m.data)
	}
	path := filepath.Join(t.TempDir(), "initramfs")
	testenv.Must(t, c.store(path))
	return path
}

func busybox(t testing.TB) string {
	t.Helper()
	p, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("this test needs busybox (package busybox-static)")
	}
	return p
}

type module struct {
	name string
	data []byte
}

// moduleOrder returns the modules and what they depend on, dependencies first. What is
// built into the kernel is left out.
func moduleOrder(t testing.TB, dir string, names ...string) []module {
	t.Helper()
	paths := map[string]string{}
	testenv.Must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if name, _, ok := strings.Cut(filepath.Base(p), ".ko"); ok {
				paths[strings.ReplaceAll(name, "-", "_")] = p
			}
		}
		return err
	}))
	var out []module
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		name = strings.ReplaceAll(name, "-", "_")
		path := paths[name]
		if seen[name] || path == "" {
			return
		}
		seen[name] = true
		data, err := os.ReadFile(path)
		testenv.Must(t, err)
		if strings.HasSuffix(path, ".xz") {
			r, err := xz.NewReader(bytes.NewReader(data))
			testenv.Must(t, err)
			data, err = io.ReadAll(r)
			testenv.Must(t, err)
		}
		f, err := elf.NewFile(bytes.NewReader(data))
		testenv.Must(t, err)
		info, err := f.Section(".modinfo").Data()
		testenv.Must(t, err)
		for _, field := range strings.Split(string(info), "\x00") {
			if deps, ok := strings.CutPrefix(field, "depends="); ok && deps != "" {
				for _, d := range strings.Split(deps, ",") {
					visit(d)
				}
			}
			// Soft dependencies: what btrfs asks the kernel's crypto layer for.
			if soft, ok := strings.CutPrefix(field, "softdep=pre: "); ok {
				for _, d := range strings.Fields(soft) {
					visit(d)
				}
			}
		}
		out = append(out, module{name, data})
	}
	for _, n := range []string{"crc32c_generic", "xxhash_generic", "blake2b_generic"} {
		visit(n)
	}
	for _, n := range names {
		visit(n)
	}
	return out
}

// baseInit is /sbin/init of the bases: it does what the kernel command line asks for.
const baseInit = `#!/bin/sh
export PATH=/bin:/sbin BTROVL_POOL=/run/btrovl/disk/btrovl
say() { echo "GUEST $*" >/dev/console; }
word() { for w in $(cat /proc/cmdline); do case $w in $1=*) echo "${w#*=}" ;; esac; done; }
off() { sync; poweroff -f; sleep 60; }

say "version $(cat /etc/version) root $(awk '$2 == "/" { t = $3 } END { print t }' /proc/mounts)"
say "trial $(btrovl status --json | tr -d ' \n' | sed -n 's/.*"trial":{[^}]*"tries_left":\([0-9]*\).*/\1/p')"
n=$(ls /home | sed -n 's/^ack\.//p' | sort -n | tail -n 1)
n=${n:-0}
say "count $n"
case $(word btrovl.do) in
look) ;;
check) btrovl doctor --deep >/dev/console 2>&1 && say "sound" || say "DAMAGED" ;;
update) btrovl update "/run/btrovl/disk/$(word btrovl.bundle)" >/dev/console 2>&1; say "update $?" ;;
good) btrovl mark-good >/dev/console 2>&1; say "good $?" ;;
rollback) btrovl rollback --next-boot >/dev/console 2>&1; say "rollback $?" ;;
hang) say "hanging"; while :; do sleep 1; done ;;
work)
	while :; do
		n=$((n + 1))
		echo $n | dd of=/home/ack.$n conv=fsync 2>/dev/null && say "ack $n"
		case $((n % 6)) in
		1) btrovl update --next-boot /run/btrovl/disk/1-2.btrovl ;;
		2) btrovl backup create data ;;
		3) btrovl reset --keep data --yes --next-boot ;;
		4) btrovl rollback --next-boot ;;
		5) btrovl gc ;;
		esac >/dev/null 2>&1
		say "did $((n % 6)) $?"
	done
	;;
esac
off
`

// baseTree makes a small system that says which version it is.
func baseTree(t testing.TB, dir, btrovl string, version int) {
	t.Helper()
	for _, d := range strings.Fields("bin sbin etc/btrovl proc sys dev run tmp home lib") {
		testenv.Must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	copyFile(t, busybox(t), dir+"/bin/busybox")
	copyFile(t, btrovl, dir+"/bin/btrovl")
	for _, tool := range strings.Fields("sh cat echo sleep sync poweroff awk sed tr grep ls dd sort tail mount umount") {
		testenv.Must(t, os.Symlink("busybox", filepath.Join(dir, "bin", tool)))
	}
	write := func(name, text string, mode os.FileMode) {
		testenv.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), mode))
	}
	write("sbin/init", baseInit, 0o755)
	write("etc/version", fmt.Sprintln(version), 0o644)
	write("etc/btrovl/config.toml", "pool = \"/run/btrovl/disk/btrovl\"\n", 0o644)
	for i := range 30 {
		write(fmt.Sprintf("lib/data%02d", i), strings.Repeat(fmt.Sprintf("version %d of file %d\n", version*(i%3), i), 1000), 0o644)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	testenv.Must(t, err)
	testenv.Must(t, os.WriteFile(to, b, 0o755))
}
