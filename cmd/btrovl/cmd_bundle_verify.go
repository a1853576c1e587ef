package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta/bundle"
)

// verifyReport is "bundle verify --json".
type verifyReport struct {
	File   string        `json:"file"`
	Signer string        `json:"signer"`
	Bytes  int64         `json:"bytes"`
	To     bundle.BaseID `json:"to"`
}

func (a *app) bundleVerifyCmd() *cobra.Command {
	var keys []string
	var explain string
	c := a.long(a.reports(command("verify BUNDLE", "Check a bundle's signature and every byte of it",
		manual{
			effect:  "Checks the signature against --key (several are possible), or else against the\nkeys that this machine trusts, then the hash of every chunk. Needs no device and,\nwith --key, no root.\n\n--explain BASE compares a base, a version in the pool or a directory, with the one that\nthe bundle starts from, and names the first entry whose name or attributes differ.",
			exits:   []int{codeRoot, codePool, codeSignature, codeDamage, codeBundleFormat, codeBase, codeUnknown},
			example: "btrovl bundle verify --key vendor.pub 1-2.btrovl\nbtrovl bundle verify --explain 1 1-2.btrovl",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) (err error) {
			ring, err := a.verifyKeys(keys)
			if err != nil {
				return err
			}
			in, err := a.input(ctx, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			pr, err := a.progress("bundle verify")
			if err != nil {
				return err
			}
			defer func() { pr.finish(err) }()
			if explain != "" {
				return a.explainBase(ctx, in, ring, explain)
			}
			if err := fence(fenced{}); err != nil {
				return err
			}
			br, err := in.bundle(ring)
			if err != nil {
				return err
			}
			show := pr.start("verify")
			buf := make([]byte, 256<<10)
			for err == nil {
				if err = ctx.Err(); err == nil {
					_, err = br.Read(buf)
					show(br.Offset(), in.size)
				}
			}
			if err == io.EOF {
				err = br.Verify()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", in.name, err)
			}
			pr.stop()
			out := verifyReport{args[0], br.Signer(), br.Offset(), br.Manifest().To}
			if !a.json {
				a.say("good: signed by key %s, %s, leads to base %s", out.Signer, size(out.Bytes), out.To.Version)
				return nil
			}
			return a.report(out, nil)
		})))
	c.Flags().StringSliceVar(&keys, "key", nil, "a public key to accept")
	c.Flags().StringVar(&explain, "explain", "", "a base, to be compared with the one that the bundle starts from")
	return c
}

// verifyKeys are the given keys or, without any, those that this machine trusts.
func (a *app) verifyKeys(files []string) (*bundle.Keyring, error) {
	if len(files) > 0 {
		ring := new(bundle.Keyring)
		for _, f := range split(files) {
			if err := ring.AddFile(f); err != nil {
				return nil, coded(codeUsage, fmt.Errorf("%s: %w", f, err), "the public half is the file that ends in .pub")
			}
		}
		return ring, nil
	}
	if _, err := a.poolPath(); err != nil {
		return bundle.LoadKeyring(a.config.Trusted...)
	}
	p, err := a.open()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return a.keyring(p)
}
