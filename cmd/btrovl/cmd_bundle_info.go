package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
)

// bundleReport is "bundle info --json".
type bundleReport struct {
	File     string           `json:"file"`
	Size     int64            `json:"size,omitempty"`
	Signer   string           `json:"signer,omitempty"` // "": the signature was not checked
	Manifest *bundle.Manifest `json:"manifest"`
	Files    []delta.FileInfo `json:"files,omitempty"`
}

func (a *app) bundleInfoCmd() *cobra.Command {
	var key, base string
	var files bool
	c := a.reports(command("info BUNDLE", "Say what a bundle is",
		manual{
			effect:  "Prints from and to which base a bundle leads, what it needs, and who signed it.\nBUNDLE is a file, or - for standard input. Needs no device and no root. Without\n--key the signature is not checked, and the output says so.\n\nA bundle names files by their place in the list of its base; --files with --base DIR,\nthat base's tree, prints paths, and why a source was taken.",
			exits:   []int{codeSignature, codeDamage, codeBundleFormat, codeBase},
			example: "btrovl bundle info 1-2.btrovl\nbtrovl bundle info --files --base tree1 1-2.btrovl",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			in, err := a.input(ctx, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			ring, err := keyFile(key)
			if err != nil {
				return err
			}
			tree, err := openBaseTree(base, files)
			if err != nil {
				return err
			}
			defer tree.Close() // a nil file may be closed
			var readable []string
			if tree != nil {
				readable = append(readable, tree.Name())
			}
			if err := fence(fenced{read: readable}); err != nil {
				return err
			}
			br, err := in.bundle(ring)
			if err != nil {
				return err
			}
			out := bundleReport{File: args[0], Size: max(in.size, 0), Signer: br.Signer(), Manifest: br.Manifest()}
			if files {
				if out.Files, err = delta.FilesOf(ctx, br, tree); err != nil {
					return fmt.Errorf("%s: %w", in.name, err)
				}
			}
			return a.report(out, out.text)
		}))
	c.Flags().StringVar(&key, "key", "", "check the signature with this public key")
	c.Flags().BoolVar(&files, "files", false, "list every file: method, source, bytes")
	c.Flags().StringVar(&base, "base", "", "the tree of the base, to name the files (with --files)")
	return c
}

// openBaseTree opens the directory whose list of files names those in a bundle; nil if
// none was given.
func openBaseTree(dir string, files bool) (*os.File, error) {
	if dir == "" {
		return nil, nil
	}
	if !files {
		return nil, usagef("--base names the files that --files lists")
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, usagef("cannot open the base: %v", err)
	}
	return f, nil
}

func (r bundleReport) text(w io.Writer) {
	m := r.Manifest
	fmt.Fprintf(w, "bundle\t%s\n", r.File)
	if r.Size > 0 {
		fmt.Fprintf(w, "size\t%s (%d bytes)\n", size(r.Size), r.Size)
	}
	for _, f := range m.From {
		fmt.Fprintf(w, "from\tbase %s, digest %.16s…\n", f.Version, f.Digest)
	}
	if len(m.From) == 0 {
		fmt.Fprintf(w, "from\tnothing: this is a full bundle\n")
	}
	fmt.Fprintf(w, "to\tbase %s, digest %.16s…\n", m.To.Version, m.To.Digest)
	if m.Compatible != "" {
		fmt.Fprintf(w, "for devices\t%q\n", m.Compatible)
	}
	fmt.Fprintf(w, "counter\t%d\n", m.Counter)
	fmt.Fprintf(w, "applying\twrites %s, in %s of memory; %s made or changed\n",
		size(m.Apply.Written), size(m.Apply.Memory), plural(int(m.Apply.Files), "entry", "entries"))
	for _, id := range m.AddedKeys() {
		fmt.Fprintf(w, "adds key\t%s\n", id)
	}
	for _, id := range m.RevokeKeys {
		fmt.Fprintf(w, "revokes key\t%s\n", strings.ToUpper(id))
	}
	if m.CreatedBy != "" {
		fmt.Fprintf(w, "made by\t%s\n", m.CreatedBy)
	}
	if r.Signer != "" {
		fmt.Fprintf(w, "signature\tgood, by key %s\n", r.Signer)
	} else {
		fmt.Fprintf(w, "signature\tnot checked (give --key, or use bundle verify)\n")
	}
	if len(r.Files) > 0 {
		fmt.Fprintf(w, "\nMETHOD\tSIZE\tBYTES\tPATH\tSOURCE\tWHY\n")
		for _, f := range r.Files {
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", f.Method, f.Size, f.Bytes, f.Path, orDash(f.Source), orDash(f.Why))
		}
	}
}

// keyFile makes a keyring of one public key file; "" gives none.
func keyFile(path string) (*bundle.Keyring, error) {
	if path == "" {
		return nil, nil
	}
	ring := new(bundle.Keyring)
	if err := ring.AddFile(path); err != nil {
		return nil, coded(codeUsage, fmt.Errorf("%s: %w", path, err), "the public half is the file that ends in .pub")
	}
	return ring, nil
}
