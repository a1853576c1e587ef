package main

import (
	"strconv"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// mountOptions are what mount and boot share, and what a daemon is started with.
type mountOptions struct {
	mountpoint  string
	readOnly    bool
	remount     bool // only the flags of what is mounted there
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
	f.StringVar(&o.level, "log-level", "", "debug, info, warn or error (debug: every request; keep such a log off the view)")
	f.IntVar(&o.maxFDs, "max-fds", 0, "descriptors that the view may keep open (default 8192)")
	f.IntVar(&o.readyFD, "ready-fd", -1, "")
	f.MarkHidden("ready-fd")
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
	var unknown string
	for _, opt := range split(o.options) {
		flag, ok := known[opt]
		switch {
		case opt == "ro":
			o.readOnly = true
		case opt == "rw":
			o.readOnly = false
		case opt == "remount":
			o.remount = true
		case ok:
			o.flags |= flag
		case len(opt) > 2 && opt[:2] == "x-": // for other programs, as in fstab(5)
		default:
			unknown = opt
		}
	}
	// At a remount mount(8) hands back all that the kernel says of the mount.
	if unknown != "" && !o.remount {
		return usagef("unknown mount option %q", unknown)
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
