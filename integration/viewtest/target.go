package viewtest

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

// Layers are what a union is made of, as btrovl's pool keeps them.
type Layers struct {
	Base  string // a read-only tree
	Upper string // holds upper/ and work/, on the same file system
}

// Mounted is a target in use.
type Mounted struct {
	Root    string // where its files are
	Unmount func() error
}

// Target is something that shows a union.
type Target struct {
	Name  string
	Mount func(ctx context.Context, l Layers, mnt string) (*Mounted, error)
}

// Native is no union at all: a writable copy of the base, which is what a union should
// look like. It ignores the upper layer and forgets everything at Unmount.
func Native() Target {
	return Target{Name: "native", Mount: func(ctx context.Context, l Layers, mnt string) (*Mounted, error) {
		sub := filepath.Join(filepath.Dir(l.Upper), "native-"+filepath.Base(mnt))
		if err := command(ctx, "btrfs", "-q", "subvolume", "snapshot", l.Base, sub); err != nil {
			return nil, err
		}
		return &Mounted{Root: sub, Unmount: func() error {
			return command(context.WithoutCancel(ctx), "btrfs", "-q", "subvolume", "delete", sub)
		}}, nil
	}}
}

// Overlayfs is kernel overlayfs with everything turned on that makes it more exact.
func Overlayfs() Target { return overlayfs("overlayfs", "redirect_dir=on,index=on,metacopy=off,") }

// PlainOverlayfs is kernel overlayfs as a person mounts it who knows only that
// the layers are in its format.
func PlainOverlayfs() Target { return overlayfs("kernel", "") }

func overlayfs(name, options string) Target {
	return Target{Name: name, Mount: func(ctx context.Context, l Layers, mnt string) (*Mounted, error) {
		if err := os.MkdirAll(mnt, 0o755); err != nil {
			return nil, err
		}
		o := fmt.Sprintf("noatime,%slowerdir=%s,upperdir=%s/upper,workdir=%s/work", options, l.Base, l.Upper, l.Upper)
		if err := command(ctx, "mount", "-t", "overlay", "overlay", "-o", o, mnt); err != nil {
			return nil, err
		}
		return &Mounted{Root: mnt, Unmount: func() error { return Unmount(mnt) }}, nil
	}}
}

// Unmount unmounts what nobody uses any more; what somebody still uses is detached,
// and an error.
func Unmount(mnt string) error {
	var err error
	// The last close of a killed actor may come a moment after its death.
	for range 50 {
		if err = unix.Unmount(mnt, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		unix.Unmount(mnt, unix.MNT_DETACH)
		return fmt.Errorf("unmount %s: %w", mnt, err)
	}
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// NewLayers makes a base, which fill fills, and an empty upper layer, in a new directory on btrfs.
func NewLayers(ctx context.Context, dir string, fill func(dir string) error) (Layers, error) {
	l := Layers{Base: filepath.Join(dir, "base"), Upper: filepath.Join(dir, "upper0")}
	rw := filepath.Join(dir, "base.rw")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return l, err
	}
	if err := command(ctx, "btrfs", "-q", "subvolume", "create", rw); err != nil {
		return l, err
	}
	if err := fill(rw); err != nil {
		return l, err
	}
	if err := command(ctx, "btrfs", "-q", "subvolume", "snapshot", "-r", rw, l.Base); err != nil {
		return l, err
	}
	return l, NewUpper(ctx, l.Base, l.Upper)
}

// NewUpper makes an empty upper layer for a base: a subvolume whose upper/ has the
// attributes of the base's root.
func NewUpper(ctx context.Context, base, dir string) error {
	if err := command(ctx, "btrfs", "-q", "subvolume", "create", dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(base, &st); err != nil {
		return err
	}
	upper := filepath.Join(dir, "upper")
	return errors.Join(
		os.Mkdir(filepath.Join(dir, "work"), 0o700),
		os.Mkdir(upper, 0o700),
		os.Chown(upper, int(st.Uid), int(st.Gid)),
		unix.Chmod(upper, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, upper, []unix.Timespec{st.Atim, st.Mtim}, 0),
	)
}

// RemoveLayers removes subvolumes.
func RemoveLayers(ctx context.Context, subvolumes ...string) error {
	var have []string
	for _, s := range subvolumes {
		if _, err := os.Lstat(s); err == nil {
			have = append(have, s)
		}
	}
	if len(have) == 0 {
		return nil
	}
	return command(ctx, "btrfs", append([]string{"-q", "subvolume", "delete"}, have...)...)
}
