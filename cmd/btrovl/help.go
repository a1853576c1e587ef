package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// help prints a command's manual: what it does, its exit codes, then the usage.
func help(c *cobra.Command, _ []string) {
	w := c.OutOrStdout()
	text := c.Long
	if text == "" {
		text = c.Short
	}
	fmt.Fprintf(w, "%s\n\n", text)
	usage(w, c)
}

// usage prints how a command is called.
func usage(w io.Writer, c *cobra.Command) {
	fmt.Fprintln(w, "Usage:")
	if c.HasSubCommands() {
		fmt.Fprintf(w, "  %s COMMAND\n", c.CommandPath())
	} else {
		fmt.Fprintf(w, "  %s\n", useLine(c))
	}
	if c.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", c.Example)
	}
	for _, g := range append(c.Groups(), &cobra.Group{Title: "Commands:"}) {
		subcommands(w, c, g)
	}
	section := func(title string, f *pflag.FlagSet) {
		if text := flagText(f); text != "" {
			fmt.Fprintf(w, "\n%s\n%s", title, text)
		}
	}
	section("Options:", c.LocalFlags())
	section("Common options:", c.InheritedFlags())
}

func subcommands(w io.Writer, c *cobra.Command, g *cobra.Group) {
	first := true
	for _, s := range c.Commands() {
		if s.GroupID != g.ID || !s.IsAvailableCommand() {
			continue
		}
		if first {
			fmt.Fprintf(w, "\n%s\n", g.Title)
			first = false
		}
		fmt.Fprintf(w, "  %-*s  %s\n", c.NamePadding(), s.Name(), s.Short)
	}
}

// flagText lists flags, one a paragraph, filled to 80 columns.
func flagText(f *pflag.FlagSet) string {
	var b strings.Builder
	f.VisitAll(func(fl *pflag.Flag) {
		if fl.Hidden {
			return
		}
		name := "    --" + fl.Name
		if fl.Shorthand != "" {
			name = "-" + fl.Shorthand + ", --" + fl.Name
		}
		arg, text := pflag.UnquoteUsage(fl)
		switch fl.Value.Type() {
		case "bool":
			arg = ""
		case "stringSlice", "string":
			arg = "TEXT"
		case "int", "int64", "uint64":
			arg = "N"
		case "duration":
			arg = "TIME"
			text += " (default " + fl.DefValue + ")"
		}
		name = "  " + strings.TrimRight(name+" "+arg, " ")
		lines := strings.Split(wrap(text, 54), "\n")
		if len(name) > 22 {
			name += "\n" + strings.Repeat(" ", 24)
		}
		fmt.Fprintf(&b, "%-24s", name)
		fmt.Fprintf(&b, "%s\n", strings.Join(lines, "\n"+strings.Repeat(" ", 24)))
	})
	return b.String()
}
