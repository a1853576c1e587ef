package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/btrovl/btrovl"

// arrows is the house of docs/design.md: which package may know which of ours.
// Whatever is not listed may import nothing of ours. A package knows its own
// subpackages.
func arrows() map[string][]string {
	return map[string][]string{
		"subvolumes": {"subvolumes"},
		"delta":      {"delta", "subvolumes"},
		"reset":      {"subvolumes", "delta/stream"},
		"fusefs":     {"fusefs", "overlay"},
		"cmd":        {"subvolumes", "delta", "reset", "overlay", "fusefs"},
	}
}

// codecs know nothing but themselves: they stay usable, and fuzzable, alone.
func codecs() []string {
	return []string{"delta/bsdiff", "delta/stream", "delta/redeflate", "delta/bundle", "subvolumes/btrfs", "fusefs/control"}
}

// The program knows each package, but no package knows the program, and the two
// pillars (bytes into pools; pools into views) do not know each other.
func TestArchitecture(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, module+"/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	n := 0
	for line := range strings.Lines(string(out)) {
		names := strings.Fields(strings.ReplaceAll(line, module+"/", "./"))
		if len(names) == 0 || !strings.HasPrefix(names[0], "./") {
			continue
		}
		from := strings.TrimPrefix(names[0], "./")
		top, _, _ := strings.Cut(from, "/")
		if top == "integration" { // tests and benchmarks of the whole
			continue
		}
		n++
		for _, imp := range names[1:] {
			to, ours := strings.CutPrefix(imp, "./")
			if !ours || strings.HasPrefix(to, from+"/") {
				continue
			}
			if slices.ContainsFunc(codecs(), func(c string) bool { return from == c }) {
				t.Errorf("%s imports %s: it is a codec and knows nothing but bytes (docs/design.md, the house)", from, to)
				continue
			}
			ok := slices.ContainsFunc(arrows()[top], func(a string) bool { return to == a || strings.HasPrefix(to, a+"/") })
			if !ok {
				t.Errorf("%s imports %s: %q may import only %v of ours (docs/design.md, the house)", from, to, top, arrows()[top])
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d packages were looked at", n)
	}
}

// No package is a drawer for everything.
func TestNoUtilPackages(t *testing.T) {
	out, err := exec.Command("go", "list", module+"/...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	for p := range strings.Lines(string(out)) {
		for _, name := range []string{"util", "utils", "common", "helpers", "types", "misc"} {
			if strings.HasSuffix(strings.TrimSpace(p), "/"+name) {
				t.Errorf("%s: give what is in it to the package whose idea it is", strings.TrimSpace(p))
			}
		}
	}
}
