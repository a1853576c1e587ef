package viewtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// features are what users of unions complain about, and what random programs
// do not reach: each one is exact on a local file system. A check gets the root of
// a tree that featureBase made.
var features = []struct {
	name  string
	check func(t *testing.T, root string)
}{
	{"descriptor from before copy up", descriptorBeforeCopyUp},
	{"mapping from before copy up", mappingBeforeCopyUp},
	{"hard links of the base", baseHardLinks},
	{"renamed base directory", renamedBaseDirectory},
	{"recreated directory", recreatedDirectory},
	{"inode numbers stay", inodeNumbersStay},
	{"d_ino is st_ino", listedInodes},
	{"unlinking while reading a directory", unlinkWhileReading},
	{"removed working directory", removedCwd},
	{"deleted but open", deletedButOpen},
	{"deleted devices and pipes", deletedSpecial},
	{"inode flags", inodeFlags},
	{"holes", holes},
	{"mapping and read agree", mappingCoherence},
	{"flock", flocks},
	{"open file description locks", ofdLocks},
	{"leases", leases},
	{"inotify", inotify},
	{"birth time", birthTime},
	{"file handles", fileHandles},
	{"sockets and pipes", socketsAndPipes},
	{"statfs", statfs},
	{"names of any bytes", oddNames},
	{"large offsets", largeOffsets},
	{"appends do not overwrite", appends},
	{"large xattrs", largeXattrs},
	{"busy programs", busyProgram},
}

const lowerFiles = 1200 // in the directory many

func featureBase(dir string) error {
	w := func(name string, data []byte) error { return os.WriteFile(filepath.Join(dir, name), data, 0o644) }
	errs := []error{
		w("f", []byte("old content\n")),
		w("h1", bytes.Repeat([]byte("h"), 9000)),
		os.Link(filepath.Join(dir, "h1"), filepath.Join(dir, "h2")),
		os.MkdirAll(filepath.Join(dir, "d/sub/deep"), 0o755),
		w("d/file", []byte("in d")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644),
		unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))),
		w("d/sub/file", []byte("in sub")),
		w("d/sub/deep/file", []byte("in deep")),
		os.Symlink("sub/file", filepath.Join(dir, "d/link")),
		os.Mkdir(filepath.Join(dir, "many"), 0o755),
		os.Mkdir(filepath.Join(dir, "cwd"), 0o755),
	}
	for i := range lowerFiles {
		errs = append(errs, w(fmt.Sprintf("many/lower%d", i), nil))
	}
	e := entry{holes: true, size: 2 << 20, seed: 3}
	return errors.Join(append(errs, e.fill(filepath.Join(dir, "sparse")),
		(&entry{path: program}).fill(filepath.Join(dir, "prog")), os.Chmod(filepath.Join(dir, "prog"), 0o755))...)
}

func TestFeatures(t *testing.T) {
	testenv.FUSE(t)
	for _, target := range []Target{Native(), View()} {
		t.Run(target.Name, func(t *testing.T) {
			for _, f := range features {
				t.Run(f.name, func(t *testing.T) { f.check(t, mountOnce(t, target, featureBase).Root) })
			}
		})
	}
}

// overlayfsFails are the features that kernel overlayfs does not have, for the table in
// docs/testing.md (Linux 6.18).
var overlayfsFails = []string{"mapping from before copy up", "removed working directory", "deleted devices and pipes", "birth time", "file handles"}

const onOverlayfs = "BTROVL_FEATURES_OF_OVERLAYFS" // set in the process that tries them

// The same on kernel overlayfs: what it fails is no failure of ours, so another process tries it. One that
// it does not fail any more is said, one that it should not fail means that the check itself is wrong.
func TestFeaturesOfOverlayfs(t *testing.T) {
	if os.Getenv(onOverlayfs) != "" {
		for _, f := range features {
			t.Run(f.name, func(t *testing.T) { f.check(t, mountOnce(t, Overlayfs(), featureBase).Root) })
		}
		return
	}
	if !long() {
		t.Skip("part of make test-posix; kernel overlayfs does not pass all of it")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFeaturesOfOverlayfs$", "-test.v")
	cmd.Env = append(os.Environ(), onOverlayfs+"=1")
	out, _ := cmd.CombinedOutput()
	for _, f := range features {
		verdict := regexp.MustCompile(`--- (\w+): TestFeaturesOfOverlayfs/` + strings.ReplaceAll(regexp.QuoteMeta(f.name), " ", "_") + ` `).FindSubmatch(out)
		switch known := slices.Contains(overlayfsFails, f.name); {
		case verdict == nil:
			t.Fatalf("%s: no verdict\n%s", f.name, out)
		case string(verdict[1]) == "FAIL" && !known:
			t.Errorf("kernel overlayfs fails %q, too\n%s", f.name, out)
		case string(verdict[1]) != "FAIL" && known:
			t.Logf("kernel overlayfs does not fail %q any more: docs/testing.md", f.name)
		}
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%v, expected %v", err, want)
	}
}

func open(t *testing.T, flags int, elem ...string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(elem...), flags, 0o644)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func lstat(t *testing.T, elem ...string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	ok(t, unix.Lstat(filepath.Join(elem...), &st))
	return st
}

func content(t *testing.T, want string, elem ...string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	ok(t, err)
	if string(b) != want {
		t.Errorf("%s holds %.40q, expected %.40q", filepath.Join(elem...), b, want)
	}
}
