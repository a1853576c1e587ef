package bsdiff

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// The decoder makes exactly the size asked for, from within its sources, or
// returns an error, whatever its streams say.
func FuzzDecoder(f *testing.F) {
	old := sample(2000)
	for _, new := range [][]byte{nil, old, old[500:1500], append(old[700:900:900], "something new"...)} {
		s := pack(f, new, [][]byte{old[:1000], old[1000:]})
		f.Add(s[Control], s[DiffBytes], s[Extra], uint16(len(new)))
	}
	f.Add([]byte{0, 0, 0, 0}, []byte{}, []byte{}, uint16(1))
	f.Add([]byte{0, 1, 5, 0}, []byte{}, []byte{}, uint16(5))
	f.Add(bytes.Repeat([]byte{0xff}, 10), []byte{}, []byte{}, uint16(9))
	f.Fuzz(func(t *testing.T, control, diff, extra []byte, size uint16) {
		sources := [][]byte{old[:1000], old[1000:]}
		var streams [NumStreams][]byte
		streams[Control], streams[DiffBytes], streams[Extra] = control, diff, extra
		got, left, err := unpackRest(streams, sources, int64(size))
		var fe *FormatError
		if err != nil && !errors.As(err, &fe) {
			t.Fatalf("not a FormatError: %v", err)
		}
		if err == nil && len(got) != int(size) {
			t.Fatalf("%d bytes, want %d", len(got), size)
		}
		if err != nil {
			return
		}
		// What was read is a patch: it makes the same when another follows.
		for i := range streams {
			n := len(streams[i]) - left[i]
			streams[i] = append(streams[i][:n:n], "what follows"...)
		}
		again, _, err := unpackRest(streams, sources, int64(size))
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("with another patch behind it: %v", err)
		}
	})
}

func FuzzBSDIFF40(f *testing.F) {
	old := sample(2000)
	for _, new := range [][]byte{nil, old[500:1500], append(old[700:900:900], "something new"...)} {
		var patch bytes.Buffer
		if err := WriteBSDIFF40(context.Background(), &patch, old, new); err != nil {
			f.Fatal(err)
		}
		f.Add(patch.Bytes())
		f.Add(patch.Bytes()[:patch.Len()/2])
	}
	f.Fuzz(func(t *testing.T, patch []byte) {
		var out bytes.Buffer
		err := ReadBSDIFF40(context.Background(), &out, bytes.NewReader(old), int64(len(old)),
			bytes.NewReader(patch), int64(len(patch)), 100000)
		var fe *FormatError
		if err != nil && !errors.As(err, &fe) {
			t.Fatalf("not a FormatError: %v", err)
		}
		if out.Len() > 100000 {
			t.Fatalf("%d bytes", out.Len())
		}
	})
}

// Whatever the files are, the patch makes the new one.
func FuzzDiff(f *testing.F) {
	f.Add([]byte("the quick brown fox jumps"), []byte("over the lazy dog"), []byte("the quick brown dog jumps over"))
	f.Add(make([]byte, 100), []byte{}, make([]byte, 99))
	f.Fuzz(func(t *testing.T, a, b, new []byte) {
		for _, sources := range [][][]byte{nil, {a}, {a, b}, {a, nil, b}} {
			got, err := unpack(pack(t, new, sources), sources, int64(len(new)))
			if err != nil || !bytes.Equal(got, new) {
				t.Fatalf("round trip failed: %v", err)
			}
		}
	})
}

// Each of these patches must be refused, and say why.
func TestBadPatches(t *testing.T) {
	sources := [][]byte{make([]byte, 100), make([]byte, 50)}
	for _, tt := range []struct {
		name    string
		control []byte
		diff    int
		extra   int
		size    int64
		sizes   []int64
		want    string
	}{
		{name: "empty", size: 1, want: "ends too early"},
		{name: "insert beyond the end", control: []byte{11}, extra: 20, size: 10, want: "11 bytes where 10"},
		{name: "short extra", control: []byte{10}, extra: 9, size: 10, want: "ends too early"},
		{name: "no sources", control: []byte{0, 0, 5}, size: 10, sizes: []int64{}, want: "source bytes"},
		{name: "seek before the start", control: []byte{0, 1, 5}, size: 10, want: "seek"},
		{name: "seek beyond the end", control: []byte{0, 0xae, 2, 5}, size: 10, want: "seek"}, // 151
		{name: "copy beyond the end", control: []byte{0, 0xa8, 2, 5}, size: 10, want: "source bytes"},
		{name: "add beyond the end", control: []byte{0, 0xa8, 2, 0, 5}, diff: 5, size: 10, want: "source bytes"},
		{name: "short diff", control: []byte{0, 0, 0, 5}, diff: 4, size: 5, want: "ends too early"},
		{name: "no bytes", control: []byte{0, 0, 0, 0}, size: 10, want: "without bytes"},
		{name: "negative size", size: -1, want: "negative"},
		{name: "negative source", size: 1, sizes: []int64{-1}, want: "out of range"},
		{name: "huge sources", size: 1, sizes: []int64{math.MaxInt64, 1}, want: "out of range"},
		{name: "long number", control: bytes.Repeat([]byte{0xff}, 10), size: 10, want: "64 bits"},
		{name: "huge insert", control: append(bytes.Repeat([]byte{0xff}, 9), 1), size: 10, want: "where 10"},
		{name: "huge seek", control: append([]byte{0}, append(bytes.Repeat([]byte{0xff}, 9), 1)...), size: 10, want: "seek"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sizes := tt.sizes
			if sizes == nil {
				sizes = []int64{100, 50}
			}
			d := NewDecoder(Readers{bytes.NewReader(tt.control), bytes.NewReader(make([]byte, tt.diff)), bytes.NewReader(make([]byte, tt.extra))}, sizes, tt.size)
			err := Patch(context.Background(), io.Discard, []io.ReaderAt{bytes.NewReader(sources[0]), bytes.NewReader(sources[1])}, d)
			var fe *FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if _, again := d.Next(); again != err {
				t.Errorf("then %v", again)
			}
		})
	}
}

// A source that is shorter on the device than it was for the maker is named.
func TestShortSource(t *testing.T) {
	old := sample(5000)
	s := pack(t, old, [][]byte{nil, old})
	d := NewDecoder(Readers{bytes.NewReader(s[0]), bytes.NewReader(s[1]), bytes.NewReader(s[2])}, []int64{0, 5000}, 5000)
	err := Patch(context.Background(), io.Discard, []io.ReaderAt{bytes.NewReader(nil), bytes.NewReader(old[:4000])}, d)
	var se *SourceError
	if !errors.As(err, &se) || se.Source != 1 || se.Offset != 4000 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
}

// Operations can be taken without their data.
func TestSkippedData(t *testing.T) {
	old := sample(5000)
	new := append(append(old[3000:4000:4000], "new in the middle of it all"...), old[100:2000]...)
	new[500]++
	s := pack(t, new, [][]byte{old})
	d := NewDecoder(Readers{bytes.NewReader(s[0]), bytes.NewReader(s[1]), bytes.NewReader(s[2])}, []int64{5000}, int64(len(new)))
	total := int64(0)
	for {
		op, err := d.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += op.Length
	}
	if total != int64(len(new)) {
		t.Errorf("operations make %d bytes, want %d", total, len(new))
	}
}
