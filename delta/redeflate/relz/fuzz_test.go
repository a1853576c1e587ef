package relz

import (
	"bytes"
	"io"
	"os"
	"testing"
)

// FuzzRebuild: whatever the recipe, the plain and the old stream, Rebuild ends
// without a panic.
func FuzzRebuild(f *testing.F) {
	old, err := os.ReadFile("testdata/old.lzma2")
	if err != nil {
		f.Fatal(err)
	}
	stream, err := os.ReadFile("testdata/new.lzma2")
	if err != nil {
		f.Fatal(err)
	}
	for _, x86 := range []bool{false, true} {
		s := Stream{Dict: 64 << 10, X86: x86, Size: 6000}
		h, err := Learn(nil, bytes.NewReader(old), s, nil)
		if err != nil {
			f.Fatal(err)
		}
		s.Size = 1 << 16
		d, err := Describe(stream, s, h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(d.Recipe, d.Plain, old)
	}
	f.Fuzz(func(t *testing.T, recipe, plain, old []byte) {
		h, _ := Learn(nil, bytes.NewReader(old), Stream{Dict: 64 << 10, Size: 6000}, nil)
		Memory(recipe, int64(len(plain)), Stream{})
		var space Workspace
		for range 2 { // what is used again is what it was
			space.Rebuild(io.Discard, bytes.NewReader(plain), int64(len(plain)), recipe, h, func() error { return nil })
		}
		// And a stream that is whole comes back whatever the history.
		s := Stream{Dict: 64 << 10, Size: 1 << 16}
		if d, err := Describe(old, s, h); err == nil {
			var b bytes.Buffer
			h, _ := Learn(nil, bytes.NewReader(old), Stream{Dict: 64 << 10, Size: 6000}, nil)
			if err := Rebuild(&b, bytes.NewReader(d.Plain), int64(len(d.Plain)), d.Recipe, h); err != nil {
				t.Error(err)
			}
		}
	})
}
