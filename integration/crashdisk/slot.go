package crashdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Slot mounts images, one after another, from memory files: no FUSE is involved.
type Slot struct {
	mnt  string
	file *os.File
	loop *loop
}

// NewSlot makes a slot. Close it.
func NewSlot() (*Slot, error) {
	base, err := home()
	if err != nil {
		return nil, err
	}
	s := &Slot{mnt: filepath.Join(base, fmt.Sprintf("s%d", serial.Add(1)))}
	return s, os.Mkdir(s.mnt, 0o700)
}

// Mount puts the image on a disk of its own, mounts it and returns the mount point.
// What is written there does not change the image; see [Slot.Content].
func (s *Slot) Mount(img *Image) (string, error) {
	if err := s.Attach(img); err != nil {
		return "", err
	}
	dev := s.loop.path()
	err := bounded(StepLimit, "mount "+dev, nil, func() error { return mountBtrfs(dev, s.mnt) })
	if err != nil {
		return "", errors.Join(err, s.Unmount())
	}
	return s.mnt, nil
}

// Attach puts the image on a disk without mounting it; see [Slot.Device].
func (s *Slot) Attach(img *Image) (err error) {
	if s.file != nil {
		return errors.New("the slot is in use")
	}
	if s.file, err = memFile(); err != nil {
		return err
	}
	if err = img.Store(s.file); err == nil {
		err = bounded(StepLimit, "attach", nil, func() (err error) { s.loop, err = attach(s.file, false); return err })
	}
	if err != nil {
		s.file.Close()
		s.file = nil
	}
	return err
}

// Device returns the path of the block device while an image is attached.
func (s *Slot) Device() string { return s.loop.path() }

// Content returns what the disk holds now. After [Slot.Sync] that is everything.
func (s *Slot) Content() (*Image, error) { return Load(s.file) }

// Remount unmounts the disk and mounts it again, as a reboot does.
func (s *Slot) Remount() error {
	return bounded(StepLimit, "remount "+s.mnt, nil, func() error {
		if err := unmount(s.mnt); err != nil {
			return err
		}
		return mountBtrfs(s.loop.path(), s.mnt)
	})
}

// Unmount unmounts the image and drops its disk.
func (s *Slot) Unmount() error {
	if s.file == nil {
		return nil
	}
	err := bounded(StepLimit, "unmount "+s.mnt, nil, func() error {
		err := unmount(s.mnt)
		if err != nil {
			unix.Unmount(s.mnt, unix.MNT_DETACH)
		}
		return errors.Join(err, s.loop.forget(), s.loop.detach())
	})
	s.file.Close()
	s.file, s.loop = nil, nil
	return err
}

// Close unmounts what is mounted and removes the slot.
func (s *Slot) Close() error {
	err := s.Unmount()
	if rerr := os.Remove(s.mnt); err == nil {
		err = rerr
	}
	return err
}

// Format returns an image with a new btrfs file system. mkfs has a time limit.
func Format(size int64, options ...string) (*Image, error) {
	f, err := memFile()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := Command(30*time.Second, "mkfs.btrfs", append(options, "-q", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()))...); err != nil {
		return nil, err
	}
	return Load(f)
}
