// Package testenv gives tests the machine that they need, and takes it back.
//
// A test that needs root, a btrfs file system or /dev/fuse says so by calling
// [Root], [Btrfs], [NewBtrfs] or [FUSE]. Where the machine lacks it the test is
// skipped, except with BTROVL_TEST_ALL=1 (as CI runs), where it fails: a check
// never disappears silently.
//
// A package whose tests mount anything has
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// [Main] removes what earlier, killed test processes left (mounts, loop
// devices, images: everything lies below one directory that carries the process
// id), runs the tests, takes the shared image down and fails when the process
// leaves mounts or loop devices of its own behind.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Need skips the test for want of something else, or fails it, as BTROVL_TEST_ALL says.
func Need(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("BTROVL_TEST_ALL") == "1" {
		t.Fatalf("BTROVL_TEST_ALL=1, but "+format, args...)
	}
	t.Skipf(format+" (BTROVL_TEST_ALL=1 makes this a failure)", args...)
}

// Root needs the test to run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Need(t, "this test needs root")
	}
}

// FUSE needs root and /dev/fuse.
func FUSE(t testing.TB) {
	t.Helper()
	Root(t)
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		Need(t, "this test needs /dev/fuse: %v", err)
		return
	}
	f.Close()
}

// Command needs a program (a peer that serves as oracle) and returns its path.
func Command(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		Need(t, "this test needs the command %q", name)
	}
	return p
}

// Run runs a command, fails the test if it fails, and returns what it printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(Command(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var shared struct {
	sync.Mutex
	base string // this process's directory, "" until made
	mnt  string // the shared btrfs, "" until made
	n    int
}

// prefix of the directories of all test processes.
func prefix() string { return filepath.Join(os.TempDir(), "btrovl-test-") }

func baseLocked() (string, error) {
	if shared.base == "" {
		dir := prefix() + strconv.Itoa(os.Getpid())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		shared.base = dir
	}
	return shared.base, nil
}

// Dir returns a new empty directory on the machine's ordinary file system. What
// is mounted below it is unmounted when the test ends, or by the next test
// process if this one is killed. Use it for mount points.
func Dir(t testing.TB) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	base, err := baseLocked()
	if err != nil {
		t.Fatal(err)
	}
	shared.n++
	dir := filepath.Join(base, "d"+strconv.Itoa(shared.n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(dir)
		os.RemoveAll(dir)
	})
	return dir
}

// ProcessDir returns a directory that all tests of this process share. It goes with the
// process, or by the next one if this is killed.
func ProcessDir(t testing.TB) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	base, err := baseLocked()
	Must(t, err)
	dir := filepath.Join(base, "all")
	Must(t, os.MkdirAll(dir, 0o755))
	return dir
}

// Btrfs returns a new empty directory on a btrfs file system that all tests of
// this process share (8 GiB, sparse). Subvolumes below it are deleted when the
// test ends.
func Btrfs(t testing.TB) string {
	t.Helper()
	Root(t)
	Command(t, "mkfs.btrfs")
	shared.Lock()
	defer shared.Unlock()
	if shared.mnt == "" {
		base, err := baseLocked()
		if err != nil {
			t.Fatal(err)
		}
		mnt := filepath.Join(base, "shared")
		if err := MountImage(filepath.Join(base, "shared.img"), mnt, 8<<30); err != nil {
			Need(t, "this test needs a btrfs loop mount: %v", err)
			return ""
		}
		shared.mnt = mnt
	}
	shared.n++
	dir := filepath.Join(shared.mnt, "t"+strconv.Itoa(shared.n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(dir)
		RemoveTree(dir)
	})
	return dir
}

// NewBtrfs returns the mount point of a btrfs file system of the given size that
// only this test uses.
func NewBtrfs(t testing.TB, size int64) string {
	t.Helper()
	Root(t)
	Command(t, "mkfs.btrfs")
	dir := Dir(t)
	mnt := filepath.Join(dir, "mnt")
	if err := MountImage(filepath.Join(dir, "img"), mnt, size); err != nil {
		Need(t, "this test needs a btrfs loop mount: %v", err)
	}
	return mnt
}

// MountImage makes a sparse image file with a new btrfs file system and mounts
// it (the loop device detaches itself at umount).
func MountImage(img, mnt string, size int64) error {
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return err
	}
	f, err := os.Create(img)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	f.Close()
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		out, err := exec.Command("mkfs.btrfs", "-q", "-m", "single", img).CombinedOutput()
		if err == nil {
			break
		}
		// mkfs looks at the file below every loop device of the machine. A crash test
		// elsewhere may be about to take one down whose FUSE server is dead.
		if !strings.Contains(string(out), "Transport endpoint is not connected") || try == 60 {
			return fmt.Errorf("mkfs.btrfs %s: %v: %s", img, err, out)
		}
		time.Sleep(500 * time.Millisecond)
	}
	if out, err := exec.Command("mount", "-o", "loop,noatime,user_subvol_rm_allowed", img, mnt).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %v: %s", img, err, out)
	}
	return nil
}

// RemoveTree removes a directory with all subvolumes in it.
func RemoveTree(dir string) error {
	// Deepest first: a subvolume that holds another cannot be deleted. Inode 256
	// marks the root of a subvolume.
	var subs []string
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil && st.Ino == 256 && p != dir {
			subs = append(subs, p)
		}
		return nil
	})
	for i := len(subs) - 1; i >= 0; i-- {
		exec.Command("btrfs", "-q", "property", "set", "-f", subs[i], "ro", "false").Run()
		exec.Command("btrfs", "-q", "subvolume", "delete", subs[i]).Run()
	}
	return os.RemoveAll(dir)
}

// Main is what TestMain calls; see the package comment.
func Main(m *testing.M) { os.Exit(Code(m)) }

// Code is Main for a TestMain that has something else to finish before it exits:
// it returns the exit code.
func Code(m interface{ Run() int }) int {
	sweep()
	before := loops()
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.base != "" {
		if left := mountsBelow(shared.base); len(left) > 0 && code == 0 {
			for _, p := range left {
				if p != shared.mnt {
					fmt.Fprintf(os.Stderr, "testenv: a test left this mounted: %s\n", p)
					code = 1
				}
			}
		}
		unmountBelow(shared.base)
		os.RemoveAll(shared.base)
	}
	// A loop device detaches itself shortly after the last umount.
	for i := 0; ; i++ {
		var left []string
		for dev, file := range loops() {
			if before[dev] != file && shared.base != "" && strings.HasPrefix(file, shared.base) {
				left = append(left, dev+" "+file)
			}
		}
		if len(left) == 0 {
			break
		}
		if i == 50 {
			fmt.Fprintf(os.Stderr, "testenv: loop devices left behind: %s\n", strings.Join(left, ", "))
			code = 1
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return code
}

// sweep removes what killed test processes left.
func sweep() {
	dirs, _ := filepath.Glob(prefix() + "*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(dir, prefix()))
		if err != nil || errors.Is(syscall.Kill(pid, 0), nil) {
			continue
		}
		unmountBelow(dir)
		for dev, file := range loops() {
			if strings.HasPrefix(file, dir+"/") {
				exec.Command("losetup", "-d", dev).Run()
			}
		}
		os.RemoveAll(dir)
	}
}

// loops returns the attached loop devices and their files.
func loops() map[string]string {
	m := map[string]string{}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			m["/dev/"+strings.Split(f, "/")[3]] = strings.TrimSpace(string(b))
		}
	}
	return m
}

// mountsBelow returns the mount points at or below dir, innermost last.
func mountsBelow(dir string) []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			p := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
			if p == dir || strings.HasPrefix(p, dir+"/") {
				out = append(out, p)
			}
		}
	}
	return out
}

func unmountBelow(dir string) {
	for range 8 { // stacked mounts
		left := mountsBelow(dir)
		if len(left) == 0 {
			return
		}
		for i := len(left) - 1; i >= 0; i-- {
			if unix.Unmount(left[i], 0) != nil {
				unix.Unmount(left[i], unix.MNT_DETACH)
			}
		}
	}
}
