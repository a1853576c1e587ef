package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes"
)

// mountOptions are what mount and boot share, and what a daemon is started with.
type mountOptions struct {
	mountpoint  string
	readOnly    bool
	foreground  bool
	options     []string // as given with -o
	flags       uintptr  // of mount(2), from the options
	log, level  string
	debug       bool
	maxFDs      int
	readyFD     int  // where the parent waits, -1 without one
	rootStorage bool // the view is, or becomes, the root file system
}

func (o *mountOptions) add(f *pflag.FlagSet) {
	f.BoolVar(&o.readOnly, "read-only", false, "refuse all changes")
	f.StringSliceVarP(&o.options, "option", "o", nil, "mount options: ro, rw, nosuid, nodev, noexec, noatime, nodiratime, …")
	f.StringVar(&o.log, "log", "", "log to this file (default: the journal, or a file in "+runDir+")")
	f.StringVar(&o.level, "log-level", "", "debug, info, warn or error (debug: every request)")
	f.IntVar(&o.maxFDs, "max-fds", 0, "descriptors that the view may keep open (default 8192)")
	f.IntVar(&o.readyFD, "ready-fd", -1, "")
	f.MarkHidden("ready-fd")
}

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

// parse reads the options of mount(8).
func (o *mountOptions) parse() error {
	known := map[string]uintptr{
		"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
		"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
		"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC,
		"suid": 0, "dev": 0, "exec": 0, "async": 0, "atime": 0, "diratime": 0, "defaults": 0,
		"auto": 0, "noauto": 0, "nofail": 0, "_netdev": 0,
	}
	for _, opt := range split(o.options) {
		flag, ok := known[opt]
		switch {
		case opt == "ro":
			o.readOnly = true
		case opt == "rw":
			o.readOnly = false
		case ok:
			o.flags |= flag
		case len(opt) > 2 && opt[:2] == "x-": // for other programs, as in fstab(5)
		default:
			return usagef("unknown mount option %q", opt)
		}
	}
	return nil
}

// args is the command line of the daemon.
func (o mountOptions) args(pool string) []string {
	args := []string{"mount", "--foreground", "--ready-fd", "3", "--pool", pool,
		"--log-level", o.level, "--max-fds", strconv.Itoa(o.maxFDs)}
	if o.readOnly {
		args = append(args, "--read-only")
	}
	if o.log != "" {
		args = append(args, "--log", o.log)
	}
	for _, opt := range o.options {
		args = append(args, "--option", opt)
	}
	return append(args, "--", o.mountpoint)
}
