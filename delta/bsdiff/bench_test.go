package bsdiff

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// benchPair returns the files that BTROVL_BENCH_OLD and BTROVL_BENCH_NEW name, or some
// that were made up.
func benchPair(tb testing.TB) (old, new []byte) {
	if a, b := os.Getenv("BTROVL_BENCH_OLD"), os.Getenv("BTROVL_BENCH_NEW"); a != "" && b != "" {
		var err error
		if old, err = os.ReadFile(a); err == nil {
			new, err = os.ReadFile(b)
		}
		if err != nil {
			tb.Fatal(err)
		}
		return old, new
	}
	old = sample(2 << 20)
	return old, mutate(rand.New(rand.NewPCG(13, 14)), old)
}

func BenchmarkDiff(b *testing.B) {
	old, new := benchPair(b)
	b.SetBytes(int64(len(new)))
	for b.Loop() {
		if _, err := Diff(context.Background(), new, [][]byte{old}, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPatch(b *testing.B) {
	old, new := benchPair(b)
	s := pack(b, new, [][]byte{old})
	b.SetBytes(int64(len(new)))
	for b.Loop() {
		if _, err := unpack(s, [][]byte{old}, int64(len(new))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBSDIFF40 makes patches that bspatch reads, with us and with Debian's bsdiff, and
// reports their sizes.
func BenchmarkBSDIFF40(b *testing.B) {
	old, new := benchPair(b)
	b.Run("btrovl", func(b *testing.B) {
		var patch bytes.Buffer
		for b.Loop() {
			patch.Reset()
			if err := WriteBSDIFF40(context.Background(), &patch, old, new); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(patch.Len()), "bytes")
	})
	b.Run("bsdiff", func(b *testing.B) {
		if _, err := exec.LookPath("bsdiff"); err != nil {
			b.Skip("no bsdiff")
		}
		dir := b.TempDir()
		for name, data := range map[string][]byte{"old": old, "new": new} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			cmd := exec.CommandContext(ctx, "bsdiff", "old", "new", "patch")
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			cancel()
			if err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
		if st, err := os.Stat(filepath.Join(dir, "patch")); err == nil {
			b.ReportMetric(float64(st.Size()), "bytes")
		}
	})
}
