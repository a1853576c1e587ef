package main

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/fusefs"
	"github.com/btrovl/btrovl/reset"
)

func newTestApp() *app {
	return &app{tui: tui{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}}
}

// leaves are the commands that do something.
func leaves(c *cobra.Command) []*cobra.Command {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	var out []*cobra.Command
	for _, s := range c.Commands() {
		if !s.Hidden && s.Name() != "completion" && s.Name() != "help" {
			out = append(out, leaves(s)...)
		}
	}
	return out
}

// section is the part of the page below a heading.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("docs/cli.md has no heading %q", heading)
	}
	level := strings.Repeat("#", strings.Count(strings.Fields(heading)[0], "#"))
	for _, end := range []string{"\n" + level + " ", "\n" + strings.TrimSuffix(level, "#") + " "} {
		if before, _, ok := strings.Cut(rest, end); ok && end != "\n " {
			rest = before
		}
	}
	return rest
}

func cliPage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The page and the program have the same exit codes with the same words.
func TestDocsExitCodes(t *testing.T) {
	sec := section(t, cliPage(t), "## Exit codes")
	rows := 0
	for line := range strings.Lines(sec) {
		if strings.HasPrefix(line, "| ") && line[2] >= '0' && line[2] <= '9' {
			rows++
		}
	}
	table := exitTable()
	if rows != len(table) {
		t.Errorf("docs/cli.md has %d exit codes, the program %d", rows, len(table))
	}
	seen := map[int]bool{}
	for _, e := range table {
		if row := fmt.Sprintf("| %d | %s | %s |", e.code, e.name, e.meaning); !strings.Contains(sec, row) {
			t.Errorf("docs/cli.md lacks the row %s", row)
		}
		if seen[e.code] {
			t.Errorf("code %d has two meanings", e.code)
		}
		seen[e.code] = true
	}
}

// Every command stands on the page, has a manual, and its --json leads to a section.
func TestDocsCommands(t *testing.T) {
	sec := section(t, cliPage(t), "## Commands")
	all := leaves(newTestApp().commands())
	for _, c := range all {
		line := "`" + c.Parent().CommandPath() + " " + c.Use + "`"
		row := ""
		for l := range strings.Lines(sec) {
			if strings.HasPrefix(l, "| "+line+" |") {
				row = l
			}
		}
		if row == "" {
			t.Errorf("docs/cli.md does not list %s", line)
			continue
		}
		if has, says := c.Flags().Lookup("json") != nil, strings.Contains(row, "]("); has != says {
			t.Errorf("%s: --json is %v in the program, %v on the page", c.CommandPath(), has, says)
		}
		if !strings.Contains(c.Long, "Exit codes:") || !strings.Contains(c.Long, "\n    0  done") {
			t.Errorf("%s: its help names no exit codes", c.CommandPath())
		}
		if !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s: its help has no example of it", c.CommandPath())
		}
		if len(c.Long) < 80 || c.Short == "" {
			t.Errorf("%s: its help does not say what it does", c.CommandPath())
		}
		if changes(c) && !strings.Contains(c.Long, "Durability:") {
			t.Errorf("%s changes something, and its help says nothing of durability", c.CommandPath())
		}
	}
	rows := strings.Count(sec, "\n| `btrovl ")
	if rows != len(all) {
		t.Errorf("docs/cli.md lists %d commands, there are %d", rows, len(all))
	}
}

// changes tells whether a command leaves something behind.
func changes(c *cobra.Command) bool {
	switch c.Name() {
	case "list", "info", "verify", "export-stream", "status", "history", "diff", "version", "umount":
		return false
	}
	return true
}

// Every field of every report stands in its section.
func TestDocsJSON(t *testing.T) {
	page := cliPage(t)
	for heading, v := range map[string]any{
		"### base list":     baseReport{},
		"### overlay list":  overlayReport{},
		"### deployment":    deployReport{},
		"### boot":          bootReport{},
		"### update":        updateReport{},
		"### status":        statusReport{},
		"### status --ops":  fusefs.Stats{},
		"### history":       historyEntry{},
		"### diff":          reset.Change{},
		"### backup list":   backupReport{},
		"### gc":            removedReport{},
		"### doctor":        findingReport{},
		"### bundle create": createReport{},
		"### bundle info":   bundleReport{},
		"### bundle verify": verifyReport{},
		"### key list":      keyReport{},
		"## Progress":       progressLine{},
	} {
		sec := section(t, page, heading)
		for _, f := range fields(v) {
			if !strings.Contains(sec, "`"+f+"`") && !strings.Contains(sec, "\""+f+"\":") {
				t.Errorf("docs/cli.md, %s: the field %q is missing", heading, f)
			}
		}
	}
}

// fields are the names of a report's JSON fields, without what it embeds, and of
// the lists of structs in it.
func fields(v any) []string {
	if list, ok := v.([]string); ok {
		return list
	}
	var out []string
	t := reflect.TypeOf(v)
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || name == "" || name == "-" {
			continue
		}
		out = append(out, name)
		if el := f.Type; el.Kind() == reflect.Slice && el.Elem().Kind() == reflect.Struct && name != "overlays" {
			out = append(out, fields(reflect.Zero(el.Elem()).Interface())...)
		}
	}
	return out
}
