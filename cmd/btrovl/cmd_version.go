package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
)

func (a *app) versionCmd() *cobra.Command {
	return a.reports(command("version", "Print the version, and the formats that it knows",
		manual{
			effect:  "Prints the version, the newest formats of pools and bundles that it knows, and what\nit was built with.",
			example: "btrovl version --json",
		}, cobra.NoArgs,
		func(ctx context.Context, args []string) error {
			out := map[string]any{"version": versionString(), "pool_format": subvolumes.Format, "bundle_format": bundle.Format,
				"go": runtime.Version(), "arch": runtime.GOARCH}
			return a.report(out, func(w io.Writer) {
				fmt.Fprintf(w, "btrovl %s\n", versionString())
				fmt.Fprintf(w, "pool format %d, bundle format %d, %s, %s\n", subvolumes.Format, bundle.Format, runtime.Version(), runtime.GOARCH)
			})
		}))
}

func (a *app) manCmd() *cobra.Command {
	c := command("man DIR", "Write the manual pages",
		manual{
			effect:  "Writes one manual page for every command to DIR, which is made.",
			example: "btrovl man /usr/share/man/man8",
		}, cobra.ExactArgs(1),
		func(ctx context.Context, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeManPages(args[0], a.root)
		})
	c.Hidden = true
	return c
}

func writeManPages(dir string, c *cobra.Command) error {
	var b bytes.Buffer
	manPage(&b, c)
	if err := os.WriteFile(filepath.Join(dir, manName(c)+".8"), b.Bytes(), 0o644); err != nil {
		return err
	}
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			if err := writeManPages(dir, s); err != nil {
				return err
			}
		}
	}
	return nil
}
