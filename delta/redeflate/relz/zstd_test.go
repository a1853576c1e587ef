package relz

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"testing"
	"testing/iotest"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// zstdPacked packs with the reference encoder.
func zstdPacked(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Command(t, "zstd"), append([]string{"-q", "-c"}, args...)...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestZstdRoundTrip: what zstd wrote comes back, with and without an old frame, and the old one makes the
// recipe small.
func TestZstdRoundTrip(t *testing.T) {
	base := code86(900000, 1)
	noise := make([]byte, 300000)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	mixed := bytes.Join([][]byte{base[:100000], noise, make([]byte, 700000), base[:150000]}, nil)
	var space Workspace
	for _, v := range []struct {
		name  string
		plain []byte
		args  []string
		most  int // part of the frame that the recipe may take
	}{
		{"1", base, []string{"-1"}, 4},
		{"fast", base, []string{"--fast=5"}, 4},
		{"3", base, []string{"-3", "--no-check"}, 4},
		{"9", base, []string{"-9"}, 4},
		{"19", base, []string{"-19"}, 4},
		{"22", base, []string{"-22", "--ultra"}, 4},
		{"small window", base, []string{"-9", "--zstd=wlog=16"}, 4},
		{"size in the header", base, []string{"-9", "--stream-size=900000"}, 0},
		{"threads", base, []string{"-9", "-T2"}, 4},
		{"long", bytes.Repeat(base[:300000], 9), []string{"-9", "--long=24"}, 4},
		{"raw and zeros", mixed, []string{"-9"}, 0},
		{"zeros", make([]byte, 3<<20), []string{"-9"}, 0},
		{"text", bytes.Repeat([]byte("all work and no play makes a dull boy\n"), 9000), []string{"-19"}, 0},
		{"noise", noise, []string{"-9"}, 0},
		{"tiny", base[:30], []string{"-9"}, 0},
		{"one byte", base[:1], []string{"-9"}, 0},
		{"nothing", nil, []string{"-9"}, 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			next := v.plain
			if len(next) > 1000 {
				next = edit(v.plain, 3)
			}
			args := v.args
			if v.name == "size in the header" {
				next = next[:min(len(next), len(v.plain))]
				args = []string{"-9"}
			}
			oldFrame, newFrame := zstdPacked(t, v.plain, args...), zstdPacked(t, next, args...)
			if v.name == "size in the header" {
				newFrame = zstdPacked(t, next, "-9", "--stream-size="+strconv.Itoa(len(next)))
			}
			s, err := ZstdStream(oldFrame, int64(len(v.plain)))
			if err != nil {
				t.Fatal(err)
			}
			learn := func(moves []Move) *History {
				var plain bytes.Buffer
				h, err := LearnZstd(&plain, bytes.NewReader(oldFrame), s, moves)
				if err != nil || !bytes.Equal(plain.Bytes(), v.plain) {
					t.Fatalf("learn: %v", err)
				}
				return h
			}
			for _, h := range []func() *History{
				func() *History { return learn(nil) },
				func() *History { return learn([]Move{{Length: int64(min(len(next), len(v.plain)))}}) },
				func() *History { return nil },
			} {
				packed := append(bytes.Clone(newFrame), "what follows"...)
				d, err := DescribeZstd(packed, int64(len(next)), 1<<40, h(), s)
				if err != nil || d.Used != len(newFrame) || !bytes.Equal(d.Plain, next) {
					t.Fatalf("describe: %v", err)
				}
				var plain bytes.Buffer
				if err := ExpandZstd(&plain, iotest.OneByteReader(bytes.NewReader(packed)), int64(len(next))); err != nil || !bytes.Equal(plain.Bytes(), next) {
					t.Errorf("expand: %v", err)
				}
				for range 2 {
					var back bytes.Buffer
					err = space.RebuildZstd(&back, iotest.HalfReader(bytes.NewReader(next)), int64(len(next)), d.Recipe, h())
					if err != nil || !bytes.Equal(back.Bytes(), newFrame) {
						t.Fatalf("rebuild: %v, %d bytes of %d", err, back.Len(), len(newFrame))
					}
				}
				t.Logf("%d bytes, recipe %d", d.Used, len(d.Recipe))
				if h() != nil && v.most > 0 && len(d.Recipe) > d.Used/v.most {
					t.Errorf("recipe of %d bytes for %d", len(d.Recipe), d.Used)
				}
				if err := ExpandZstd(io.Discard, bytes.NewReader(newFrame), int64(len(next))-1); len(next) > 0 && err == nil {
					t.Error("more than the limit is taken")
				}
			}
		})
	}
}

// TestZstdMemory: a recipe is made for the memory that there is.
func TestZstdMemory(t *testing.T) {
	plain := code86(900000, 1)
	frame := zstdPacked(t, plain, "-9")
	most := int64(1 << 40)
	for _, less := range []int64{1, 3 << 20, 1 << 20} {
		d, err := DescribeZstd(frame, 1<<30, most-less, nil, Stream{})
		if err != nil {
			t.Fatal(err)
		}
		n, err := MemoryZstd(d.Recipe, Stream{})
		if err != nil || n > most-less {
			t.Errorf("in %d: takes %d (%v)", most-less, n, err)
		}
		most = n
	}
}

// TestZstdErrors: damage of every kind gives an error and no panic.
func TestZstdErrors(t *testing.T) {
	plain := code86(300000, 9)
	frame := zstdPacked(t, plain, "-9")
	s := Stream{Dict: 1 << 23, Size: int64(len(plain))}
	h, err := LearnZstd(nil, bytes.NewReader(frame), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	next := edit(plain, 3)
	d, err := DescribeZstd(zstdPacked(t, next, "-9"), 1<<30, 1<<40, h, s)
	if err != nil {
		t.Fatal(err)
	}
	var space Workspace
	rebuild := func(recipe []byte, w io.Writer, plain io.Reader, size int) error {
		h, _ := LearnZstd(nil, bytes.NewReader(frame), s, nil)
		return space.RebuildZstd(w, plain, int64(size), recipe, h)
	}
	for i := range 200 {
		bad := bytes.Clone(frame)
		bad[i*len(bad)/200] ^= byte(1 << (i % 8))
		ExpandZstd(io.Discard, bytes.NewReader(bad), 1<<22)
		LearnZstd(nil, bytes.NewReader(bad), s, nil)
		bad = bytes.Clone(d.Recipe)
		bad[i*len(bad)/200] ^= byte(1 << (i % 8))
		rebuild(bad, io.Discard, bytes.NewReader(next), len(next))
		MemoryZstd(bad, s)
	}
	for _, n := range []int{0, 1, 3, 10, 20, 60, len(d.Recipe) / 2} {
		if err := rebuild(d.Recipe[:n], io.Discard, bytes.NewReader(next), len(next)); !errors.Is(err, ErrRecipe) {
			t.Errorf("recipe cut at %d: %v", n, err)
		}
	}
	for _, n := range []int{0, 3, 5, 20, len(frame) / 2, len(frame) - 1} {
		if err := ExpandZstd(io.Discard, bytes.NewReader(frame[:n]), 1<<22); err == nil {
			t.Errorf("frame cut at %d is taken", n)
		}
	}
	broken := errors.New("broken")
	if err := rebuild(d.Recipe, io.Discard, io.MultiReader(bytes.NewReader(next[:150000]), iotest.ErrReader(broken)), len(next)); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := rebuild(d.Recipe, brokenWriter{broken}, bytes.NewReader(next), len(next)); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := rebuild(d.Recipe, io.Discard, bytes.NewReader(next), len(next)-1); !errors.Is(err, ErrRecipe) {
		t.Error(err)
	}
	if err := rebuild(d.Recipe, io.Discard, bytes.NewReader(next[:150000]), len(next)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := space.RebuildZstd(io.Discard, bytes.NewReader(next), int64(len(next)), d.Recipe, nil); err == nil {
		t.Log("without the old frame: something else is made") // the file's checksum finds it
	}
}

// FuzzZstd: whatever a frame, a recipe and a plain are, there is an end; and what can be described comes back.
func FuzzZstd(f *testing.F) {
	plain := code86(3000, 9)
	frame := zstdPacked(f, plain, "-9")
	d, err := DescribeZstd(zstdPacked(f, edit(plain, 3), "-19"), 1<<20, 1<<40, nil, Stream{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame, d.Recipe, d.Plain)
	f.Fuzz(func(t *testing.T, frame, recipe, plain []byte) {
		var space Workspace
		space.RebuildZstd(io.Discard, bytes.NewReader(plain), int64(len(plain)), recipe, nil)
		MemoryZstd(recipe, Stream{})
		LearnZstd(nil, bytes.NewReader(frame), Stream{Dict: 1 << 20, Size: 3000}, nil)
		d, err := DescribeZstd(frame, 1<<20, 1<<40, nil, Stream{})
		if err != nil {
			return
		}
		// Not every frame has the form that the reference encoder gives it.
		var out bytes.Buffer
		if err := space.RebuildZstd(&out, bytes.NewReader(d.Plain), int64(len(d.Plain)), d.Recipe, nil); err == nil && out.Len() > 0 {
			var again bytes.Buffer
			if err := ExpandZstd(&again, &out, 1<<20); err != nil || !bytes.Equal(again.Bytes(), d.Plain) {
				t.Fatalf("another content came back (%v)", err)
			}
		}
	})
}
