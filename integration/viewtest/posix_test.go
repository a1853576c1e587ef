package viewtest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/btrovl/btrovl/integration/testenv"
)

// posix runs go-fuse's conformance suite in a directory.
func posix(t *testing.T, root string) {
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		t.Run(name, func(t *testing.T) {
			if name == "FcntlFlockLocksFile" {
				t.Skip("expects a process to conflict with its own POSIX lock; go-fuse skips it too")
			}
			dir := filepath.Join(root, name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			posixtest.All[name](t, dir)
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// The suite on the measures: what fails there is the suite's or the machine's fault.
func TestPosixMeasures(t *testing.T) {
	if !long() {
		t.Skip("part of make test-posix")
	}
	for _, target := range []Target{Native(), Overlayfs()} {
		t.Run(target.Name, func(t *testing.T) {
			posix(t, filepath.Join(mountOnce(t, target, seedOne).Root, "a"))
		})
	}
}

func TestPosix(t *testing.T) {
	testenv.FUSE(t)
	root := mountOnce(t, View(), seedOne).Root
	t.Run("new", func(t *testing.T) { posix(t, filepath.Join(root, "posix")) })
	t.Run("merged", func(t *testing.T) { posix(t, filepath.Join(root, "a")) }) // a directory of the base
}

// mountOnce mounts a target on a base of its own for the duration of a test.
func mountOnce(t *testing.T, target Target, fill func(dir string) error) *Mounted {
	t.Helper()
	dir := testenv.Btrfs(t)
	l, err := NewLayers(t.Context(), filepath.Join(dir, "l"), fill)
	if err != nil {
		t.Fatal(err)
	}
	m, err := target.Mount(t.Context(), l, filepath.Join(testenv.Dir(t), "mnt"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func seedOne(dir string) error { return MakeBase(dir, 1) }
