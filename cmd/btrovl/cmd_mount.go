package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) mountCmd() *cobra.Command {
	var o mountOptions
	c := command("mount MOUNTPOINT", "Mount a view of the active deployment",
		manual{
			effect: `Mounts the base with the overlays on top and returns when the mount answers; a
process of its own serves it. Without any deployment the first one is made of
what is there: the newest base and all overlays. A view that a killed process
left at the mount point is replaced. A second view of a pool shows the same
file system at another place, read-only if wanted.

Set-id programs and device nodes work as on the base, unless -o says otherwise.
What the process has to say goes to the journal, or to ` + runDir + `/POOL/PID.log.`,
			durable: "the first deployment is on stable storage before it is mounted. Writes to the\nview are as durable as those to btrfs: after fsync.",
			exits:   poolExits(codeUnknown, codeMountpoint),
			example: "btrovl mount /mnt/view\nbtrovl mount --read-only /mnt/look\nbtrovl mount --foreground --log-level debug /mnt/view",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			o.mountpoint = args[0]
			return a.mount(ctx, o)
		})
	o.add(c.Flags())
	c.Flags().BoolVar(&o.foreground, "foreground", false, "stay, log to standard error, unmount on SIGTERM")
	return c
}

// mount makes sure that there is a deployment and mounts a view of it.
func (a *app) mount(ctx context.Context, o mountOptions) error {
	if err := needRoot("mounting"); err != nil {
		return err
	}
	if err := o.parse(); err != nil {
		return err
	}
	if o.remount {
		return a.remount(o)
	}
	if o.level == "" {
		o.level = a.config.LogLevel
	}
	log, err := newLogger(os.Stderr, o.level)
	if err != nil {
		return err
	}
	o.debug = o.level == "debug"
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.Close()
	a.pool = p.Dir()
	if o.readyFD >= 0 { // the parent has prepared everything
		err := serve(ctx, p, o, log, func() error {
			f, err := logFile(o.log, socketDir(p.ID()))
			if err != nil {
				return fmt.Errorf("cannot open the log: %w", err)
			}
			defer f.Close()
			return becomeDaemon(o.readyFD, f)
		})
		if err == nil {
			removeLog(socketDir(p.ID()))
		}
		return err
	}
	if o.mountpoint, err = prepareMountpoint(o.mountpoint, a.warn); err != nil {
		return err
	}
	if err := a.firstDeployment(ctx, p); err != nil {
		return err
	}
	if done, err := a.attach(ctx, p, o); done || err != nil {
		return err
	}
	if o.foreground {
		return serve(ctx, p, o, log, func() error { return nil })
	}
	if err := a.spawn(ctx, o); err != nil {
		return err
	}
	a.say("mounted at %s", o.mountpoint)
	return nil
}

// firstDeployment makes the first deployment of what is there.
func (a *app) firstDeployment(ctx context.Context, p *subvolumes.Pool) error {
	r, err := p.Record()
	if err != nil || r.Active() != nil {
		return err
	}
	if len(r.Bases) == 0 {
		return noDeployment(p)
	}
	w, err := p.Lock(ctx, "mount", a.wait)
	if err != nil {
		return err
	}
	defer w.Close()
	if r, err = w.EnsureDeployment(ctx, ""); err != nil {
		return err
	}
	d := r.Active()
	a.say("deployment %d: base %s with %s", d.ID, d.Base, plural(len(d.Overlays), "overlay", "overlays"))
	return nil
}
