package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

func (a *app) bundleExportCmd() *cobra.Command {
	var base, output, spool, name string
	var keys []string
	c := a.long(command("export-stream BUNDLE", "Expand a bundle to a plain btrfs send stream",
		manual{
			effect: `Writes what "btrfs send -p" would have written, so that stock "btrfs receive" makes the
new base. The base to start from is --base, a read-only subvolume that the receiver has
too (received, or its own), or else the pool's. The bundle is verified as for an update.`,
			exits:   poolExits(codeSignature, codeDamage, codeBundleFormat, codeBase, codeBtrfs, codeDigest),
			example: "btrovl bundle export-stream 1-2.btrovl | btrfs receive /mnt/images\nbtrovl bundle export-stream --key vendor.pub --base /mnt/images/1 -o 1-2.send 1-2.btrovl",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) (err error) {
			if err := needRoot("reading a base"); err != nil {
				return err
			}
			ring, err := a.verifyKeys(keys)
			if err != nil {
				return err
			}
			in, err := a.input(ctx, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			pr, err := a.progress("bundle export-stream")
			if err != nil {
				return err
			}
			defer func() { pr.finish(err) }()
			br, err := in.bundle(ring)
			if err != nil {
				return err
			}
			from, parent, err := a.exportBase(br.Manifest(), base)
			if err != nil {
				return err
			}
			if from != nil {
				defer from.Close()
			}
			return a.output(output, func(w io.Writer) error {
				buf := bufio.NewWriterSize(w, 1<<20)
				o := delta.ExportOptions{Name: name, Parent: parent, Spool: spool, Progress: pr.start("export")}
				if err := delta.ExportStream(ctx, br, from, buf, o); err != nil {
					return fmt.Errorf("cannot export %s: %w", in.name, err)
				}
				return buf.Flush()
			})
		}))
	c.Flags().StringVar(&base, "base", "", "the subvolume to start from (default: the pool's base)")
	c.Flags().StringVarP(&output, "output", "o", "-", "the file to write")
	c.Flags().StringVar(&name, "name", "", "name of the subvolume that is received (default: the version)")
	c.Flags().StringVar(&spool, "spool", "", "directory for temporary files (default: TMPDIR or /tmp)")
	c.Flags().StringSliceVar(&keys, "key", nil, "a public key to accept (default: those that this machine trusts)")
	return c
}

// exportBase opens the base that an exported stream starts from and says how its
// receiver knows it.
func (a *app) exportBase(m *bundle.Manifest, path string) (*os.File, delta.Parent, error) {
	if len(m.From) == 0 {
		return nil, delta.Parent{}, nil
	}
	f, err := a.openExportBase(m, path)
	if err != nil {
		return nil, delta.Parent{}, err
	}
	ok, err := btrfs.IsSubvolume(f)
	if err == nil && !ok {
		err = coded(codeBtrfs, fmt.Errorf("%s is not a btrfs subvolume, so a stream cannot name it as its parent", f.Name()))
	}
	var info btrfs.Info
	if err == nil {
		info, err = btrfs.SubvolumeInfo(f)
	}
	if err != nil {
		f.Close()
		return nil, delta.Parent{}, err
	}
	if !info.ReceivedUUID.IsZero() {
		return f, delta.Parent{UUID: info.ReceivedUUID, CTransID: info.STransID}, nil
	}
	return f, delta.Parent{UUID: info.UUID, CTransID: info.CTransID}, nil
}

func (a *app) openExportBase(m *bundle.Manifest, path string) (*os.File, error) {
	if path != "" {
		return os.Open(path)
	}
	if _, err := a.poolPath(); err != nil {
		return nil, usagef("the bundle starts from %s: name it with --base, or a pool that has it", fromText(m))
	}
	var f *os.File
	err := a.read(func(p *subvolumes.Pool, r *subvolumes.Record) error {
		var have []bundle.BaseID
		for _, b := range r.Bases {
			have = append(have, bundle.BaseID{Version: b.Version, Digest: b.Digest})
		}
		plan, err := delta.NewPlan(m, have)
		if err == nil && plan.From == nil {
			err = errors.New("the bundle needs no base")
		}
		if err == nil {
			f, err = p.OpenBase(plan.From.Version)
		}
		return err
	})
	return f, err
}
