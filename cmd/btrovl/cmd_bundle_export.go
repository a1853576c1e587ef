package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// export is one run of "bundle export-stream".
type export struct {
	*app
	base, output, spool, name string
}

func (a *app) bundleExportCmd() *cobra.Command {
	e := export{app: a}
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
			return a.output(e.output, func(w io.Writer) error { return e.run(ctx, in, ring, w, pr) })
		}))
	c.Flags().StringVar(&e.base, "base", "", "the subvolume to start from (default: the pool's base)")
	c.Flags().StringVarP(&e.output, "output", "o", "-", "the file to write")
	c.Flags().StringVar(&e.name, "name", "", "name of the subvolume that is received (default: the version)")
	c.Flags().StringVar(&e.spool, "spool", "", "directory for temporary files (default: TMPDIR or /tmp)")
	c.Flags().StringSliceVar(&keys, "key", nil, "a public key to accept (default: those that this machine trusts)")
	return c
}

// run reads the bundle behind a fence. Its temporary directory is made before, so that
// of the place where temporary files lie nothing else can be opened.
func (e *export) run(ctx context.Context, in *input, ring *bundle.Keyring, w io.Writer, pr *progress) error {
	spool, err := os.MkdirTemp(e.spool, "btrovl-export-")
	if err != nil {
		return err
	}
	defer os.Remove(spool)
	if err := fence(e.fenced(spool)); err != nil {
		return err
	}
	br, err := in.bundle(ring)
	if err != nil {
		return err
	}
	from, parent, err := e.exportBase(br.Manifest(), e.base)
	if err != nil {
		return err
	}
	if from != nil {
		defer from.Close()
	}
	buf := bufio.NewWriterSize(w, 1<<20)
	o := delta.ExportOptions{Name: e.name, Parent: parent, Spool: spool, Progress: pr.start("export")}
	if err := delta.ExportStream(ctx, br, from, buf, o); err != nil {
		return fmt.Errorf("cannot export %s: %w", in.name, err)
	}
	return buf.Flush()
}

// fenced is what stays reachable: the base, or the pool, of which the manifest says
// which base it is; and the output gets its name when it is complete.
func (e *export) fenced(spool string) fenced {
	f := fenced{write: []string{spool}, rmdir: []string{filepath.Dir(spool)}}
	if e.base != "" {
		f.read = append(f.read, e.base)
	} else if pool, err := e.poolPath(); err == nil {
		f.read = append(f.read, pool)
	}
	if e.output != "-" {
		f.rename = append(f.rename, filepath.Dir(e.output))
	}
	return f
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
