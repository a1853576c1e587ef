package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) backupRemoveCmd() *cobra.Command {
	var yes bool
	c := command("remove OVERLAY BACKUP", "Remove a backup",
		manual{
			effect:  "Deletes the snapshot. It cannot be undone; asks on a terminal.",
			durable: "the backup is gone for good when the command returns.",
			exits:   poolExits(codeUnknown, codeDeclined),
			example: "btrovl backup remove data 20261125T141503.123Z --yes",
		}, cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "backup remove", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				b, err := reset.Find(p, args[0], args[1])
				if err != nil {
					return err
				}
				if err := a.confirm(ctx, yes, "Delete backup %s of overlay %s?", b.Name, b.Overlay); err != nil {
					return err
				}
				if err := w.RemoveBackup(ctx, b); err != nil {
					return err
				}
				a.say("removed backup %s of overlay %s", b.Name, b.Overlay)
				return nil
			})
		})
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
