package crashdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is an attached loop device.
type loop struct{ num int }

func (l *loop) path() string { return "/dev/loop" + strconv.Itoa(l.num) }

// attach puts a loop device on a file.
func attach(f *os.File, direct bool) (*loop, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	conf := unix.LoopConfig{Fd: uint32(f.Fd())}
	if direct {
		conf.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	}
	copy(conf.Info.File_name[:], f.Name())
	for range 50 {
		num, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no free loop device: %w", err)
		}
		l := &loop{num}
		dev, err := l.open()
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &conf)
		dev.Close()
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("cannot set up %s on %s: %w", l.path(), f.Name(), err)
		}
		time.Sleep(5 * time.Millisecond) // another process was faster
	}
	return nil, errors.New("every free loop device was taken by someone else")
}

// open waits for the device node: the kernel makes the device first.
func (l *loop) open() (*os.File, error) {
	for i := 0; ; i++ {
		f, err := os.OpenFile(l.path(), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil || i == 100 || !(errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO)) {
			return f, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// detach takes the loop device off its file. It returns when the device is free.
func (l *loop) detach() error {
	f, err := l.open()
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	f.Close()
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("cannot detach %s: %w", l.path(), err)
	}
	// Who else has the device open holds the detaching up until they close it.
	for range 200 {
		if _, err := os.Stat(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", l.num)); err != nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s is still in use", l.path())
}

// forget makes btrfs forget the device, so that the next image of the same fsid is
// not taken for another device of this one.
func (l *loop) forget() error {
	const forgetDev = 0x50009405 // BTRFS_IOC_FORGET_DEV = _IOW(0x94, 5, struct btrfs_ioctl_vol_args)
	f, err := os.OpenFile("/dev/btrfs-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var args volArgs
	copy(args.name[:], l.path())
	for i := 0; ; i++ {
		err := ioctlVolArgs(f, forgetDev, &args)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || i == 2000 {
			return fmt.Errorf("cannot forget %s: %w", l.path(), err)
		}
		// The last user is just leaving. Or a process has begun a mount namespace of its
		// own meanwhile, with a copy of this mount in it, and must end first.
		time.Sleep(20 * time.Millisecond)
	}
}

// loops returns the attached loop devices and their files.
func loops() map[int]string {
	m := map[int]string{}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		num, err := strconv.Atoi(strings.TrimPrefix(strings.Split(f, "/")[3], "loop"))
		b, rerr := os.ReadFile(f)
		if err == nil && rerr == nil {
			m[num] = strings.TrimSpace(string(b))
		}
	}
	return m
}
