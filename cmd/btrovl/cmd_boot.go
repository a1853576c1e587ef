package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) bootCmd() *cobra.Command {
	var o mountOptions
	c := a.reports(command("boot MOUNTPOINT", "Choose the deployment of this boot and mount it",
		manual{
			effect: `What an init script or initramfs calls. If a deployment is on trial, one of its tries
is counted down first; with none left, the last good deployment is taken, and that is
recorded with its reason. Then a view is mounted as by "btrovl mount". A trial that
cannot even be mounted is given up at once, and the last good deployment is mounted.

As mount helper: "POOL MOUNTPOINT btrovl boot 0 0" in fstab calls it.`,
			durable: "the try is counted, and a fallback recorded, before anything is mounted.",
			exits:   poolExits(codeUnknown, codeMountpoint),
			example: "btrovl boot /root\nbtrovl boot --pool /run/btrovl/disk/pool /root",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			o.mountpoint = args[0]
			return a.boot(ctx, o)
		}))
	o.add(c.Flags())
	return c
}

// bootReport is "boot --json".
type bootReport struct {
	Deployment int                  `json:"deployment"`
	Base       string               `json:"base"`
	Trial      bool                 `json:"trial"`
	TriesLeft  int                  `json:"tries_left"`
	FellBack   *subvolumes.Fallback `json:"fell_back"`
}

func (a *app) boot(ctx context.Context, o mountOptions) error {
	o.rootStorage = true
	var choice subvolumes.BootChoice
	err := a.write(ctx, "boot", func(p *subvolumes.Pool, w *subvolumes.Writer) (err error) {
		if _, err = w.EnsureDeployment(ctx, ""); err != nil {
			return err
		}
		choice, err = w.Boot(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if f := choice.FellBack; f != nil {
		a.warn("deployment %d was given up (%s); booting deployment %d", f.Deployment, f.Reason, choice.Deployment.ID)
	} else if choice.Trial {
		a.say("deployment %d is on trial, %s left after this one", choice.Deployment.ID, plural(choice.TriesLeft, "try", "tries"))
	}
	if err := keepProc(); err != nil {
		a.warn("%v", err)
	}
	err = a.mount(ctx, o)
	if code, _ := explain(err); err != nil && choice.Trial && code != codeMountpoint && ctx.Err() == nil {
		if choice, err = a.giveUp(ctx, choice, err); err == nil {
			err = a.mount(ctx, o)
		}
	}
	if err != nil || !a.json {
		return err
	}
	d := choice.Deployment
	return a.report(bootReport{d.ID, d.Base, choice.Trial, choice.TriesLeft, choice.FellBack}, nil)
}

// keepProc makes /proc stay where the daemon finds it. An initramfs moves its /proc
// into the new root, while the daemon's root directory stays the initramfs, and a view
// needs /proc: some calls take a descriptor only as /proc/self/fd/N, and a switch must
// know what is mounted below the view. So a second one is put above it: that one is
// moved, the one beneath stays. (integration/boottest: without it systemd's private
// directories cannot be made.)
func keepProc() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return fmt.Errorf("cannot tell whether this is an initramfs: %w", err)
	}
	if t := uint32(st.Type); t != unix.RAMFS_MAGIC && t != unix.TMPFS_MAGIC {
		return nil
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot keep /proc for the view's process: %w", err)
	}
	return nil
}

// giveUp ends a trial that cannot be mounted.
func (a *app) giveUp(ctx context.Context, choice subvolumes.BootChoice, why error) (subvolumes.BootChoice, error) {
	a.warn("deployment %d is on trial and cannot be mounted: %v", choice.Deployment.ID, why)
	err := a.write(ctx, "boot", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
		r, err := w.Rollback(ctx, 0, fmt.Sprintf("cannot be mounted: %v", why))
		if err != nil {
			return err
		}
		choice = subvolumes.BootChoice{Deployment: *r.Active()}
		if n := len(r.Fallbacks); n > 0 {
			choice.FellBack = &r.Fallbacks[n-1]
		}
		return nil
	})
	return choice, err
}
