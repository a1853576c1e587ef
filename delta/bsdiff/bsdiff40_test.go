package bsdiff

import (
	"bytes"
	"compress/bzip2"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

// pairs returns old and new files of many shapes.
func pairs() map[string][2][]byte {
	r := rand.New(rand.NewPCG(7, 8))
	old := sample(300000)
	return map[string][2][]byte{
		"both empty":  {},
		"old empty":   {nil, sample(1000)},
		"new empty":   {sample(1000), nil},
		"one byte":    {[]byte("a"), []byte("b")},
		"equal":       {old, old},
		"zeros":       {make([]byte, 100000), make([]byte, 99999)},
		"relative":    {old, mutate(r, old)},
		"another":     {old[:100000], mutate(r, old[100000:])},
		"new content": {sample(500), bytes.Repeat([]byte("something else "), 9000)},
	}
}

func TestBSDIFF40(t *testing.T) {
	for name, p := range pairs() {
		t.Run(name, func(t *testing.T) {
			var patch, got bytes.Buffer
			if err := WriteBSDIFF40(context.Background(), &patch, p[0], p[1]); err != nil {
				t.Fatal(err)
			}
			err := ReadBSDIFF40(context.Background(), &got, bytes.NewReader(p[0]), int64(len(p[0])),
				bytes.NewReader(patch.Bytes()), int64(patch.Len()), int64(len(p[1])))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), p[1]) {
				t.Error("the patch makes another file")
			}
		})
	}
}

// Debian's bspatch applies our patches, and we apply those of Debian's bsdiff.
func TestBSDIFF40AgainstDebian(t *testing.T) {
	testenv.Command(t, "bsdiff")
	testenv.Command(t, "bspatch")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, p := range pairs() {
		t.Run(name, func(t *testing.T) {
			var ours, got bytes.Buffer
			if err := WriteBSDIFF40(context.Background(), &ours, p[0], p[1]); err != nil {
				t.Fatal(err)
			}
			for name, b := range map[string][]byte{"old": p[0], "new": p[1], "ours": ours.Bytes()} {
				if err := os.WriteFile(file(name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			testenv.Run(t, "bspatch", file("old"), file("made"), file("ours"))
			if made, err := os.ReadFile(file("made")); err != nil || !bytes.Equal(made, p[1]) {
				t.Errorf("bspatch makes another file of our patch (%v)", err)
			}
			if len(p[0]) == 0 || len(p[1]) == 0 {
				return // Debian's bsdiff refuses empty files
			}
			testenv.Run(t, "bsdiff", file("old"), file("new"), file("theirs"))
			theirs, err := os.ReadFile(file("theirs"))
			if err != nil {
				t.Fatal(err)
			}
			err = ReadBSDIFF40(context.Background(), &got, bytes.NewReader(p[0]), int64(len(p[0])),
				bytes.NewReader(theirs), int64(len(theirs)), int64(len(p[1])))
			if err != nil || !bytes.Equal(got.Bytes(), p[1]) {
				t.Errorf("we make another file of bsdiff's patch (%v)", err)
			}
			if ours.Len() > len(theirs)*102/100+20 {
				t.Errorf("our patch has %d bytes, bsdiff's %d", ours.Len(), len(theirs))
			}
		})
	}
}

func TestBzip2(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	random := make([]byte, 2_000_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 200000) // long Huffman codes
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 3)
	}
	for name, text := range map[string][]byte{
		"empty":    nil,
		"byte":     {7},
		"runs":     bytes.Repeat([]byte("aaaaabbbbcccdde"), 1000),
		"long run": make([]byte, 3_000_000),
		"periodic": bytes.Repeat([]byte("abc"), 400000),
		"random":   random,
		"skewed":   skewed,
		"text":     sample(1_000_000),
	} {
		t.Run(name, func(t *testing.T) {
			var z bytes.Buffer
			w := newBzip2Writer(&z)
			if _, err := w.Write(text); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(bzip2.NewReader(&z))
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("round trip failed: %v", err)
			}
		})
	}
}
