package main

// What btrovl prints, and where. All rules are here.
//
//   - Standard output carries what was asked for: a table, or with --json one
//     JSON document. Nothing else.
//   - Standard error carries what happened ("updated to base 2"), progress on a
//     terminal, warnings, and errors.
//   - An error is one line "btrovl: …" that names the thing, what was expected
//     and what was found, then lines "hint: …" that say what to do.
//   - Nothing is printed between freeze and thaw: standard error may be a file
//     on the very view that is frozen.
//   - A secret is never printed and never taken from the command line.

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// tui is the standard files of one run.
type tui struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	quiet          bool
	json           bool
}

// say tells what happened; --quiet silences it.
func (t *tui) say(format string, args ...any) {
	if !t.quiet {
		fmt.Fprintf(t.stderr, format+"\n", args...)
	}
}

// warn tells what the user should know although the command succeeds.
func (t *tui) warn(format string, args ...any) {
	fmt.Fprintf(t.stderr, "btrovl: warning: "+format+"\n", args...)
}

// fail prints an error with its hints and returns the exit code.
func (t *tui) fail(err error) int {
	code, hints := explain(err)
	if _, ok := err.(*silent); ok {
		return code
	}
	fmt.Fprintf(t.stderr, "btrovl: %v\n", err)
	for _, h := range hints {
		fmt.Fprintf(t.stderr, "hint: %s\n", h)
	}
	return code
}

// report prints v as JSON, or what text writes as a table with aligned columns.
func (t *tui) report(v any, text func(w io.Writer)) error {
	if t.json {
		enc := json.NewEncoder(t.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(t.stdout, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// isTerminal tells whether a standard file is a terminal.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// confirm asks on a terminal; elsewhere --yes must have said it.
func (t *tui) confirm(ctx context.Context, yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !isTerminal(t.stdin) {
		return coded(codeDeclined, fmt.Errorf("not confirmed, and there is no terminal to ask: %s", question),
			"repeat the command with --yes")
	}
	fmt.Fprintf(t.stderr, "%s [y/N] ", question)
	if err := waitReadable(ctx, t.stdin); err != nil {
		return err
	}
	line, _ := bufio.NewReader(t.stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return coded(codeDeclined, fmt.Errorf("not confirmed; nothing was done"))
}

// size prints bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for f >= unit && i < 4 {
		f, i = f/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}

// when prints a time for people and scripts alike.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// orDash stands for nothing in a table.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
