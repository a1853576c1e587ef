package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// version is set by the linker (-X main.version=…); see versionString.
var version string

// app is what the commands of one run share.
type app struct {
	tui
	config     config
	configPath string
	pool       string        // --pool
	wait       time.Duration // --wait
	progressFD int           // --progress-fd
	root       *cobra.Command
}

// run is the whole program: it returns the exit code and never exits.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{tui: tui{stdin: stdin, stdout: stdout, stderr: stderr}}
	if a.configPath = os.Getenv("BTROVL_CONFIG"); a.configPath == "" {
		a.configPath = configPath
	}
	root := a.commands()
	argv, err := helperArgs(args)
	if err != nil {
		return a.fail(err)
	}
	root.SetArgs(argv)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		return a.fail(interrupted(ctx, err))
	}
	return codeDone
}

// interrupted makes an error that only a signal caused one of interruption.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return coded(codeInterrupted, errors.New("interrupted"), "nothing was committed; run the command again")
	}
	return err
}

// commands builds the command tree.
func (a *app) commands() *cobra.Command {
	root := &cobra.Command{
		Use:   "btrovl",
		Short: "An operating system on btrfs: read-only base, writable overlays, signed updates",
		Long: `btrovl mounts a read-only btrfs subvolume, the base, with writable overlays on
top; replaces the base beneath the mounts from a small signed bundle; backs
overlays up; and puts the machine back to factory state.

A deployment is one base plus, for each overlay, one subvolume. Every command
that changes a pool prepares new subvolumes, makes them durable and then commits
one record: it is done or not begun, and "btrovl rollback" undoes it.

The pool is found by --pool, by BTROVL_POOL, or by "pool" in
` + configPath + ` (BTROVL_CONFIG names another file).`,
		Example: `  btrovl init /mnt/pool && export BTROVL_POOL=/mnt/pool
  btrovl base import 1 /path/to/tree
  btrovl overlay add system --path /
  btrovl mount /mnt/view
  btrovl update 1-2.btrovl`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionString(),
		Args:          usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return c.Help()
		},
		PersistentPreRunE: func(*cobra.Command, []string) (err error) {
			a.config, err = loadConfig(a.configPath)
			return err
		},
	}
	root.SetVersionTemplate("btrovl {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{msg: fmt.Sprintf("%s: %v", title(c), err), use: c.CommandPath() + " --help"}
	})
	root.SetHelpFunc(help)
	root.SetUsageFunc(func(c *cobra.Command) error { usage(c.OutOrStderr(), c); return nil })
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.pool, "pool", "", "the pool (default: BTROVL_POOL, then the configuration)")
	f.DurationVar(&a.wait, "wait", 2*time.Second, "how long to wait for another process that holds the pool")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print errors and what was asked for, nothing else")
	a.root = root
	root.AddGroup(
		&cobra.Group{ID: "pool", Title: "The pool and what is in it:"},
		&cobra.Group{ID: "view", Title: "Mounted views:"},
		&cobra.Group{ID: "deploy", Title: "Deployments:"},
		&cobra.Group{ID: "ship", Title: "Bundles and keys:"},
	)
	add := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	add("pool", a.initCmd(), a.baseCmd(), a.overlayCmd(), a.gcCmd(), a.doctorCmd())
	add("view", a.mountCmd(), a.umountCmd(), a.bootCmd(), a.diffCmd())
	add("deploy", a.statusCmd(), a.historyCmd(), a.updateCmd(), a.markGoodCmd(), a.rollbackCmd(),
		a.resetCmd(), a.backupCmd(), a.restoreCmd())
	add("ship", a.bundleCmd(), a.keyCmd())
	root.AddCommand(a.versionCmd(), a.manCmd())
	return root
}

// reports gives a command its --json.
func (a *app) reports(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON document (its fields: docs/cli.md)")
	return c
}

// long gives a command that can take more than a second its --progress-fd.
func (a *app) long(c *cobra.Command) *cobra.Command {
	c.Flags().IntVar(&a.progressFD, "progress-fd", -1, "write progress as JSON lines to this file descriptor")
	return c
}

// progress is used as: p, err := a.progress("update"); defer p.finish(&err).
func (a *app) progress(op string) (*progress, error) {
	return newProgress(op, a.stderr, a.quiet, a.progressFD)
}

// helperArgs translates what mount(8) calls a helper with:
//
//	mount.btrovl POOL MOUNTPOINT [-sfnv] [-o OPTION,…] [-t TYPE]
//
// A leading @ in the name tells systemd not to kill the process of a root view.
func helperArgs(args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, nil
	}
	if name := filepath.Base(args[0]); name != "mount.btrovl" && name != "mount.fuse.btrovl" {
		return args[1:], nil
	}
	var place, opts []string
	verb := "mount"
	for i := 1; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "-o" && i+1 < len(args):
			i++
			for _, o := range strings.Split(args[i], ",") {
				if o == "boot" {
					verb = "boot"
				} else {
					opts = append(opts, o)
				}
			}
		case (arg == "-t" || arg == "-N") && i+1 < len(args):
			i++
		case arg == "-f": // mount --fake
			return []string{"version"}, nil
		case strings.HasPrefix(arg, "-"):
		default:
			place = append(place, arg)
		}
	}
	if slices.Contains(opts, "remount") {
		verb = "mount" // no boot, and no try is counted
	}
	if len(place) != 2 {
		return nil, usagef("%s: expected POOL MOUNTPOINT [-o OPTIONS], got %d arguments", args[0], len(place))
	}
	out := []string{verb}
	if place[0] != "btrovl" && place[0] != "none" { // "btrovl" in fstab: the configured pool
		out = append(out, "--pool", place[0])
	}
	if len(opts) > 0 {
		out = append(out, "--option", strings.Join(opts, ","))
	}
	return append(out, "--", place[1]), nil
}

func versionString() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}
