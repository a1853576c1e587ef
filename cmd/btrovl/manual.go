package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// manual is what every command's help states besides its flags.
type manual struct {
	effect  string // what it does, and what it never does
	durable string // what is on stable storage when it returns
	exits   []int  // codes besides 0, 1, 2 and 3
	example string
}

// command makes a cobra command whose help has the parts of the manual, with
// the exit codes' meanings taken from the one table.
func command(use, short string, m manual, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	var b strings.Builder
	b.WriteString(wrap(m.effect))
	if m.durable != "" {
		b.WriteString("\n\n" + wrap("Durability: "+m.durable))
	}
	b.WriteString("\n\nExit codes:\n")
	for _, e := range exitTable() {
		if e.code <= codeUsage || slices.Contains(m.exits, e.code) {
			text := strings.ReplaceAll(wrap(e.meaning, 70), "\n", "\n       ")
			fmt.Fprintf(&b, "  %3d  %s\n", e.code, text)
		}
	}
	return &cobra.Command{
		Use:     use,
		Short:   short,
		Long:    strings.TrimRight(b.String(), "\n"),
		Example: indent(m.example),
		Args:    usageArgs(args),
		RunE: func(c *cobra.Command, args []string) error {
			return run(c.Context(), args)
		},
	}
}

// wrap fills paragraphs to the width, 78 if none is given.
func wrap(text string, width ...int) string {
	limit := append(width, 78)[0]
	var out []string
	for _, par := range strings.Split(strings.TrimSpace(text), "\n\n") {
		var line string
		for _, word := range strings.Fields(par) {
			if line != "" && len(line)+1+len(word) > limit {
				out = append(out, line)
				line = ""
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		out = append(out, line, "")
	}
	return strings.Join(out[:len(out)-1], "\n")
}

// group makes a command that only holds others.
func group(use, short, long string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: wrap(long),
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			var names []string
			for _, s := range c.Commands() {
				if s.IsAvailableCommand() {
					names = append(names, s.Name())
				}
			}
			return usagef("%s needs one of: %s", title(c), strings.Join(names, ", "))
		},
	}
	c.AddCommand(sub...)
	return c
}

// usageArgs marks the errors of an argument check as errors of usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 0 && c.HasSubCommands() {
			return unknownCommand(c, args[0])
		}
		if err := check(c, args); err != nil {
			return &usageError{msg: fmt.Sprintf("%s: %s", title(c), argsProblem(args)), use: useLine(c)}
		}
		return nil
	}
}

// argsProblem says what was given; the hint with the usage says what is expected.
func argsProblem(args []string) string {
	switch len(args) {
	case 0:
		return "an argument is missing"
	case 1:
		return fmt.Sprintf("%q is not what it takes", args[0])
	}
	return fmt.Sprintf("%d arguments (%s) are not what it takes", len(args), strings.Join(args, " "))
}

// useLine is how a command is called.
func useLine(c *cobra.Command) string {
	return strings.Replace(c.UseLine(), "[flags]", "[OPTIONS]", 1)
}

// title is the command's name for messages, which begin with btrovl anyway.
func title(c *cobra.Command) string {
	if !c.HasParent() {
		return c.Name()
	}
	return strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ")
}

// unknownCommand says what was probably meant.
func unknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2
	msg := fmt.Sprintf("%q is not a command of %s", name, c.CommandPath())
	if near := c.SuggestionsFor(name); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return &usageError{msg: msg, use: c.CommandPath() + " --help"}
}

func indent(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, l := range lines {
		lines[i] = "  " + strings.TrimSpace(l)
	}
	return strings.Join(lines, "\n")
}
