package crashtest

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/crashdisk"
	"github.com/btrovl/btrovl/integration/testenv"
)

// A fact about btrfs that overlay's linkFD is built on: a file that was made nameless
// (O_TMPFILE) and linked into a directory of the same transaction is lost by a cut after
// fsync through its first descriptor, because btrfs logs the directories above that
// descriptor's dentry. Through a descriptor opened by the new name it is kept.
func TestTmpfileFsync(t *testing.T) {
	testenv.FUSE(t)
	for _, reopen := range []bool{false, true} {
		rec, err := crashdisk.Record(newDisk(t))
		testenv.Must(t, err)
		mnt, err := rec.Mount()
		testenv.Must(t, err)
		testenv.Must(t, rec.Step("link", limit, func() error {
			if err := os.Mkdir(filepath.Join(mnt, "work"), 0o755); err != nil {
				return err
			}
			if err := syncfs(mnt); err != nil {
				return err
			}
			if err := os.Mkdir(filepath.Join(mnt, "dir"), 0o755); err != nil {
				return err
			}
			fd, err := unix.Open(filepath.Join(mnt, "work"), unix.O_TMPFILE|unix.O_RDWR, 0o600)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			name := filepath.Join(mnt, "dir/file")
			if err := unix.Linkat(fd, "", unix.AT_FDCWD, name, unix.AT_EMPTY_PATH); err != nil {
				return err
			}
			if reopen {
				f, err := os.OpenFile(name, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				return f.Sync()
			}
			return unix.Fsync(fd)
		}))
		img, err := rec.Content() // the power goes; the disk has no cache
		testenv.Must(t, err)
		rec.Abort()
		rec.Close()
		slot, err := crashdisk.NewSlot()
		testenv.Must(t, err)
		dir, err := slot.Mount(img)
		testenv.Must(t, err)
		_, err = os.Stat(filepath.Join(dir, "dir/file"))
		if reopen && err != nil {
			t.Errorf("opened by its name and synced, the file is lost: %v", err)
		}
		if !reopen {
			t.Logf("synced through the descriptor of its birth: %v", err)
		}
		testenv.Must(t, slot.Close())
	}
}
