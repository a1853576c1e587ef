package redeflate

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// seeds are small files of all formats (testdata/README says how they were made).
func seeds(f *testing.F) (files [][]byte) {
	names, err := filepath.Glob("testdata/seeds/*")
	if err != nil || len(names) == 0 {
		f.Fatal("no seeds")
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		files = append(files, b)
	}
	return files
}

// FuzzUnpack: whatever the file, what Unpack gives out makes it again, and
// Expand does not panic.
func FuzzUnpack(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		Expand(io.Discard, bytes.NewReader(file), int64(len(file)))
		u, err := Unpack(file, Options{MaxPlain: 1 << 20})
		if err != nil {
			return
		}
		checkSegments(t, u)
		if !bytes.Equal(restored(t, u), file) {
			t.Error("the file does not come back")
		}
		if int64(len(u.Plain)) > 1<<20+int64(len(file)) {
			t.Errorf("plain of %d bytes", len(u.Plain))
		}
	})
}

// FuzzRestore: whatever the recipe, Restore ends, does not panic, and writes
// no more than recipe and plain account for.
func FuzzRestore(f *testing.F) {
	for _, s := range seeds(f) {
		if u, err := Unpack(s, Options{}); err == nil {
			f.Add(u.Recipe, u.Plain)
		}
	}
	f.Fuzz(func(t *testing.T, recipe, plain []byte) {
		if len(plain) > 1<<18 {
			return
		}
		Memory(recipe, 2)
		var n countingWriter
		Restore(&n, bytes.NewReader(plain), recipe)
		// A block costs at most 400 bytes of header and 5 of frame; each
		// one of the model stands for data, each other for a fix.
		if most := int64(len(recipe)+len(plain)+1) * 450; int64(n) > most {
			t.Errorf("%d bytes from a recipe of %d and a plain of %d", n, len(recipe), len(plain))
		}
	})
}

type countingWriter int64

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}
