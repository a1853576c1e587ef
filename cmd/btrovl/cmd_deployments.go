package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) markGoodCmd() *cobra.Command {
	return a.reports(command("mark-good", "End the trial: the deployment has proved itself",
		manual{
			effect:  "Makes the deployment on trial the current one, for good. Without a trial nothing\nchanges. What was current before can still be rolled back to.",
			durable: "the mark is on stable storage when the command returns.",
			exits:   poolExits(codeUnknown),
			example: "btrovl mark-good",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "mark-good", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				r, err := w.MarkGood(ctx)
				if err != nil {
					return err
				}
				if d := r.Active(); d != nil {
					a.say("deployment %d (base %s) is good", d.ID, d.Base)
				}
				if a.json {
					return a.report(newDeployReport(r, []switched{}), nil)
				}
				return nil
			})
		}))
}

func (a *app) rollbackCmd() *cobra.Command {
	var f switchFlags
	var reason string
	c := a.reports(command("rollback [DEPLOYMENT]", "Go back to an earlier deployment",
		manual{
			effect: `Without an argument: ends a trial, or else goes back to what was current before. With
one, goes to that deployment (see "btrovl history"). Undoes an update, a reset and a
restore alike, and rollback again undoes the rollback. Overlays that do not follow the
base keep what was written since, where both deployments share them. Mounted views
switch at once.`,
			durable: "the choice is on stable storage before any view switches.",
			exits:   poolExits(codeUnknown, codeViews),
			example: "btrovl rollback\nbtrovl rollback 3 --reason 'display stays black'",
		}, cobra.MaximumNArgs(1),
		func(ctx context.Context, args []string) error {
			id := 0
			if len(args) == 1 {
				var err error
				if id, err = strconv.Atoi(args[0]); err != nil || id < 1 {
					return usagef("%q is not the number of a deployment (see btrovl history)", args[0])
				}
			}
			return a.write(ctx, "rollback", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				var r *subvolumes.Record
				list, err := a.deploy(ctx, p, f, "", false, func() (err error) {
					r, err = w.Rollback(ctx, id, reason)
					return err
				})
				if err != nil {
					return err
				}
				d := r.Active()
				return a.finishDeploy(r, list, fmt.Sprintf("rolled back to deployment %d (base %s)", d.ID, d.Base))
			})
		}))
	c.Flags().StringVar(&reason, "reason", "rolled back by hand", "kept in the history")
	f.add(c, false)
	return c
}
