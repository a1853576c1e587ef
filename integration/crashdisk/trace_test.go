package crashdisk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// A program of three steps, killed before each of them.
func TestKillAt(t *testing.T) {
	sh := testenv.Command(t, "sh")
	run := func(n int) (Traced, string) {
		dir := t.TempDir()
		tr, err := KillAt(n, 30*time.Second, nil, sh, "-c", "cd "+dir+" && mkdir a && mkdir b && rmdir a && echo done")
		if err != nil && strings.Contains(err.Error(), "operation not permitted") {
			t.Skip("ptrace is not permitted here")
		}
		testenv.Must(t, err)
		var left []string
		ents, err := os.ReadDir(dir)
		testenv.Must(t, err)
		for _, e := range ents {
			left = append(left, filepath.Base(e.Name()))
		}
		return tr, strings.Join(left, " ")
	}
	whole, left := run(0)
	if len(whole.Calls) != 3 || left != "b" || whole.Exit != 0 || !strings.Contains(whole.Output, "done") {
		t.Fatalf("a whole run: %+v, left %q", whole, left)
	}
	for n, want := range []string{1: "", 2: "a", 3: "a b"} {
		if n == 0 {
			continue
		}
		if tr, left := run(n); left != want || !tr.Killed || tr.Exit != 128+9 {
			t.Errorf("killed at %d: left %q, want %q (%+v)", n, left, want, tr)
		}
	}
}
