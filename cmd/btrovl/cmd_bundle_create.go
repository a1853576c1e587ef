package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta"
)

func (a *app) bundleCreateCmd() *cobra.Command {
	var f createFlags
	c := a.long(a.reports(command("create --to B --key NAME.key -o FILE", "Make and sign a bundle",
		manual{
			effect: `Makes a bundle that turns any of the --from bases into --to; without --from a full one,
for first installations. A base is a version in the pool, or VERSION=PATH with a directory
or a tar archive, for which no pool and no btrfs is needed. The bundle is applied to a
scratch copy and the result's digest compared before it is signed.

What several --from bases lack in the same way is in the bundle once. --rescue brings
files whole, too: a device on which they, or what they are made from, rotted takes
them from there.

What takes long is kept in FILE.unfinished until the bundle is made: after an
interrupt the same command goes on from there.`,
			durable: "the file has its name only when it is complete and on stable storage.",
			exits:   poolExits(codeUnknown, codeSpace, codeSignature, codeDigest),
			example: "btrovl bundle create --from 1 --to 2 --key vendor.key -o 1-2.btrovl\nbtrovl bundle create --from 1 --from 2 --to 3 --key vendor.key -o to-3.btrovl\nbtrovl bundle create --from 1=tree1 --to 2=tree2.tar.xz --key vendor.key -o 1-2.btrovl",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) (err error) {
			if f.to == "" || f.key == "" || f.output == "" {
				return &usageError{msg: "bundle create: --to, --key and --output are needed", use: "btrovl bundle create --help"}
			}
			pr, err := a.progress("bundle create")
			if err != nil {
				return err
			}
			defer func() { pr.finish(err) }()
			return a.bundleCreate(ctx, f, pr)
		})))
	fl := c.Flags()
	fl.SortFlags = false
	fl.StringSliceVar(&f.from, "from", nil, "a base that devices have (several times for several)")
	fl.StringVar(&f.to, "to", "", "the base that they get")
	fl.StringVar(&f.key, "key", "", "the secret key that signs")
	fl.StringVarP(&f.output, "output", "o", "", "the file to write, - for standard output")
	fl.StringVar(&f.compatible, "compatible", "", "only for devices of this kind")
	fl.Uint64Var(&f.counter, "counter", 0, "number against downgrades (default: that of the --to base)")
	fl.StringVar(&f.compression, "compression", string(delta.Best), "best (smallest) or fast")
	fl.StringVar(&f.memory, "memory", "normal", "memory that applying may take: normal (128 MiB), low (64 MiB), or MiB")
	fl.IntVar(&f.work, "make-memory", 0, "MiB that making may take, xz's processes not counted (default 3072)")
	fl.StringSliceVar(&f.rescue, "rescue", nil, "files and directories (patterns: 'boot', 'usr/bin/*', '*') that also travel whole")
	fl.StringSliceVar(&f.without, "without", nil, "steps to leave out, for measuring")
	// Bundles are right without any step, only larger: this is for docs/delta.md.
	fl.MarkHidden("without")
	fl.IntVar(&f.jobs, "jobs", 0, "files worked on at once (default: one per processor)")
	fl.StringVar(&f.spool, "spool", "", "directory for temporary files (default: TMPDIR or /tmp)")
	fl.StringSliceVar(&f.addKeys, "add-key", nil, "a public key file that devices trust from this update on")
	fl.StringSliceVar(&f.revokeKeys, "revoke-key", nil, "id of a key that devices never trust again")
	fl.BoolVar(&f.files, "files", false, "report how every file travels")
	f.password.add(c)
	return c
}

func (a *app) bundleCreate(ctx context.Context, f createFlags, pr *progress) error {
	o, err := f.options(ctx)
	if err != nil {
		return err
	}
	file, stored, err := a.destination(f.output)
	if err != nil {
		return err
	}
	if stored {
		o.Resume = file + ".unfinished"
	}
	trees := &makeTrees{app: a, spool: f.spool}
	defer trees.Close()
	if err := trees.open(ctx, f, &o); err != nil {
		return err
	}
	o.Progress = pr.start("make")
	var report *delta.Report
	err = a.output(f.output, func(w io.Writer) (err error) {
		report, err = delta.Make(ctx, w, o)
		return err
	})
	if err != nil {
		unfinished := ""
		if e, ok := errors.AsType[*delta.UnfinishedError](err); ok {
			unfinished = e.Path
		} else if report != nil { // made, but not stored
			unfinished = report.Unfinished
		}
		if unfinished != "" {
			pr.stop()
			a.warn("what was compared is kept in %s: the same command goes on from there", unfinished)
		}
		return fmt.Errorf("cannot make %s: %w", f.output, err)
	}
	if report.Unfinished != "" {
		os.Remove(report.Unfinished) // the bundle is there: at worst a file is left
	}
	pr.stop()
	if report.Resumed > 0 {
		a.say("went on where an interrupted run had come to: %d results were there", report.Resumed)
	}
	for _, w := range report.Warnings {
		a.warn("%s", w)
	}
	if f.output != "-" {
		a.say("%s: %s, from %s to base %s", f.output, size(report.Size), fromText(report.Manifest), report.Manifest.To.Version)
	}
	if !f.files {
		report.Files = nil
	}
	if a.json {
		return a.report(newCreateReport(f.output, report), nil)
	}
	return nil
}
