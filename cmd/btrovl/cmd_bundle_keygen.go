package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta/bundle"
)

func (a *app) bundleKeygenCmd() *cobra.Command {
	var pw passwordFlags
	var none bool
	c := command("keygen NAME", "Make a minisign key pair",
		manual{
			effect:  "Writes NAME.key (secret, mode 0600, encrypted with a password) and NAME.pub, in\nminisign's format. Overwrites nothing. The password is asked on the terminal, or\nread from a file or a descriptor.",
			durable: "both files are on stable storage when the command returns.",
			exits:   []int{codeExists},
			example: "btrovl bundle keygen vendor\nbtrovl bundle keygen test --no-password",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			for _, name := range []string{args[0] + ".key", args[0] + ".pub"} {
				if _, err := os.Lstat(name); err == nil {
					return coded(codeExists, fmt.Errorf("%s is there already", name), "choose another name; a key is never overwritten")
				}
			}
			var password string
			var err error
			if !none {
				if password, err = pw.read(ctx, "password for the new key: ", true); err != nil {
					return err
				}
				if password == "" {
					return usagef("the password is empty; a key without one is made with --no-password")
				}
			}
			id, err := bundle.GenerateKey(args[0], password)
			if err != nil {
				return fmt.Errorf("cannot make a key: %w", err)
			}
			a.say("key %s: %s.key signs (keep it secret), %s.pub goes to the devices", id, args[0], args[0])
			return nil
		})
	c.Flags().BoolVar(&none, "no-password", false, "do not encrypt the secret key")
	pw.add(c)
	return c
}
