package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestBtrfsIsFreshAndCleaned(t *testing.T) {
	var dir string
	t.Run("use", func(t *testing.T) {
		dir = Btrfs(t)
		Run(t, "btrfs", "subvolume", "create", filepath.Join(dir, "s"))
		Run(t, "btrfs", "subvolume", "snapshot", "-r", filepath.Join(dir, "s"), filepath.Join(dir, "r"))
		mnt := NewBtrfs(t, 256<<20)
		if err := os.WriteFile(filepath.Join(mnt, "f"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	if dir == "" {
		return // skipped
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}
