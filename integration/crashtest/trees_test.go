package crashtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// writeTree makes version n of a small system: files of all the sizes that btrfs
// treats differently (inline, one block, several extents), links, attributes, a hole.
// The versions differ as system versions do: some files change, some come, some go.
func writeTree(t testing.TB, dir string, n int) {
	t.Helper()
	testenv.Must(t, os.MkdirAll(dir, 0o755))
	file := func(name string, size, version int, mode os.FileMode) {
		rng := rand.New(rand.NewPCG(uint64(len(name))<<32|uint64(name[len(name)-1]), 7))
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(rng.IntN(64)) + ' '
		}
		// A version changes some bytes everywhere, as new builds do.
		for i := version * 13; i < size && version > 0; i += 997 {
			b[i] = byte('A' + version)
		}
		path := filepath.Join(dir, name)
		testenv.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.Must(t, os.WriteFile(path, b, mode))
		testenv.Must(t, os.Chmod(path, mode))
	}
	for i, size := range []int{0, 1, 100, 2000, 2049, 4095, 4096, 4097, 16384, 70000, 140000, 300000} {
		file(fmt.Sprintf("usr/bin/changes%02d", i), size, n, 0o755)
		file(fmt.Sprintf("usr/lib/stays%02d", i), size, 0, 0o644)
		file(fmt.Sprintf("usr/lib/v%d/comes%02d", n, i), size, n, 0o644)
	}
	file("etc/release", 40, n, 0o644)
	file("etc/app.conf", 900, 1, 0o600)
	file("var/lib/app/seed", 5000, 1, 0o640)
	file("home/skel", 10, 1, 0o644)
	for i := range 20 {
		file(fmt.Sprintf("usr/share/doc/%02d", i), 300+i*50, n*(i%2), 0o644)
	}
	testenv.Must(t, os.Link(filepath.Join(dir, "usr/bin/changes09"), filepath.Join(dir, "usr/bin/link")))
	testenv.Must(t, os.Symlink("changes03", filepath.Join(dir, "usr/bin/sym")))
	testenv.Must(t, unix.Lsetxattr(filepath.Join(dir, "usr/bin/changes03"), "user.version", []byte{byte('0' + n)}, 0))
	testenv.Must(t, os.Truncate(filepath.Join(dir, "usr/lib/stays11"), 900000))
	testenv.Must(t, unix.Mknod(filepath.Join(dir, "usr/lib/fifo"), unix.S_IFIFO|0o644, 0))
	testenv.Must(t, os.Chown(filepath.Join(dir, "home/skel"), 1000, 1000))
	testenv.Must(t, os.Chmod(filepath.Join(dir, "usr/bin/changes06"), os.ModeSetuid|0o755))
}
