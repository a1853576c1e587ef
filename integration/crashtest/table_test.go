package crashtest

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"testing"
)

// A row counts the states of one command.
type row struct {
	states, old, new, neither int
	order                     int
}

// table is what a run prints: the format of docs/reliability.md.
type table struct {
	mu   sync.Mutex
	rows map[string]*row
}

func (t *table) add(command string, which int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows == nil {
		t.rows = map[string]*row{}
	}
	r := t.rows[command]
	if r == nil {
		r = &row{order: len(t.rows)}
		t.rows[command] = r
	}
	r.states++
	switch which {
	case 0:
		r.old++
	case 1:
		r.new++
	default:
		r.neither++
	}
}

func (t *table) total() (r row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.rows {
		r.states += x.states
		r.old += x.old
		r.new += x.new
		r.neither += x.neither
	}
	return r
}

func (t *table) String() string {
	total := t.total()
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for n := range t.rows {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return t.rows[names[i]].order < t.rows[names[j]].order })
	var b strings.Builder
	b.WriteString("| command | states | old | new | neither |\n|---|---|---|---|---|\n")
	for _, n := range names {
		r := t.rows[n]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", n, r.states, r.old, r.new, r.neither)
	}
	if len(names) > 1 {
		fmt.Fprintf(&b, "| **all** | %d | %d | %d | **%d** |\n", total.states, total.old, total.new, total.neither)
	}
	return b.String()
}

// print shows the table. A full run also adds it to the file that BTROVL_CRASH_TABLE names.
func (t *table) print(tb testing.TB, title string) {
	text := title + "\n\n" + t.String()
	tb.Log("\n" + text)
	if name := os.Getenv("BTROVL_CRASH_TABLE"); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			tb.Error(err)
			return
		}
		defer f.Close()
		fmt.Fprintln(f, text)
	}
}
