package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/reset"
	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) backupCmd() *cobra.Command {
	return group("backup", "Backups of overlays",
		"A backup is a read-only snapshot of an overlay, in the pool's backups/NAME/TIME. It\ntakes no space until the overlay changes.",
		a.backupCreateCmd(), a.backupListCmd(), a.backupExportCmd(), a.backupRemoveCmd())
}

// backupReport is a backup in JSON.
type backupReport struct {
	Overlay string `json:"overlay"`
	Name    string `json:"name"`
	Created string `json:"created"`
	Path    string `json:"path"`
}

func backupReports(p *subvolumes.Pool, list []subvolumes.BackupInfo) []backupReport {
	out := []backupReport{}
	for _, b := range list {
		out = append(out, backupReport{b.Overlay, b.Name, when(b.Created), p.BackupPath(b.Overlay, b.Name)})
	}
	return out
}

func (a *app) backupCreateCmd() *cobra.Command {
	return a.reports(command("create [OVERLAY…]", "Snapshot overlays, all at one moment",
		manual{
			effect:  "Snapshots the named overlays of the active deployment (all without a name) at one\nmoment: mounted views hold changes back meanwhile, for some milliseconds.",
			durable: "either all backups are on stable storage when the command returns, or there is none.",
			exits:   poolExits(codeUnknown, codeSpace),
			example: "btrovl backup create data\nbtrovl backup create --json",
		}, cobra.ArbitraryArgs,
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "backup create", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				list, err := a.frozenBackup(ctx, p, w, args)
				if err != nil {
					return err
				}
				for _, b := range list {
					a.say("backup %s of overlay %s", b.Name, b.Overlay)
				}
				if a.json {
					return a.report(map[string]any{"backups": backupReports(p, list)}, nil)
				}
				return nil
			})
		}))
}

// frozenBackup takes the backups while no view changes anything.
func (a *app) frozenBackup(ctx context.Context, p *subvolumes.Pool, w *subvolumes.Writer, overlays []string) ([]subvolumes.BackupInfo, error) {
	list, err := views(ctx, p)
	if err != nil {
		return nil, err
	}
	defer closeViews(list)
	thaw, err := freezeAll(ctx, list)
	defer thaw()
	if err != nil {
		return nil, err
	}
	return reset.Backup(ctx, w, overlays)
}

func (a *app) backupListCmd() *cobra.Command {
	return a.reports(command("list [OVERLAY]", "List backups, oldest first",
		manual{
			effect:  "Lists the backups of an overlay, or of all.",
			exits:   poolExits(codeUnknown),
			example: "btrovl backup list data --json",
		}, cobra.MaximumNArgs(1),
		func(ctx context.Context, args []string) error {
			return a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
				list, err := reset.List(p, append(args, "")[0])
				if err != nil {
					return err
				}
				return a.report(map[string]any{"backups": backupReports(p, list)}, func(w io.Writer) {
					fmt.Fprintln(w, "OVERLAY\tNAME\tMADE")
					for _, b := range list {
						fmt.Fprintf(w, "%s\t%s\t%s\n", b.Overlay, b.Name, when(b.Created))
					}
				})
			})
		}))
}
