package redeflate

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// A sample is a plain with a name.
type sample struct {
	name string
	data []byte
}

// prose returns n bytes of text with the repetitions of a language.
func prose(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([]string, 400)
	for i := range words {
		w := make([]byte, 2+rnd.IntN(9))
		for j := range w {
			w[j] = "etaoinshrdlucmfwypvbgkjqxz"[min(rnd.IntN(26), rnd.IntN(26))]
		}
		words[i] = string(w)
	}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[min(rnd.IntN(400), rnd.IntN(400))])
		b.WriteString([]string{" ", " ", " ", ", ", ".\n"}[rnd.IntN(5)])
	}
	return []byte(b.String()[:n])
}

// records returns n bytes like those of a program: tables with small numbers,
// zeros, and now and then what cannot be compressed.
func records(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 2))
	var b []byte
	for len(b) < n {
		switch rnd.IntN(5) {
		case 0:
			b = append(b, make([]byte, rnd.IntN(600))...)
		case 1:
			for range rnd.IntN(2000) {
				b = append(b, byte(rnd.Uint32()))
			}
		case 2:
			if len(b) > 0 {
				at := max(len(b)-1-rnd.IntN(40000), 0)
				b = append(b, b[at:min(at+rnd.IntN(500), len(b))]...)
			}
		default:
			for i := range uint32(rnd.IntN(300)) {
				b = append(b, byte(i), byte(i>>3), 0, byte(rnd.IntN(4)))
			}
		}
	}
	return b[:n]
}

func noise(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// samples covers what encoders decide differently: lengths around the ends of
// the window, of blocks and of the look-ahead; data that ends in zeros or in a
// long match; blocks that are stored.
func samples() []sample {
	var out []sample
	add := func(name string, b []byte) {
		out = append(out, sample{fmt.Sprintf("%s %d", name, len(b)), b})
	}
	for _, n := range []int{0, 1, 2, 3, 4, 11, 259, 5000} {
		add("prose", prose(n, 1))
	}
	for i, n := range []int{65274, 65275, 65400, 65536, 65537, 65700, 98042, 98043, 98400, 140000} {
		add("prose", prose(n, uint64(i)))
		add("records", records(n, uint64(i)))
	}
	add("zeros", make([]byte, 300))
	add("zeros", make([]byte, 200000))
	add("period", bytes.Repeat([]byte("abcdefg"), 20000))
	add("noise", noise(70000, 1))
	add("noise then prose", append(noise(100000, 2), prose(100000, 3)...))
	for i := range 6 {
		// As an archive ends: a match that could go on into what follows.
		b := append(records(66000+i*9000+i, uint64(40+i)), make([]byte, 100+i*37)...)
		add("records then zeros", b)
	}
	add("long", bytes.Join([][]byte{prose(700000, 7), records(900000, 8), noise(40000, 9), prose(300000, 7)}, nil))
	return out
}

func mustUnpack(t *testing.T, data []byte) *Unpacked {
	t.Helper()
	u, err := Unpack(data, Options{})
	if err != nil {
		t.Fatalf("cannot unpack: %v", err)
	}
	return u
}

// restored runs Restore and fails on any error.
func restored(t *testing.T, u *Unpacked) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Restore(&out, bytes.NewReader(u.Plain), u.Recipe); err != nil {
		t.Fatalf("cannot restore: %v", err)
	}
	return out.Bytes()
}

// checkSegments fails unless the segments cover plain without gaps.
func checkSegments(t *testing.T, u *Unpacked) {
	t.Helper()
	at := int64(0)
	for i, s := range u.Segments {
		if s.Offset != at || s.Length <= 0 || s.Kind == Member && s.Path == "" {
			t.Fatalf("segment %d is %+v, want one that begins at %d", i, s, at)
		}
		at += s.Length
	}
	if at != int64(len(u.Plain)) {
		t.Fatalf("segments cover %d of %d bytes", at, len(u.Plain))
	}
}
