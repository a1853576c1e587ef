package redeflate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// kernel puts a payload into something that has the header of a kernel.
func kernel(payload []byte) []byte {
	k := records(2048, 99)
	k[kernelSectors] = 1
	copy(k[kernelMagic:], "HdrS")
	binary.LittleEndian.PutUint16(k[kernelVersion:], 0x20f)
	binary.LittleEndian.PutUint32(k[kernelPayload:], 1024)
	return append(append(k, payload...), "signed\x00\x00"...)
}

// TestXz: xz files and kernels come back with the help of the old one, and only
// with that one.
func TestXz(t *testing.T) {
	xz := testenv.Command(t, "xz")
	before := bytes.Join([][]byte{prose(150000, 1), records(300000, 2)}, nil)
	after := bytes.Join([][]byte{prose(140000, 1), prose(300, 9), records(300000, 2)}, nil)
	pack := func(b []byte) []byte {
		return pipe(t, b, xz, "-c", "--check=crc32", "--x86", "--lzma2=preset=6,dict=1MiB")
	}
	for name, f := range map[string]struct{ old, new []byte }{
		"xz":     {pack(before), pack(after)},
		"kernel": {kernel(append(pack(before), 1, 2, 3, 4)), kernel(append(pack(after), 5, 6, 7, 8))},
		"blocks": {pack(before), pipe(t, after, xz, "-c", "--block-size=200000", "--check=sha256")},
		"gzip":   {nil, kernel(append(modelGzip(t, after, familyGNU<<4|9), 5, 6, 7, 8))},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := Unpack(f.new, Options{Old: f.old})
			if err != nil {
				t.Fatal(err)
			}
			checkSegments(t, u)
			r := Restorer{Old: bytes.NewReader(f.old)}
			for range 2 {
				var out bytes.Buffer
				if err := r.Restore(&out, bytes.NewReader(u.Plain), u.Recipe); err != nil || !bytes.Equal(out.Bytes(), f.new) {
					t.Fatalf("restore: %v", err)
				}
			}
			var plain bytes.Buffer
			err = Expand(&plain, bytes.NewReader(f.new), int64(len(f.new)))
			// What stands around the streams of a whole xz file is no part of plain.
			around := plain.Bytes()[min(len(u.Plain), plain.Len()):]
			if whole := name == "xz" || name == "blocks"; err != nil || !bytes.HasPrefix(plain.Bytes(), u.Plain) || (len(around) > 0) != whole {
				t.Errorf("expand: %v, %d bytes for %d", err, plain.Len(), len(u.Plain))
			}
			if !bytes.Contains(u.Plain, after[:100000]) {
				t.Error("plain is not what is inside")
			}
			if n, err := Memory(u.Recipe, 2); err != nil || n < 1<<20 {
				t.Errorf("Memory = %d, %v", n, err)
			}
			if len(u.Recipe) > len(f.new)/fixShare {
				t.Errorf("recipe of %d bytes for %d", len(u.Recipe), len(f.new))
			}
			if name == "gzip" {
				return
			}
			if err := Restore(io.Discard, bytes.NewReader(u.Plain), u.Recipe); !errors.Is(err, ErrOld) {
				t.Errorf("without the old file: %v", err)
			}
			r.Old = bytes.NewReader(f.new)
			if err := r.Restore(io.Discard, bytes.NewReader(u.Plain), u.Recipe); err == nil {
				t.Error("another old file is accepted")
			}
			if _, err := Unpack(f.new, Options{}); !errors.Is(err, ErrUnsupported) {
				t.Errorf("without the old file: %v, want ErrUnsupported", err)
			}
		})
	}
}

// TestXzWithoutContent: a recipe of an xz file without content, which Unpack does not write, comes to an end.
func TestXzWithoutContent(t *testing.T) {
	decisions := []byte{0x80, 0x80, 4, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0} // a dictionary of 64 KiB, no flags, small tables, no chunks, zeros
	w := recipeWriter{b: []byte{recipeVersion}}
	w.xz(0, nil, &xzShape{kind: 1, header: 2}, decisions)
	done := make(chan error, 1)
	go func() {
		var r Restorer
		done <- r.Restore(io.Discard, bytes.NewReader(nil), w.b)
	}()
	select {
	case err := <-done:
		t.Log(err)
	case <-time.After(20 * time.Second):
		t.Error("it waits for content that there is not")
	}
}
