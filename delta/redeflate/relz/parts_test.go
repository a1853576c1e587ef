package relz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
)

// TestParts: a recipe of a million blocks or chunks is refused before these are read.
func TestParts(t *testing.T) {
	const n = 1 << 20
	f, err := readFrame(bytes.NewReader(zstdPacked(t, code86(100, 1), "-3")))
	if err != nil || !f.checksum {
		t.Fatal(f.checksum, err)
	}
	zstd := append(append([]byte{0, minHeadBits, byte(len(f.raw))}, f.raw...), 1, 2, 3, 4)
	zstd = append(binary.AppendUvarint(zstd, n), make([]byte, 2*n)...)
	zstd[len(zstd)-2] = 128 // the last one
	lzma := append(binary.AppendUvarint(nil, minDict), 0, minHeadBits)
	lzma = append(binary.AppendUvarint(lzma, n), bytes.Repeat([]byte{chunkRawReset, 1}, n)...)
	for name, parse := range map[string]func() error{
		"Zstandard": func() error { _, err := parseZstd(zstd); return err },
		"LZMA2":     func() error { _, err := parse(lzma); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := parse(); !errors.Is(err, ErrRecipe) {
			t.Errorf("%s: %v", name, err)
		}
		if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 1<<20 {
			t.Errorf("%s: %d bytes were taken for it", name, after.TotalAlloc-before.TotalAlloc)
		}
	}
}
