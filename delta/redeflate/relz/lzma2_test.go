package relz

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"testing/iotest"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// code86 returns something like a program: n bytes of words that repeat, with
// calls to few places, text, and noise.
func code86(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 7))
	words := make([][]byte, 200)
	for i := range words {
		w := make([]byte, 2+rnd.IntN(12))
		for j := range w {
			w[j] = byte(rnd.Uint32())
		}
		words[i] = w
	}
	var b []byte
	for len(b) < n {
		switch rnd.IntN(8) {
		case 0:
			to := rnd.IntN(50)*1000 - len(b) - 5
			b = append(b, 0xe8, byte(to), byte(to>>8), byte(to>>16), byte(to>>24))
		case 1:
			b = append(b, byte(rnd.Uint32()))
		default:
			b = append(b, words[min(rnd.IntN(200), rnd.IntN(200))]...)
		}
	}
	return b[:n]
}

// edit returns b with insertions, deletions and changes, as another version is.
func edit(b []byte, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 8))
	var out []byte
	for len(b) > 0 {
		n := min(1+rnd.IntN(3000), len(b))
		out = append(out, b[:n]...)
		b = b[n:]
		switch rnd.IntN(3) {
		case 0:
			b = b[min(rnd.IntN(40), len(b)):]
		case 1:
			out = append(out, code86(rnd.IntN(60), rnd.Uint64())...)
		default:
			out[len(out)-1]++
		}
	}
	return out
}

// xzStream compresses with the xz tool and returns the LZMA2 stream.
func xzStream(t *testing.T, data []byte, x86 bool, lzma2 string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := []string{"-c", "--check=crc32", "--lzma2=" + lzma2}
	if x86 {
		args = []string{"-c", "--check=crc32", "--x86", "--lzma2=" + lzma2}
	}
	cmd := exec.CommandContext(ctx, testenv.Command(t, "xz"), args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out[12+(int(out[12])+1)*4:]
}

// TestRoundTrip: what xz wrote comes back, with and without an old stream, and
// the old one makes the recipe small.
func TestRoundTrip(t *testing.T) {
	base := code86(600000, 1)
	noise := make([]byte, 200000)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	for _, v := range []struct {
		name  string
		plain []byte
		x86   bool
		lzma2 string
		dict  int
	}{
		{"kernel", base, true, "preset=6,dict=1MiB", 1 << 20},
		{"small dictionary", base, false, "preset=6,dict=64KiB", 64 << 10},
		{"fast", base, false, "preset=0,dict=256KiB", 256 << 10},
		{"extreme", base, false, "preset=9e,dict=8MiB", 8 << 20},
		{"properties", base, false, "preset=6,lc=1,lp=2,pb=0,dict=1MiB", 1 << 20},
		{"raw chunks", bytes.Join([][]byte{base[:100000], noise, base[:150000]}, nil), true, "preset=6,dict=1MiB", 1 << 20},
		{"tiny", base[:3], true, "preset=6,dict=4KiB", 4 << 10},
		{"one byte", base[:1], false, "preset=6,dict=4KiB", 4 << 10},
		{"zeros", make([]byte, 3<<20), false, "preset=6,dict=1MiB", 1 << 20},
	} {
		t.Run(v.name, func(t *testing.T) {
			next := edit(v.plain, 3)
			if v.name == "zeros" {
				next = append(make([]byte, 1<<20), append([]byte{1}, make([]byte, 3<<20)...)...)
			}
			oldStream, newStream := xzStream(t, v.plain, v.x86, v.lzma2), xzStream(t, next, v.x86, v.lzma2)
			s := Stream{Dict: v.dict, X86: v.x86, Size: int64(len(v.plain))}
			history, err := Learn(nil, bytes.NewReader(oldStream), s, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Size = int64(len(next)) + 100
			for _, h := range []*History{history, nil} {
				d, err := Describe(newStream, s, h)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(d.Plain, next) {
					t.Fatal("plain is wrong")
				}
				var plain, back bytes.Buffer
				if err := Expand(&plain, iotest.OneByteReader(bytes.NewReader(newStream)), s); err != nil || !bytes.Equal(plain.Bytes(), next) {
					t.Errorf("expand: %v", err)
				}
				err = Rebuild(&back, iotest.HalfReader(bytes.NewReader(next)), int64(len(next)), d.Recipe, h)
				if err != nil || !bytes.Equal(back.Bytes(), newStream[:d.Used]) {
					t.Fatalf("rebuild: %v, %d bytes of %d", err, back.Len(), d.Used)
				}
				t.Logf("%d bytes, recipe %d", d.Used, len(d.Recipe))
				if h != nil && len(next) == len(edit(base, 3)) && len(d.Recipe) > d.Used/4 {
					t.Errorf("recipe of %d bytes for %d", len(d.Recipe), d.Used)
				}
				if _, err := Memory(d.Recipe, int64(len(next)), s); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestFrozenRecipe: a recipe of today's format still makes what it made.
func TestFrozenRecipe(t *testing.T) {
	var file [3][]byte
	for i, name := range []string{"old.lzma2", "new.lzma2", "recipe"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		file[i] = b
	}
	s := Stream{Dict: 64 << 10, Size: 6000}
	h, err := Learn(nil, bytes.NewReader(file[0]), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	var plain, out bytes.Buffer
	s.Size = 1 << 16
	if err := Expand(&plain, bytes.NewReader(file[1]), s); err != nil {
		t.Fatal(err)
	}
	if err := Rebuild(&out, &plain, int64(plain.Len()), file[2], h); err != nil || !bytes.HasPrefix(file[1], out.Bytes()) {
		t.Error(err)
	}
}

// TestFilter: the x86 filter is its own inverse in pieces of any size.
func TestFilter(t *testing.T) {
	plain := code86(200000, 5)
	for i := range plain {
		if i%97 == 0 {
			plain[i] = 0xe9 // many that look like calls, close together
		}
	}
	whole := bytes.Clone(plain)
	f := newX86(true)
	f.run(whole)
	pieces, err := io.ReadAll(iotest.OneByteReader(newFilterReader(iotest.HalfReader(bytes.NewReader(plain)), true)))
	if err != nil || !bytes.Equal(whole, pieces) {
		t.Fatal("pieces are filtered in another way")
	}
	var back bytes.Buffer
	w := filterWriter{w: &back, f: newX86(false)}
	for rest := whole; len(rest) > 0; {
		n := min(len(rest), 1+len(rest)%771)
		w.Write(rest[:n])
		rest = rest[n:]
	}
	w.flush()
	if !bytes.Equal(back.Bytes(), plain) {
		t.Error("the filter does not go back")
	}
}

// TestErrors: a reader or writer that fails, a plain that ends or differs, a
// recipe that is cut.
func TestErrors(t *testing.T) {
	plain := code86(500000, 9)
	stream := xzStream(t, plain, false, "preset=1,dict=256KiB")
	s := Stream{Dict: 256 << 10, Size: int64(len(plain))}
	d, err := Describe(stream, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(plain))
	broken := errors.New("broken")
	if err := Rebuild(io.Discard, io.MultiReader(bytes.NewReader(plain[:300000]), iotest.ErrReader(broken)), size, d.Recipe, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := Rebuild(io.Discard, bytes.NewReader(plain[:300000]), size, d.Recipe, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := Rebuild(brokenWriter{broken}, bytes.NewReader(plain), size, d.Recipe, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
	for _, n := range []int{0, 1, 3, 10, 20, len(d.Recipe) / 2} {
		if err := Rebuild(io.Discard, bytes.NewReader(plain), size, d.Recipe[:n], nil); !errors.Is(err, ErrRecipe) {
			t.Errorf("recipe cut at %d: %v", n, err)
		}
	}
	if err := Rebuild(io.Discard, bytes.NewReader(plain), size-1, d.Recipe, nil); !errors.Is(err, ErrRecipe) {
		t.Error(err)
	}
	for i := range 50 {
		bad := bytes.Clone(stream)
		bad[i*len(bad)/50] ^= 0x55
		Expand(io.Discard, bytes.NewReader(bad), s)
		Learn(nil, bytes.NewReader(bad), s, nil)
	}
}

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }
