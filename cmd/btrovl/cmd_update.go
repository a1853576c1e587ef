package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/subvolumes"
)

type updateFlags struct {
	switchFlags
	dryRun, downgrade bool
	tries, jobs       int
}

func (a *app) updateCmd() *cobra.Command {
	var f updateFlags
	c := a.long(a.reports(command("update BUNDLE", "Apply a signed bundle and switch to it",
		manual{
			effect: `Verifies the bundle's signature, applies it to a stage, compares the result's digest
with the signed one, commits a deployment with the new base, and switches the mounted
views beneath the programs that run in them. BUNDLE is a file, or - for standard input;
it is read once.

The new deployment is on trial: "btrovl mark-good" keeps it; without that, "btrovl boot"
falls back when its tries are used up. Overlays that follow the base are snapshotted.`,
			durable: "the new base and the deployment are on stable storage before any view switches. At any\nearlier moment a power cut leaves the old deployment as it was.",
			exits: poolExits(codeExists, codeSpace, codeSignature, codeDamage, codeBundleFormat, codeBase, codeCompatible,
				codeDowngrade, codeDigest, codeViews, codeInterrupted),
			example: "btrovl update 1-2.btrovl\nbtrovl update --dry-run 1-2.btrovl\nbtrovl update - <1-2.btrovl\nbtrovl update --next-boot --tries 5 1-2.btrovl",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) (err error) {
			if f.tries < 0 || f.tries > 100 {
				return usagef("--tries %d is not between 0 and 100", f.tries)
			}
			if !a.flagChanged("update", "tries") {
				f.tries = a.config.Tries
			}
			in, err := a.input(ctx, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			pr, err := a.progress("update")
			if err != nil {
				return err
			}
			defer func() { pr.finish(err) }()
			return a.write(ctx, "update "+filepath.Base(args[0]), func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				u := &update{app: a, updateFlags: f, pool: p, w: w, in: in, progress: pr}
				return u.run(ctx)
			})
		})))
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would happen and whether the space suffices; change nothing")
	c.Flags().IntVar(&f.tries, "tries", 0, "boots that the new deployment has to prove itself; 0: no trial (default: the configuration's, 3)")
	c.Flags().BoolVar(&f.downgrade, "allow-downgrade", false, "accept a bundle that is older than what this device has had")
	c.Flags().IntVar(&f.jobs, "jobs", 0, "files made at once (default: one per processor)")
	f.add(c, false)
	return c
}

// flagChanged tells whether a flag was given.
func (a *app) flagChanged(name, flag string) bool {
	c, _, err := a.root.Find([]string{name})
	return err == nil && c.Flags().Changed(flag)
}

// updateReport is "update --json", with and without --dry-run.
type updateReport struct {
	deployReport
	DryRun  bool   `json:"dry_run"`
	From    string `json:"from"`   // base that it starts from, "" for a full bundle
	To      string `json:"to"`     // version of the new base
	Digest  string `json:"digest"` // of the new base
	Signer  string `json:"signer"`
	Present bool   `json:"present"`       // the base was here already; nothing was applied
	Need    int64  `json:"need"`          // bytes that must be free
	Free    int64  `json:"free"`          // bytes that are
	Memory  int64  `json:"memory"`        // bytes that applying takes
	Written int64  `json:"written"`       // bytes written to the new base
	Shared  int64  `json:"shared"`        // bytes that it shares with other files
	Changed int    `json:"changed_paths"` // paths that differ from the base before

	Rescued []string `json:"rescued,omitempty"` // files that the bundle brought whole, because the base is damaged

	AddedKeys   []string `json:"added_keys"` // ids that the bundle brought
	RevokedKeys []string `json:"revoked_keys"`
}

func (a *app) dryRunText(r updateReport, fits bool) {
	a.say("signed by key %s", r.Signer)
	switch {
	case r.Present:
		a.say("base %s is here already; nothing would be applied", r.To)
	case r.From == "":
		a.say("would make base %s anew", r.To)
	default:
		a.say("would make base %s from base %s", r.To, r.From)
	}
	word := "suffices"
	if !fits {
		word = "DOES NOT SUFFICE"
	}
	a.say("needs %s, free are %s: the space %s; memory %s", size(r.Need), size(r.Free), word, size(r.Memory))
	for _, v := range r.Views {
		if v.Reason == "" {
			a.say("would switch %s", v.Mountpoint)
		} else {
			a.say("would not switch %s: %s", v.Mountpoint, v.Reason)
		}
	}
	a.say("dry run: nothing was changed")
}
