package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/fusefs/control"
)

func (a *app) umountCmd() *cobra.Command {
	var lazy bool
	c := command("umount MOUNTPOINT", "Unmount a view",
		manual{
			effect:  "Unmounts the view. At its last mount point this also ends the process that\nserves it, and the command waits for that. Needs no pool.",
			exits:   []int{codeRoot, codeMountpoint},
			example: "btrovl umount /mnt/view",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			if err := needRoot("unmounting"); err != nil {
				return err
			}
			return a.unmount(ctx, args[0], lazy)
		})
	c.Aliases = []string{"unmount"}
	c.Flags().BoolVar(&lazy, "lazy", false, "detach a busy view; what is open there lives on until it is closed")
	return c
}

func (a *app) unmount(ctx context.Context, path string, lazy bool) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	}
	m, err := mountedAt(abs)
	if err != nil {
		return err
	}
	if m == nil {
		if real, err := filepath.EvalSymlinks(abs); err == nil && real != abs {
			return a.unmount(ctx, real, lazy)
		}
	}
	if m == nil || m.fsType != fsType {
		return coded(codeMountpoint, fmt.Errorf("no view is mounted at %s", abs), mountedHint()...)
	}
	pid := servedBy(ctx, m.dev)
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	var st unix.Stat_t
	if errors.Is(unix.Stat(abs, &st), unix.ENOTCONN) {
		flags = unix.MNT_DETACH // its daemon is dead: nothing is lost
	}
	if err := unix.Unmount(abs, flags); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return coded(codeMountpoint, fmt.Errorf("%s is busy: something is open or mounted below it", abs),
				"see what: fuser -vm "+abs+"; grep "+abs+" /proc/mounts", "or detach it: btrovl umount --lazy "+abs)
		}
		return coded(codeMountpoint, fmt.Errorf("cannot unmount %s: %w", abs, err))
	}
	if lazy || pid == 0 {
		return nil
	}
	return a.waitGone(ctx, pid, m.dev)
}

// servedBy finds the daemon of a view by its device number; 0 if it is gone.
func servedBy(ctx context.Context, dev uint64) int {
	dirs, _ := filepath.Glob(filepath.Join(runDir, "*"))
	for _, dir := range dirs {
		sockets, _ := control.List(dir)
		for _, path := range sockets {
			c, err := control.Dial(path)
			if err != nil {
				continue
			}
			v := view{client: c}
			err = v.call(ctx, answerTime, "status", nil, &v.daemonStatus)
			c.Close()
			if err == nil && v.Dev == dev {
				return v.PID
			}
		}
	}
	return 0
}

// waitGone waits for the end of a daemon whose last mount is gone.
func (a *app) waitGone(ctx context.Context, pid int, dev uint64) error {
	list, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.dev == dev {
			return nil // it is mounted elsewhere too
		}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // ended
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200); n > 0 {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a.warn("unmounted, but process %d still runs: the view is mounted in another namespace, or in use", pid)
	return nil
}

// mountedHint lists the views that are mounted.
func mountedHint() []string {
	list, err := mounts()
	if err != nil {
		return nil
	}
	var at []string
	for _, m := range list {
		if m.fsType == fsType {
			at = append(at, m.path)
		}
	}
	if len(at) == 0 {
		return []string{"no view is mounted anywhere"}
	}
	return []string{"views are mounted at: " + strings.Join(at, ", ")}
}
