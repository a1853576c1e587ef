package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) restoreCmd() *cobra.Command {
	var f switchFlags
	var from string
	c := a.reports(command("restore OVERLAY [BACKUP]", "Bring an overlay back from a backup",
		manual{
			effect: `Makes a new deployment in which the overlay has the content of the backup (the newest
without a name), or of an exported one with --from. The backup stays; so does what the
overlay held, in the deployment before: "btrovl rollback" undoes the restore. Mounted
views switch at once; the one that is / at the next boot, unless --now.`,
			durable: "the new deployment is on stable storage before any view shows it.",
			exits:   poolExits(codeUnknown, codeSpace, codeDamage, codeViews),
			example: "btrovl restore data\nbtrovl restore data 20261125T141503.123Z\nbtrovl restore data --from data.send",
		}, cobra.RangeArgs(1, 2),
		func(ctx context.Context, args []string) error {
			if from != "" && len(args) == 2 {
				return usagef("give a backup's name or --from, not both")
			}
			restore := func(w *subvolumes.Writer) (*subvolumes.Record, error) {
				return reset.Restore(ctx, w, args[0], append(args, "")[1])
			}
			if from != "" {
				in, err := a.input(ctx, from)
				if err != nil {
					return err
				}
				defer in.Close()
				restore = func(w *subvolumes.Writer) (*subvolumes.Record, error) {
					r, err := reset.RestoreStream(ctx, w, args[0], in, from)
					return r, err
				}
			}
			return a.write(ctx, "restore "+args[0], func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				var r *subvolumes.Record
				list, err := a.deploy(ctx, p, f, "", false, func() (err error) {
					r, err = restore(w)
					return err
				})
				if err != nil {
					return err
				}
				d := r.Active()
				return a.finishDeploy(r, list, fmt.Sprintf("%s: deployment %d; undo it with: btrovl rollback", d.Reason, d.ID))
			})
		}))
	c.Flags().StringVar(&from, "from", "", "a file written by \"btrovl backup export\", or - for standard input")
	f.add(c, true)
	return c
}
