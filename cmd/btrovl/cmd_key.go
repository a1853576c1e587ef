package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) keyCmd() *cobra.Command {
	return group("key", "Whose bundles this pool accepts",
		`A bundle is accepted if a trusted key signed it. Trusted are the keys in the
pool's trusted.d and in the directories of the configuration
(/etc/btrovl/trusted.d). A revoked id is accepted nowhere, whatever else says
that it is trusted. Keys and signatures are minisign's.`,
		a.keyAddCmd(), a.keyListCmd(), a.keyRevokeCmd())
}

// keyDirs are the pool's directories of keys and of revocations.
func keyDirs(p *subvolumes.Pool) (trusted, revoked string) {
	return filepath.Join(p.Dir(), "trusted.d"), filepath.Join(p.Dir(), "revoked.d")
}

// keyring is whom this pool trusts: its own keys and the machine's.
func (a *app) keyring(p *subvolumes.Pool) (*bundle.Keyring, error) {
	trusted, revoked := keyDirs(p)
	return bundle.LoadKeyring(append([]string{trusted, revoked}, a.config.Trusted...)...)
}

func (a *app) keyAddCmd() *cobra.Command {
	var name string
	c := command("add FILE.pub", "Trust a minisign public key",
		manual{
			effect:  "Copies the public key into the pool's trusted.d. From then on bundles that it\nsigned are accepted. Adding a key twice changes nothing.",
			durable: "the key is on stable storage when the command returns.",
			exits:   poolExits(codeExists, codeSignature),
			example: "btrovl key add vendor.pub",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "key add", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				text, err := os.ReadFile(args[0])
				if err != nil {
					return fmt.Errorf("cannot read the key: %w", err)
				}
				if name == "" {
					name = strings.TrimSuffix(filepath.Base(args[0]), ".pub")
				}
				trusted, _ := keyDirs(p)
				key, err := bundle.TrustKey(trusted, name, text)
				if errors.Is(err, fs.ErrExist) {
					return coded(codeExists, err, "give it a name of its own: --name NAME")
				}
				if err != nil {
					return coded(codeUsage, fmt.Errorf("%s: %w", args[0], err), "the public half is the file that ends in .pub")
				}
				ring, err := a.keyring(p)
				if err != nil {
					return err
				}
				for _, k := range ring.Keys() {
					if k.ID == key.ID && k.Revoked {
						return coded(codeSignature, fmt.Errorf("key %s was added, but its id is revoked: it stays without effect", key.ID))
					}
				}
				a.say("trusted: %s (%s)", key.ID, key.Name)
				return nil
			})
		})
	c.Flags().StringVar(&name, "name", "", "name of the key here (default: the file's)")
	return c
}

// keyReport is one key in "key list --json".
type keyReport struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Path    string `json:"path"`
	Revoked bool   `json:"revoked"`
}

// revokedReport is one revocation in "key list --json"; the key need not be here.
type revokedReport struct {
	ID  string `json:"id"`
	Why string `json:"why"`
}

func (a *app) keyListCmd() *cobra.Command {
	return a.reports(command("list", "List the keys that are trusted here",
		manual{
			effect:  "Lists the keys of the pool and of the machine, with the revoked ones marked.",
			exits:   poolExits(),
			example: "btrovl key list --json",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.Close()
			ring, err := a.keyring(p)
			if err != nil {
				return err
			}
			out := []keyReport{}
			for _, k := range ring.Keys() {
				out = append(out, keyReport{k.ID, k.Name, k.Path, k.Revoked})
			}
			revoked := []revokedReport{}
			for _, r := range ring.Revocations() {
				revoked = append(revoked, revokedReport(r))
			}
			return a.report(map[string]any{"keys": out, "revoked": revoked}, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tNAME\tSTATE\tFILE")
				for _, k := range out {
					state := "trusted"
					if k.Revoked {
						state = "revoked"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.ID, k.Name, state, k.Path)
				}
				for _, r := range revoked {
					if !slices.ContainsFunc(out, func(k keyReport) bool { return k.ID == r.ID }) {
						fmt.Fprintf(w, "%s\t-\trevoked\t-\n", r.ID)
					}
				}
			})
		}))
}

func (a *app) keyRevokeCmd() *cobra.Command {
	var reason string
	c := command("revoke ID", "Never trust a key again",
		manual{
			effect:  "Notes the key's id in the pool's revoked.d. Bundles signed by it are refused from\nthen on, also where another directory says that it is trusted. There is no undo\nbut removing the file by hand.",
			durable: "the revocation is on stable storage when the command returns.",
			exits:   poolExits(codeUnknown),
			example: "btrovl key revoke 7A1B2C3D4E5F6071 --reason 'laptop stolen'",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "key revoke", func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				ring, err := a.keyring(p)
				if err != nil {
					return err
				}
				var known []string
				found := false
				for _, k := range ring.Keys() {
					known = append(known, k.ID)
					found = found || strings.EqualFold(k.ID, args[0])
				}
				if len(args[0]) != 16 {
					return coded(codeUnknown, fmt.Errorf("%q is not a key id (16 hex digits)", args[0]), "known: "+orDash(strings.Join(known, ", ")))
				}
				_, revoked := keyDirs(p)
				if err := bundle.RevokeKey(revoked, args[0], reason); err != nil {
					return coded(codeUnknown, err, "known: "+orDash(strings.Join(known, ", ")))
				}
				if !found {
					a.warn("key %s was not known here; it is revoked all the same", strings.ToUpper(args[0]))
				}
				a.say("revoked: %s", strings.ToUpper(args[0]))
				return nil
			})
		})
	c.Flags().StringVar(&reason, "reason", "", "kept beside the revocation")
	return c
}
