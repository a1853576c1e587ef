package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) baseCmd() *cobra.Command {
	return group("base", "Bases: read-only versions of the system",
		"A base is a read-only subvolume that holds one version of the system.",
		a.baseImportCmd(), a.baseListCmd(), a.baseRemoveCmd())
}

func (a *app) baseRemoveCmd() *cobra.Command {
	return command("remove VERSION", "Remove a base that no deployment uses",
		manual{
			effect:  "Removes the base. One that a deployment names, or that a mounted view still shows,\nis refused.",
			durable: "the record no longer names the base before its subvolume is deleted.",
			exits:   poolExits(codeUnknown),
			example: "btrovl base remove 1",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "base remove "+args[0], func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				if err := w.RemoveBase(ctx, args[0]); err != nil {
					return err
				}
				a.say("removed base %s", args[0])
				return nil
			})
		})
}
