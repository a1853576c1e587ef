package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes"
)

// attach shows an already mounted view of the pool at a second place. Both are one
// file system with one process and one cache, so they can never disagree; each
// place has its own flags. It tells whether it did.
func (a *app) attach(ctx context.Context, p *subvolumes.Pool, o mountOptions) (bool, error) {
	list, err := views(ctx, p)
	if err != nil {
		return false, err
	}
	defer closeViews(list)
	for _, v := range list {
		if v.err != nil || len(v.places) == 0 {
			continue
		}
		if v.ReadOnly && !o.readOnly {
			return false, coded(codeBusy, fmt.Errorf("the pool is mounted read-only at %s", v.where()),
				"unmount that first, or mount this one with --read-only")
		}
		if o.foreground {
			return false, coded(codeBusy, fmt.Errorf("process %d serves the pool's view already, at %s", v.PID, v.where()),
				"without --foreground the view is shown at a second place")
		}
		from := v.places[0].path
		if err := unix.Mount(from, o.mountpoint, "", unix.MS_BIND, ""); err != nil {
			return false, coded(codeMountpoint, fmt.Errorf("cannot show the view of %s at %s: %w", from, o.mountpoint, err))
		}
		flags := o.flags | unix.MS_BIND | unix.MS_REMOUNT
		if o.readOnly {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("", o.mountpoint, "", flags, ""); err != nil {
			unix.Unmount(o.mountpoint, unix.MNT_DETACH)
			return false, coded(codeMountpoint, fmt.Errorf("cannot set the flags of %s: %w", o.mountpoint, err))
		}
		a.say("mounted at %s (the view of %s)", o.mountpoint, from)
		return true, nil
	}
	return false, nil
}
