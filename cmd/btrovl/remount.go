package main

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// remount gives a place where a view is mounted other flags: what "mount -o remount"
// calls a mount helper for. They are the flags of that place alone, as those of a second
// place of a view are; who else shows the view, and the view's process, know nothing of
// it. A view that was mounted read-only holds no layer that could be written, so it
// stays read-only.
func (a *app) remount(o mountOptions) error {
	path, err := filepath.Abs(o.mountpoint)
	if err != nil {
		return err
	}
	m, err := mountedAt(path)
	if err != nil {
		return err
	}
	if m == nil || m.fsType != fsType {
		return coded(codeMountpoint, fmt.Errorf("no view is mounted at %s", path))
	}
	if m.readOnlyFS && !o.readOnly {
		return coded(codeMountpoint, fmt.Errorf("the view at %s was mounted read-only", path),
			"unmount it and mount it again")
	}
	flags := o.flags | unix.MS_BIND | unix.MS_REMOUNT
	if o.readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return coded(codeMountpoint, fmt.Errorf("cannot change the flags of %s: %w", path, err))
	}
	return nil
}
