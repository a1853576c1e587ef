package bsdiff

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// pack makes a patch and returns its streams.
func pack(t testing.TB, new []byte, sources [][]byte) [NumStreams][]byte {
	t.Helper()
	ops, err := Diff(context.Background(), new, sources, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return packOps(t, ops, new, sources)
}

// packOps encodes operations.
func packOps(t testing.TB, ops []Op, new []byte, sources [][]byte) [NumStreams][]byte {
	t.Helper()
	var bufs [NumStreams]bytes.Buffer
	var w Writers
	for i := range bufs {
		w[i] = &bufs[i]
	}
	if err := Encode(&w, ops, new, sources); err != nil {
		t.Fatal(err)
	}
	var out [NumStreams][]byte
	for i := range bufs {
		out[i] = bufs[i].Bytes()
	}
	return out
}

// unpack applies a patch. It fails if the decoder leaves anything in a stream.
func unpack(streams [NumStreams][]byte, sources [][]byte, size int64) ([]byte, error) {
	out, left, err := unpackRest(streams, sources, size)
	for i, n := range left {
		if err == nil && n != 0 {
			err = errors.New("the decoder left bytes of " + StreamName(i))
		}
	}
	return out, err
}

// unpackRest applies a patch, and returns too how many bytes of each stream the
// decoder left.
func unpackRest(streams [NumStreams][]byte, sources [][]byte, size int64) (made []byte, left [NumStreams]int, err error) {
	var r Readers
	var br [NumStreams]*bytes.Reader
	for i := range streams {
		br[i] = bytes.NewReader(streams[i])
		r[i] = br[i]
	}
	var at []io.ReaderAt
	var sizes []int64
	for _, s := range sources {
		at = append(at, bytes.NewReader(s))
		sizes = append(sizes, int64(len(s)))
	}
	var out bytes.Buffer
	err = Patch(context.Background(), &out, at, NewDecoder(r, sizes, size))
	for i := range br {
		left[i] = br[i].Len()
	}
	return out.Bytes(), left, err
}

// mutate returns a relative of old: pieces of it moved, changed, removed, and new
// ones put in.
func mutate(r *rand.Rand, old []byte) []byte {
	var out []byte
	for range 1 + r.IntN(12) {
		if len(old) > 0 && r.IntN(4) > 0 {
			a := r.IntN(len(old))
			n := r.IntN(len(old) - a + 1)
			piece := bytes.Clone(old[a : a+n])
			for range r.IntN(1 + n/50) {
				piece[r.IntN(n)] += byte(r.IntN(4))
			}
			out = append(out, piece...)
		} else {
			for range r.IntN(300) {
				out = append(out, byte(r.IntN(256)))
			}
		}
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for i := range 400 {
		var sources [][]byte
		for range r.IntN(4) {
			s := sample(r.IntN(8000))
			if i%3 == 0 {
				s = make([]byte, r.IntN(500))
			}
			sources = append(sources, s)
		}
		new := mutate(r, bytes.Join(sources, nil))
		got, err := unpack(pack(t, new, sources), sources, int64(len(new)))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if !bytes.Equal(got, new) {
			t.Fatalf("round %d: the patch makes another file", i)
		}
	}
}
