package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DestroyTree deletes the subvolume parent/name with every subvolume in it,
// deepest first. A crash leaves the outer ones, so that it can be repeated.
func DestroyTree(ctx context.Context, parent *os.File, name string) error {
	err := DestroySubvolume(parent, name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	root, err := openDir(parent, name)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := destroyBelow(ctx, root); err != nil {
		return err
	}
	return DestroySubvolume(parent, name)
}

// destroyBelow deletes the subvolumes below dir. They are found by walking: the
// search by ROOT_REF gives names only through a second look-up and saves nothing
// in the case that occurs, a container's storage in an overlay.
func destroyBelow(ctx context.Context, dir *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir.Name(), err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		sub, err := openDir(dir, e.Name())
		if err != nil {
			return err
		}
		err = destroyBelow(ctx, sub)
		is := false
		if err == nil {
			is, err = IsSubvolume(sub)
		}
		sub.Close()
		if err == nil && is {
			err = DestroySubvolume(dir, e.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func openDir(parent *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", parent.Name(), name, err)
	}
	return os.NewFile(uintptr(fd), parent.Name()+"/"+name), nil
}
