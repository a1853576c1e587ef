package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// target is one way to have the base writable.
type target struct {
	name string
	root string
	pid  int // of the process that serves it, 0 if none does
}

// slowest is the name of the target that is spared the longest work.
const slowest = "fuse-overlayfs"

// measure is the name of the target that ratios refer to.
const measure = "overlayfs"

func (m *machine) mountAll(ctx context.Context) ([]*target, error) {
	var ts []*target
	for _, mount := range []func(context.Context) (*target, error){m.native, m.overlayfs, m.fuseOverlayfs, m.view} {
		t, err := mount(ctx)
		if err != nil {
			return nil, err
		}
		if t == nil {
			continue
		}
		// The files of the base are copies, so the index does not know their times yet.
		if err := command(ctx, "git", "-c", "safe.directory=*", "-C", filepath.Join(t.root, "goroot/src"), "status", "--porcelain"); err != nil {
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func (m *machine) native(ctx context.Context) (*target, error) {
	sub := filepath.Join(m.fs, "native")
	return &target{name: "btrfs", root: sub}, command(ctx, "btrfs", "-q", "subvolume", "snapshot", m.base, sub)
}

// upper makes an upper layer and a mount point.
func (m *machine) upper(name string) (options, mnt string, err error) {
	dir := filepath.Join(m.fs, "upper-"+name)
	mnt = filepath.Join(m.dir, name)
	err = errors.Join(os.MkdirAll(filepath.Join(dir, "upper"), 0o755), os.MkdirAll(filepath.Join(dir, "work"), 0o755), os.MkdirAll(mnt, 0o755))
	return fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", m.base, dir, dir), mnt, err
}

func (m *machine) overlayfs(ctx context.Context) (*target, error) {
	o, mnt, err := m.upper(measure)
	if err != nil {
		return nil, err
	}
	if err := command(ctx, "mount", "-t", "overlay", "overlay", "-o", "noatime,"+o, mnt); err != nil {
		return nil, err
	}
	m.undo = append(m.undo, func() error { return unmount(mnt) })
	return &target{name: measure, root: mnt}, nil
}

// fuseOverlayfs is nil where it is not installed.
func (m *machine) fuseOverlayfs(ctx context.Context) (*target, error) {
	prog, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		note("fuse-overlayfs is not installed")
		return nil, nil
	}
	o, mnt, err := m.upper("fuse-overlayfs")
	if err != nil {
		return nil, err
	}
	return m.serve(ctx, &target{name: slowest, root: mnt}, prog, "-f", "-o", o, mnt)
}

func (m *machine) view(ctx context.Context) (*target, error) {
	mnt := filepath.Join(m.dir, "view")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return nil, err
	}
	return m.serve(ctx, &target{name: "view", root: mnt}, m.btrovl, "--pool", m.pool, "mount", "--foreground", "-o", "noatime", mnt)
}

// serve starts a process that mounts the target's root, and waits for the mount.
func (m *machine) serve(ctx context.Context, t *target, prog string, args ...string) (*target, error) {
	before, err := device(t.root)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(prog, args...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	m.undo = append(m.undo, func() error {
		err := unmount(t.root)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-exited
			err = errors.Join(err, fmt.Errorf("%s did not end after unmounting", t.name))
		}
		return err
	})
	t.pid = cmd.Process.Pid
	for range 600 {
		if now, err := device(t.root); err == nil && now != before {
			return t, nil
		}
		select {
		case <-exited:
			return nil, fmt.Errorf("%s ended: %v: %s", t.name, cmd.ProcessState, &log)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("%s did not mount within 30 seconds", t.name)
}

func device(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return uint64(st.Dev), err
}
