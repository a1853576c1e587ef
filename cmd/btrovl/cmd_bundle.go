package main

import (
	"github.com/spf13/cobra"
)

func (a *app) bundleCmd() *cobra.Command {
	return group("bundle", "Make, look at and check bundles",
		`A bundle is one signed file that turns base A into base B, or, without a base to
start from, nothing into B. docs/bundle-format.md describes every byte of it.`,
		a.bundleKeygenCmd(), a.bundleCreateCmd(), a.bundleInfoCmd(), a.bundleVerifyCmd(), a.bundleExportCmd())
}
