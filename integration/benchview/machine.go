package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is the image, the pool in it and what is mounted.
type machine struct {
	dir    string // on the host
	fs     string // the mounted image
	pool   string
	base   string // the pool's base
	btrovl string
	size   *sizes
	undo   []func() error
}

// sizes are those of the base and of the work.
type sizes struct {
	image       int64 // bytes of the file system
	rootfs      int   // entries of the host's /usr at most …
	rootfsBytes int64 // … and bytes
	many        int   // files of one directory
	read        int64 // bytes of the file that is read and written
	huge        int64 // bytes of the files that are changed for the first time
	created     int   // files that are made, renamed and removed
	calls       int   // of the shortest loop
	copyUps     int   // files of huge bytes that share their blocks, for each round
}

var (
	full  = sizes{image: 14 << 30, rootfs: 30000, rootfsBytes: 600 << 20, many: 50000, read: 512 << 20, huge: 1 << 30, created: 10000, calls: 20000, copyUps: 5}
	small = sizes{image: 2 << 30, rootfs: 3000, rootfsBytes: 60 << 20, many: 5000, read: 64 << 20, huge: 128 << 20, created: 1000, calls: 2000, copyUps: 2}
)

const copyRounds = 10 // for which there are files to copy up

func newMachine(ctx context.Context, o *options) (m *machine, err error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, err
	}
	m = &machine{dir: dir, fs: filepath.Join(dir, "fs"), btrovl: o.btrovl, size: &full}
	if o.small {
		m.size = &small
	}
	m.pool = filepath.Join(m.fs, "pool")
	m.base = filepath.Join(m.pool, "bases", "1")
	if err := os.MkdirAll(m.fs, 0o755); err != nil {
		return m, err
	}
	m.undo = append(m.undo, func() error { return os.RemoveAll(dir) })
	img := filepath.Join(dir, "img")
	// Every block of the image is written once, and none is given back: where btrfs writes to a hole of the
	// file, its next flush waits for the journal of the file system below, 5 to 15 ms instead of half of one, and
	// which target that hits is chance.
	blocks := fmt.Sprintf("count=%d", m.size.image>>22)
	if err := command(ctx, "dd", "if=/dev/zero", "of="+img, "bs=4M", blocks, "oflag=direct", "conv=fsync"); err != nil {
		return m, err
	}
	if err := command(ctx, "mkfs.btrfs", "-q", "--nodiscard", "-m", "single", img); err != nil {
		return m, err
	}
	// Direct I/O: otherwise the host's page cache holds everything a second time, and
	// "cold" is not cold.
	loop, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", img)
	if err != nil {
		return m, err
	}
	loop = strings.TrimSpace(loop)
	m.undo = append(m.undo, func() error { return command(context.Background(), "losetup", "-d", loop) })
	if err := command(ctx, "mount", "-o", "noatime,nodiscard", loop, m.fs); err != nil {
		return m, err
	}
	m.undo = append(m.undo, func() error { return unmount(m.fs) })
	return m, m.makeBase(ctx, o.debian)
}

// close undoes everything, last first.
func (m *machine) close() error {
	var errs []error
	for m != nil && len(m.undo) > 0 {
		f := m.undo[len(m.undo)-1]
		m.undo = m.undo[:len(m.undo)-1]
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// makeBase fills a directory of the image and imports it as the pool's base 1.
func (m *machine) makeBase(ctx context.Context, debian bool) error {
	tree := filepath.Join(m.fs, "tree")
	mk := func(elem ...string) string { return filepath.Join(append([]string{tree}, elem...)...) }
	if err := os.MkdirAll(mk("tmp"), 0o777); err != nil {
		return err
	}
	if err := copySome(ctx, mk("rootfs"), "/usr", m.size.rootfs, m.size.rootfsBytes); err != nil {
		return err
	}
	if debian {
		if err := makeDebian(ctx, mk("debian")); err != nil {
			return err
		}
		if err := makeBoot(ctx, mk("boot")); err != nil {
			return err
		}
	}
	goroot := strings.TrimSpace(must(output(ctx, "go", "env", "GOROOT")))
	if goroot == "" {
		goroot = runtime.GOROOT()
	}
	for _, d := range []string{"bin", "pkg", "src", "VERSION", "go.env"} {
		if err := copySome(ctx, mk("goroot", d), filepath.Join(goroot, d), 1<<20, 4<<30); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	repo := mk("goroot", "src")
	git := func(args ...string) error {
		return command(ctx, "git", append([]string{"-c", "safe.directory=*", "-C", repo, "-c", "user.email=a@b", "-c", "user.name=x", "-c", "gc.auto=0"}, args...)...)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"commit", "-q", "-m", "x"}, {"status"}} {
		if err := git(args...); err != nil {
			return err
		}
	}
	if err := os.Mkdir(mk("big"), 0o755); err != nil {
		return err
	}
	for i := range m.size.many {
		if err := os.WriteFile(mk("big", fmt.Sprintf("file%05d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	if err := fill(mk("read"), m.size.read); err != nil {
		return err
	}
	if err := fill(mk("huge"), m.size.huge); err != nil {
		return err
	}
	if err := os.Mkdir(mk("copyup"), 0o755); err != nil {
		return err
	}
	for i := range m.size.copyUps * copyRounds {
		if err := command(ctx, "cp", "--reflink=always", mk("huge"), mk("copyup", fmt.Sprint(i))); err != nil {
			return err
		}
	}
	if err := command(ctx, "tar", "-C", repo, "-cf", filepath.Join(m.fs, "pkg.tar"), "cmd/compile", "cmd/go", "net", "runtime", "crypto"); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"init", m.pool},
		{"--pool", m.pool, "base", "import", "1", tree},
		{"--pool", m.pool, "overlay", "add", "system", "--path", "/"},
	} {
		if err := command(ctx, m.btrovl, args...); err != nil {
			return err
		}
	}
	return os.RemoveAll(tree)
}

// fill writes a file whose pages differ.
func fill(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	x := uint32(2463534242)
	for off := int64(0); off < size; off += int64(len(b)) {
		for i := range b {
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
			b[i] = byte(x)
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return f.Close()
}

// copySome copies a tree, in the order of its names, as far as the limits go.
func copySome(ctx context.Context, dst, src string, entries int, bytes int64) error {
	return filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if entries--; entries < 0 || bytes < 0 {
			return fs.SkipAll
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		switch fi.Mode().Type() {
		case fs.ModeDir:
			return os.MkdirAll(to, 0o755)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		case 0:
			bytes -= fi.Size()
			return copyFile(to, p, fi.Mode())
		}
		return nil
	})
}

func copyFile(dst, src string, mode fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// sync writes all that is to be written.
func (m *machine) sync() error {
	f, err := os.Open(m.fs)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// dropCaches makes the next access cold.
func (m *machine) dropCaches() error {
	if err := m.sync(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0o200)
}

func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

func must(s string, err error) string {
	if err != nil {
		return ""
	}
	return s
}

func unmount(mnt string) error {
	var err error
	for range 100 {
		if err = unix.Unmount(mnt, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		unix.Unmount(mnt, unix.MNT_DETACH)
		return fmt.Errorf("unmount %s: %w", mnt, err)
	}
	return nil
}
