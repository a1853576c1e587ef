package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) initCmd() *cobra.Command {
	var compatible string
	c := a.reports(command("init DIR", "Make a pool",
		manual{
			effect:  "Makes DIR, which must be empty or not exist and lie on btrfs, a pool: the directory\nthat holds bases, overlays, backups and the record of deployments.",
			durable: "the pool is on stable storage when the command returns.",
			exits:   []int{codeRoot, codeBtrfs, codeExists, codeSpace},
			example: "btrovl init /mnt/btrfs/pool\nbtrovl init /btrovl --compatible kiosk-v2",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			if err := needRoot("making a pool"); err != nil {
				return err
			}
			p, err := subvolumes.Init(args[0])
			if err != nil {
				return err
			}
			defer p.Close()
			if compatible != "" {
				w, err := p.Lock(ctx, "init", a.wait)
				if err != nil {
					return err
				}
				defer w.Close()
				if _, err := w.Commit(ctx, func(r *subvolumes.Record) error { r.Compatible = compatible; return nil }); err != nil {
					return err
				}
			}
			a.say("pool %s at %s", p.ID(), p.Dir())
			if a.json {
				return a.report(map[string]any{"pool": p.ID(), "dir": p.Dir(), "compatible": compatible}, nil)
			}
			return nil
		}))
	c.Flags().StringVar(&compatible, "compatible", "", "accept only bundles made for this kind of device")
	return c
}
