package redeflate

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// pipe runs a program with data on its standard input.
func pipe(t *testing.T, data []byte, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// body is a gzip file without its frame.
func body(t *testing.T, file []byte) []byte {
	t.Helper()
	n := gzipHeaderLength(file)
	if n == 0 || len(file) < n+gzipTrailer {
		t.Fatal("the oracle wrote no gzip file")
	}
	return file[n : len(file)-gzipTrailer]
}

// compare encodes plain and compares the stream with the oracle's.
func compare(t *testing.T, enc *encoder, id modelID, plain sample, want []byte) {
	t.Helper()
	m, ok := newModel(id)
	if !ok {
		t.Fatalf("no model %v", id)
	}
	var got bytes.Buffer
	if err := enc.encode(&got, m, bytes.NewReader(plain.data), -1, nil, nil, nil); err != nil {
		t.Fatalf("%s, %v: %v", plain.name, id, err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		same := 0
		for same < min(got.Len(), len(want)) && got.Bytes()[same] == want[same] {
			same++
		}
		t.Errorf("%s, %v: %d bytes, the program writes %d; the first %d are equal", plain.name, id, got.Len(), len(want), same)
	}
}

// TestOracleGzip: GNU gzip of this machine decides as the model does.
func TestOracleGzip(t *testing.T) {
	gzip := testenv.Command(t, "gzip")
	var enc encoder
	for _, s := range samples() {
		for level := 1; level <= 9; level++ {
			if len(s.data) > 1<<20 && level != 1 && level != 6 && level != 9 {
				continue
			}
			file := pipe(t, s.data, gzip, "-nc", fmt.Sprintf("-%d", level))
			compare(t, &enc, modelID(familyGNU<<4|level), s, body(t, file))
		}
	}
}

// zlibServer compresses what it is asked to: level, memLevel, length, data.
const zlibServer = `
import sys, zlib, struct
r, w = sys.stdin.buffer, sys.stdout.buffer
while True:
    head = r.read(12)
    if len(head) < 12: break
    level, mem, n = struct.unpack("<iii", head)
    c = zlib.compressobj(level, zlib.DEFLATED, -15, mem)
    data = c.compress(r.read(n)) + c.flush()
    w.write(struct.pack("<i", len(data)) + data)
    w.flush()
`

// TestOracleZlib: the zlib that python uses decides as the model does.
func TestOracleZlib(t *testing.T) {
	python := testenv.Command(t, "python3")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "-c", zlibServer)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var enc encoder
	for _, s := range samples() {
		for level := 1; level <= 9; level++ {
			for memLevel, family := range map[int]int{8: familyZlib, 9: familyZlib9} {
				if len(s.data) > 1<<20 && (level != 6 || memLevel != 8) {
					continue
				}
				head := make([]byte, 12)
				for i, v := range []int{level, memLevel, len(s.data)} {
					binary.LittleEndian.PutUint32(head[4*i:], uint32(v))
				}
				if _, err := in.Write(append(head, s.data...)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(out, head[:4]); err != nil {
					t.Fatal(err)
				}
				want := make([]byte, binary.LittleEndian.Uint32(head))
				if _, err := io.ReadFull(out, want); err != nil {
					t.Fatal(err)
				}
				compare(t, &enc, modelID(family<<4|level), s, want)
			}
		}
	}
}

// TestOraclePigz: pigz of this machine cuts and joins as the model does.
func TestOraclePigz(t *testing.T) {
	pigz := testenv.Command(t, "pigz")
	var enc encoder
	long := bytes.Join([][]byte{prose(300000, 7), records(200000, 8), noise(140000, 9)}, nil)
	for _, n := range []int{0, 100, pieceSize - 1, pieceSize, pieceSize + 1, 2 * pieceSize, 3*pieceSize + 5, len(long)} {
		s := sample{fmt.Sprintf("mixed %d", n), long[:n]}
		for _, level := range []int{1, 3, 4, 6, 9} {
			file := pipe(t, s.data, pigz, "-nc", "-p", "2", fmt.Sprintf("-%d", level))
			compare(t, &enc, modelID(familyPigz<<4|level), s, body(t, file))
		}
		file := pipe(t, s.data, pigz, "-nci", "-p", "2")
		compare(t, &enc, modelID(familyPigzI<<4|6), s, body(t, file))
	}
}

// TestOracleNamed: a file with name and time, as gzip makes it without -n.
func TestOracleNamed(t *testing.T) {
	python := testenv.Command(t, "python3")
	plain := prose(50000, 3)
	file := pipe(t, plain, python, "-c", `
import sys, gzip
f = gzip.GzipFile("some/name.txt", "wb", 5, sys.stdout.buffer, 1700000000)
f.write(sys.stdin.buffer.read())
f.close()`)
	u := mustUnpack(t, file)
	if !bytes.Equal(u.Plain, plain) || len(u.Recipe) > 40 || !bytes.Equal(restored(t, u), file) {
		t.Errorf("%s, recipe of %d bytes", u.Encoder, len(u.Recipe))
	}
}
