package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/reset"
)

func (a *app) backupExportCmd() *cobra.Command {
	var output string
	c := command("export OVERLAY [BACKUP]", "Write a backup as a btrfs send stream",
		manual{
			effect:  "Writes the backup (the newest without a name) as a send stream to standard output or\na file. \"btrfs receive\" takes it anywhere, and \"btrovl restore --from\" here.",
			durable: "a file given with --output is complete and on stable storage when it has its name.",
			exits:   poolExits(codeUnknown),
			example: "btrovl backup export data -o data.send\nbtrovl backup export data | zstd | ssh store 'cat >data.send.zst'",
		}, cobra.RangeArgs(1, 2),
		func(ctx context.Context, args []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.Close()
			b, err := reset.Find(p, args[0], append(args, "")[1])
			if err != nil {
				return err
			}
			return a.output(output, func(w io.Writer) error { return reset.Export(ctx, p, b, w) })
		})
	c.Flags().StringVarP(&output, "output", "o", "-", "the file to write")
	return c
}
