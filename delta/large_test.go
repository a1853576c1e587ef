package delta

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/integration/testenv"
)

// One file of more than a reader may queue, all in one operation: what other streams
// hold for it must not come behind it. Make applies what it made, so it tells.
func TestOneLargeFile(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	b := make([]byte, 5*maxQueued/2)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	if err := os.WriteFile(filepath.Join(dir, "big"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	name := filepath.Join(t.TempDir(), "k")
	if _, err := bundle.GenerateKey(name, ""); err != nil {
		t.Fatal(err)
	}
	key, err := bundle.ReadPrivateKey(name+".key", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Compression{Fast, Best} {
		if _, err := Make(t.Context(), io.Discard, MakeOptions{To: Tree{Version: "1", Root: root}, Sign: key, Compression: c}); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
}
