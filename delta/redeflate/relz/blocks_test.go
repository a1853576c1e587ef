package relz

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// TestBlocks: streams that follow one another come back, each at its place, in the memory
// of those before.
func TestBlocks(t *testing.T) {
	plain := code86(400000, 1)
	next := edit(plain, 3)
	cut := func(b []byte) [][]byte { return [][]byte{b[:100000], b[100000:100001], b[100001:]} }
	const lzma2 = "preset=6,dict=64KiB"
	s := Stream{Dict: 64 << 10, Size: int64(len(plain))}
	moves := []Move{{Old: 0, New: 0, Length: s.Size}}
	describer := Describer{Stream: Stream{Dict: s.Dict, Size: 1 << 20}}
	var streams [][]byte
	for _, p := range cut(next) {
		b := xzStream(t, p, false, lzma2)
		n, err := describer.Block(b)
		if err != nil || !bytes.Equal(describer.Last(), p) {
			t.Fatalf("block: %v", err)
		}
		streams = append(streams, b[:n])
	}
	learn := func(moves []Move) *History {
		l, err := NewLearner(nil, s, moves)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range cut(plain) {
			if err := l.Block(bytes.NewReader(xzStream(t, p, false, lzma2)), false); err != nil {
				t.Fatal(err)
			}
		}
		h, err := l.History()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	var space Workspace
	for _, c := range []struct {
		name string
		h    func() *History
		most int // part of the streams that the recipe may take
	}{
		{"nothing old", func() *History { return nil }, 1},
		{"aligned", func() *History { return learn(nil) }, 2},
		{"moves", func() *History { return learn(moves) }, 2},
		{"moves, later", func() *History {
			h := learn([]Move{})
			h.SetMoves(moves)
			return h
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := describer.Finish(c.h())
			if err != nil || !bytes.Equal(d.Plain, next) {
				t.Fatalf("finish: %v", err)
			}
			t.Logf("%d bytes, recipe %d", d.Used, len(d.Recipe))
			if len(d.Recipe) > d.Used/c.most {
				t.Errorf("recipe of %d bytes for %d", len(d.Recipe), d.Used)
			}
			_, blocks, err := Describes(d.Recipe)
			if err != nil || len(blocks) != 3 || blocks[0] != 100000 || blocks[1] != 1 {
				t.Errorf("blocks %v, %v", blocks, err)
			}
			for range 2 {
				var out bytes.Buffer
				var got [][]byte
				err := space.Rebuild(&out, bytes.NewReader(next), int64(len(next)), d.Recipe, c.h(), func() error {
					got = append(got, bytes.Clone(out.Bytes()))
					out.Reset()
					return nil
				})
				if err != nil || len(got) != len(streams) {
					t.Fatalf("rebuild: %v, %d streams", err, len(got))
				}
				for i := range got {
					if !bytes.Equal(got[i], streams[i]) {
						t.Errorf("stream %d differs", i)
					}
				}
			}
			if err := Rebuild(io.Discard, bytes.NewReader(next), int64(len(next)), d.Recipe, c.h()); !errors.Is(err, ErrRecipe) {
				t.Errorf("several streams without an end: %v", err)
			}
			broken := errors.New("broken")
			err = space.Rebuild(io.Discard, bytes.NewReader(next), int64(len(next)), d.Recipe, c.h(), func() error { return broken })
			if !errors.Is(err, broken) {
				t.Errorf("an end that fails: %v", err)
			}
		})
	}
}
