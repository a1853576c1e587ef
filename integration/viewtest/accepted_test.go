package viewtest

import (
	"os"
	"strings"
	"testing"
)

// docs/testing.md tells users what the tests let pass: all of it, and nothing else.
func TestDocumentedDifferences(t *testing.T) {
	b, err := os.ReadFile("../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	rows := 0
	want := func(name, why string) {
		rows++
		if row := "| " + name + " | " + why + " |"; !strings.Contains(doc, row) {
			t.Errorf("docs/testing.md lacks this row:\n%s", row)
		}
	}
	for _, d := range Accepted {
		want(d.ID, d.Why)
	}
	for _, n := range NotGenerated {
		want(n.Call, n.Why)
	}
	for _, n := range NotCompared {
		want(n.What, n.Why)
	}
	_, table, _ := strings.Cut(doc, "\n## Differences")
	if n := strings.Count(table, "\n| ") - 3; n != rows { // three headings
		t.Errorf("docs/testing.md has %d rows of differences, the code has %d", n, rows)
	}
}
