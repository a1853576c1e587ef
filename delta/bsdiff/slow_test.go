package bsdiff

import (
	"context"
	"testing"
)

// Texts that resemble themselves everywhere must not take quadratic time: these took
// minutes, and take a fraction of a second.
func TestSelfSimilarTexts(t *testing.T) {
	dots := func(n, every int) []byte {
		b := make([]byte, n)
		for i := 0; i < n; i += every {
			b[i] = 1
		}
		return b
	}
	const n = 3 << 19
	for _, p := range [][2][]byte{
		{dots(n, 100), make([]byte, n)},
		{make([]byte, n), dots(n, 100)},
		{dots(n, 100), dots(n, 101)},
	} {
		for _, window := range []int{0, 1 << 20} {
			if _, err := Diff(context.Background(), p[1], [][]byte{p[0]}, Options{Window: window}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
