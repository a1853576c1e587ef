package trusttest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// A limit is a memory cgroup of version 2 or 1. Page cache counts in it, too: what is
// written and cannot be dropped in time would end the process as its heap would.
type limit struct{ procs, dir string }

// newLimit makes one, or returns nil where this machine lets nobody.
func newLimit(t testing.TB, bytes int64) *limit {
	name := fmt.Sprintf("btrovl-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	for _, c := range []struct{ root, has, max string }{
		{"/sys/fs/cgroup", "/sys/fs/cgroup/cgroup.controllers", "memory.max"},
		{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "memory.limit_in_bytes"},
	} {
		if _, err := os.Stat(c.has); err != nil {
			continue
		}
		dir := filepath.Join(c.root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() {
			for range 50 {
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
			t.Errorf("cannot remove %s", dir)
		})
		if err := os.WriteFile(filepath.Join(dir, c.max), []byte(strconv.FormatInt(bytes, 10)), 0o644); err != nil {
			continue
		}
		return &limit{filepath.Join(dir, "cgroup.procs"), dir}
	}
	return nil
}

// killed says how often the kernel ended a process for want of memory.
func (l *limit) killed() int {
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		b, _ := os.ReadFile(filepath.Join(l.dir, name))
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
				n, _ := strconv.Atoi(f[1])
				return n
			}
		}
	}
	return 0
}

func (l *limit) String() string {
	if l == nil {
		return "no memory cgroup here"
	}
	return fmt.Sprintf("in a memory cgroup of that size, %d kills", l.killed())
}

// measured runs the program under the limit and returns the most that was resident,
// as the kernel counted it (VmHWM).
func measured(t testing.TB, l *limit, pool string, args ...string) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	// A shell puts itself into the cgroup and becomes the program: not a byte is used outside.
	procs := "/dev/null"
	if l != nil {
		procs = l.procs
	}
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, procs, testenv.Program(t)}, args...)...)
	cmd.Env = append(os.Environ(), "BTROVL_POOL="+pool, "BTROVL_CONFIG=/nonexistent/btrovl", "GOMEMLIMIT=off", "GOGC=100")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	testenv.Must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var high int64
	for {
		select {
		case err := <-done:
			if err != nil {
				if l != nil {
					said.WriteString(fmt.Sprintf("killed for want of memory: %d", l.killed()))
				}
				t.Fatalf("btrovl %s: %v\n%s", strings.Join(args, " "), err, said.String())
			}
			return high
		case <-time.After(5 * time.Millisecond):
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			for line := range strings.Lines(string(b)) {
				if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
					n, _ := strconv.ParseInt(f[1], 10, 64)
					high = max(high, n<<10)
				}
			}
		}
	}
}

// largeFile writes a file of that size that no two blocks of are equal, and that
// compresses well: making the bundle shall not take an hour.
func largeFile(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	testenv.Must(t, err)
	defer f.Close()
	block := make([]byte, 64<<10)
	rand.New(rand.NewSource(1)).Read(block[:8<<10])
	for at := int64(0); at < size; at += int64(len(block)) {
		for i := 8 << 10; i+8 <= len(block); i += 512 {
			binary.LittleEndian.PutUint64(block[i:], uint64(at)+uint64(i))
		}
		_, err := f.Write(block[:min(int64(len(block)), size-at)])
		testenv.Must(t, err)
	}
}

// Memory: an update stays within what its manifest states, however large a file is. The
// long run (make test-memory) has one of 3 GiB.
func TestMemoryOfUpdate(t *testing.T) {
	testenv.Root(t)
	size, memories := int64(96<<20), []string{"low"}
	if os.Getenv("BTROVL_MEMORY") != "" {
		size, memories = 3<<30, []string{"normal", "low", "32"}
	}
	dir := testenv.NewBtrfs(t, 4*size+2<<30)
	one, two := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	testenv.Must(t, os.Mkdir(one, 0o755), os.WriteFile(filepath.Join(one, "small"), []byte("one"), 0o644))
	largeFile(t, filepath.Join(one, "large"), size)
	// The second state: the same file with a hundred places changed, and moved.
	testenv.Run(t, "cp", "-a", "--reflink=always", one, two)
	f, err := os.OpenFile(filepath.Join(two, "large"), os.O_WRONLY, 0)
	testenv.Must(t, err)
	for i := range int64(100) {
		_, err := f.WriteAt([]byte("changed"), size/100*i)
		testenv.Must(t, err)
	}
	testenv.Must(t, f.Close(), os.Rename(filepath.Join(two, "large"), filepath.Join(two, "moved")), unix.Chmod(filepath.Join(two, "small"), 0o600))

	key := filepath.Join(dir, "k")
	must(t, "", "bundle", "keygen", key, "--no-password")
	for _, memory := range memories {
		pool := filepath.Join(dir, "pool-"+memory)
		must(t, "", "init", pool)
		must(t, pool, "key", "add", key+".pub")
		for _, b := range [][]string{{"--to", "1=" + one}, {"--from", "1=" + one, "--to", "2=" + two}} {
			file := filepath.Join(dir, "bundle")
			begun := time.Now()
			must(t, "", append([]string{"bundle", "create", "--compression", "fast", "--memory", memory, "--key", key + ".key", "-o", file, "--quiet"}, b...)...)
			made := time.Since(begun)
			stated := stated(t, file)
			l := newLimit(t, stated)
			begun = time.Now()
			high := measured(t, l, pool, "update", "--tries", "0", file)
			t.Logf("%s: a file of %d MiB; stated %d MiB, resident %d MiB (%s); made in %.0f s, applied in %.0f s",
				strings.Join(b, " "), size>>20, stated>>20, high>>20, l, made.Seconds(), time.Since(begun).Seconds())
			if high > stated {
				t.Errorf("%d bytes were resident, stated are %d", high, stated)
			}
			if high == 0 {
				t.Error("nothing was measured")
			}
			testenv.Must(t, os.Remove(file))
		}
		testenv.RemoveTree(pool)
	}
}

// Many small files: what is written of them waits for the disk as that of a large one
// does, and no single file is large enough to be waited for.
func TestMemoryOfManyFiles(t *testing.T) {
	testenv.Root(t)
	files, each := 2_500, 32<<10
	if os.Getenv("BTROVL_MEMORY") != "" {
		files = 30_000
	}
	dir := testenv.NewBtrfs(t, int64(files*each)*4+2<<30)
	one := filepath.Join(dir, "1")
	noise := rand.New(rand.NewSource(1))
	content := make([]byte, each)
	for i := range files {
		sub := filepath.Join(one, strconv.Itoa(i/500))
		if i%500 == 0 {
			testenv.Must(t, os.MkdirAll(sub, 0o755))
		}
		noise.Read(content)
		testenv.Must(t, os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), content, 0o644))
	}
	key, pool, file := filepath.Join(dir, "k"), filepath.Join(dir, "pool"), filepath.Join(dir, "bundle")
	must(t, "", "bundle", "keygen", key, "--no-password")
	must(t, "", "init", pool)
	must(t, pool, "key", "add", key+".pub")
	must(t, "", "bundle", "create", "--compression", "fast", "--memory", "low", "--key", key+".key", "-o", file, "--quiet", "--to", "1="+one)
	stated := stated(t, file)
	l := newLimit(t, stated)
	slow(t, dir)
	begun := time.Now()
	high := measured(t, l, pool, "update", "--tries", "0", file)
	t.Logf("%d files of %d KiB; stated %d MiB, resident %d MiB (%s); applied in %.0f s",
		files, each>>10, stated>>20, high>>20, l, time.Since(begun).Seconds())
	if high > stated || high == 0 {
		t.Errorf("%d bytes were resident, stated are %d", high, stated)
	}
}

// slow lets the disk of the file system at dir take 16 MiB in a second, as an SD card does,
// until the test ends. Where the kernel's blkio cgroup cannot, the disk stays fast.
func slow(t testing.TB, dir string) {
	t.Helper()
	const knob = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device"
	dev := strings.TrimSpace(testenv.Run(t, "findmnt", "-no", "SOURCE", "-T", dir))
	var st unix.Stat_t
	testenv.Must(t, unix.Stat(dev, &st))
	say := func(bps int64) error {
		return os.WriteFile(knob, fmt.Appendf(nil, "%d:%d %d", unix.Major(st.Rdev), unix.Minor(st.Rdev), bps), 0o644)
	}
	if err := say(16 << 20); err != nil {
		t.Logf("the disk is as fast as it is: %v", err)
		return
	}
	t.Cleanup(func() { testenv.Must(t, say(0)) })
}

// stated is the memory that a bundle's manifest states.
func stated(t testing.TB, file string) int64 {
	t.Helper()
	var info struct {
		Manifest struct{ Apply struct{ Memory int64 } }
	}
	testenv.Must(t, json.Unmarshal([]byte(must(t, "", "bundle", "info", "--json", file)), &info))
	return info.Manifest.Apply.Memory
}
