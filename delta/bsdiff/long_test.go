package bsdiff

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
)

// cost is a rough measure of a patch: what does not compress.
func cost(ops []Op) (n int64) {
	for _, op := range ops {
		n += 6
		if op.Kind != Copy {
			n += op.Length
		}
	}
	return n
}

// An image of several windows, with changes of every kind: the patch must be right,
// and not much larger than one made with everything indexed.
func TestLongSources(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32() >> (r.Uint32() & 3))
	}
	copy(noise[1<<19:], make([]byte, 300<<10)) // a hole
	old := [][]byte{noise[:3<<19], nil, noise[3<<19 : 5<<19], noise[5<<19:]}
	var new []byte
	new = append(new, noise[4<<19:6<<19]...) // moved to the front
	new = append(new, noise[:4<<19]...)
	for range 1000 { // single bytes
		new[r.IntN(len(new))]++
	}
	for range 60 { // small insertions and deletions
		at := r.IntN(len(new) - 1000)
		if r.IntN(2) == 0 {
			new = append(new[:at:at], append(noise[at/2:at/2+r.IntN(200):at/2+300], new[at:]...)...)
		} else {
			new = append(new[:at], new[at+r.IntN(500):]...)
		}
	}
	new = append(new, bytes.Repeat([]byte("all new"), 20000)...)
	for _, window := range []int{1 << 20} {
		ops, err := Diff(context.Background(), new, old, Options{Window: window})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := Diff(context.Background(), new, old, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c, w := cost(ops), cost(whole); c > w*11/10 {
			t.Errorf("window %d: cost %d, with everything in one index %d", window, c, w)
		}
		got, err := unpack(packOps(t, ops, new, old), old, int64(len(new)))
		if err != nil || !bytes.Equal(got, new) {
			t.Fatalf("window %d: round trip failed: %v", window, err)
		}
	}
}

// Without any long stretch in common there is still a patch.
func TestLongUnrelated(t *testing.T) {
	old, new := sample(3<<20), bytes.ToUpper(sample(2<<20))
	for i := range new {
		if i%700 == 0 {
			new[i] ^= 0xff
		}
	}
	for _, p := range [][2][]byte{{old, new}, {make([]byte, 5<<20), make([]byte, 7<<20)}, {old, nil}, {old, old[:10]}} {
		ops, err := Diff(context.Background(), p[1], [][]byte{p[0]}, Options{Window: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		got, err := unpack(packOps(t, ops, p[1], [][]byte{p[0]}), [][]byte{p[0]}, int64(len(p[1])))
		if err != nil || !bytes.Equal(got, p[1]) {
			t.Fatalf("round trip failed: %v", err)
		}
	}
}
