package bsdiff

import (
	"bytes"
	"index/suffixarray"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// naiveSuffixArray sorts by comparing.
func naiveSuffixArray(text []byte) []int32 {
	sa := make([]int32, len(text))
	for i := range sa {
		sa[i] = int32(i)
	}
	slices.SortFunc(sa, func(a, b int32) int { return bytes.Compare(text[a:], text[b:]) })
	return sa
}

func TestSuffixArraySmallTexts(t *testing.T) {
	// All texts up to length 9 over three letters: every shape of LMS substrings.
	for n := range 10 {
		text := make([]byte, n)
		total := 1
		for range n {
			total *= 3
		}
		for v := range total {
			for i, x := 0, v; i < n; i++ {
				text[i] = byte(x % 3)
				x /= 3
			}
			if got, want := suffixArray(text), naiveSuffixArray(text); !slices.Equal(got, want) {
				t.Fatalf("suffixArray(%v) = %v, want %v", text, got, want)
			}
		}
	}
}

func TestSuffixArrayTexts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := map[string][]byte{
		"zeros":    make([]byte, 5000),
		"ones":     bytes.Repeat([]byte{255}, 5000),
		"periodic": []byte(strings.Repeat("abcabd", 1000)),
		"mirror":   []byte(strings.Repeat("ab", 500) + strings.Repeat("ba", 500)),
	}
	fib, prev := "a", "b"
	for len(fib) < 10000 {
		fib, prev = fib+prev, fib
	}
	texts["fibonacci"] = []byte(fib)
	for _, k := range []int{1, 2, 4, 256} {
		for _, n := range []int{2, 100, 3000, 60000} {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(r.IntN(k)) << (k % 3)
			}
			texts[strings.Join([]string{"random", string(rune('0' + k%10)), string(rune('0' + n%7))}, "-")] = b
		}
	}
	for name, text := range texts {
		if got, want := suffixArray(text), naiveSuffixArray(text); !slices.Equal(got, want) {
			t.Errorf("%s: wrong suffix array", name)
		}
	}
}

func BenchmarkSuffixArray(b *testing.B) {
	text := sample(1 << 20)
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			suffixArray(text)
		}
	})
	b.Run("index/suffixarray", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			suffixarray.New(text)
		}
	})
}

// sample returns n bytes that look like a program: words from a skewed vocabulary.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	words := make([][]byte, 400)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(14))
		for j := range words[i] {
			words[i][j] = byte(r.ExpFloat64() * 40)
		}
	}
	var b []byte
	for len(b) < n {
		b = append(b, words[int(r.ExpFloat64()*60)%len(words)]...)
	}
	return b[:n]
}
