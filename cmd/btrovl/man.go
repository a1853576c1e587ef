package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// manPage writes a command's help as a page for man(1).
func manPage(w io.Writer, c *cobra.Command) {
	name := manName(c)
	fmt.Fprintf(w, ".TH %s 8 \"\" \"btrovl\"\n", strings.ToUpper(name))
	section := func(title, text string) {
		if text = strings.TrimRight(text, "\n"); text != "" {
			fmt.Fprintf(w, ".SH %s\n.nf\n%s\n.fi\n", title, roff(text))
		}
	}
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(name), roff(c.Short))
	section("SYNOPSIS", useLine(c))
	section("DESCRIPTION", c.Long)
	section("OPTIONS", flagText(c.NonInheritedFlags()))
	section("COMMON OPTIONS", flagText(c.InheritedFlags()))
	section("EXAMPLES", c.Example)
	var also []string
	if c.HasParent() {
		also = append(also, manName(c.Parent())+"(8)")
	}
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			also = append(also, manName(s)+"(8)")
		}
	}
	section("SEE ALSO", strings.Join(also, ",\n"))
}

func manName(c *cobra.Command) string {
	return strings.ReplaceAll(c.CommandPath(), " ", "-")
}

// roff keeps text from being taken for requests.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "-", `\-`)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
