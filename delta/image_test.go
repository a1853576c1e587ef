package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/btrovl/btrovl/delta/redeflate"
	"github.com/btrovl/btrovl/integration/testenv"
)

// tables is a place in the inode table of an image.
func tables(image []byte) int { return int(binary.LittleEndian.Uint64(image[64:])) + 30 }

// TestImages: an image of many files, a few of which changed, costs what these do, and comes out as it was, also from
// among the files of the device that it is not made from.
func TestImages(t *testing.T) {
	was := files{"bin/a": words(1, 400<<10), "bin/b": noise(2, 200<<10), "gone": words(3, 100<<10)}
	for i := range 100 {
		was[fmt.Sprintf("conf/%d", i)] = words(int64(100+i), 2000)
	}
	is := files{}
	for name, data := range was {
		is[name] = data
	}
	delete(is, "gone")
	is["bin/a"] = edit(is["bin/a"], 100<<10, "an insertion")
	is["conf/7"] = edit(is["conf/7"], 700, "another")
	for _, c := range []struct {
		compressor string
		most       int64
	}{{"gzip", 5000}, {"xz", 30000}, {"zstd", 30000}} {
		t.Run(c.compressor, func(t *testing.T) {
			a, b := testenv.Squashfs(t, was, "-comp", c.compressor), testenv.Squashfs(t, is, "-comp", c.compressor)
			old := files{"apps/one.squashfs": a, "other": words(9, 5000)}
			to := files{"apps/one.squashfs": b, "other": words(9, 5000)}
			o := MakeOptions{From: []Tree{{Version: "1", Root: old.tree(t)}}, To: Tree{Version: "2", Root: to.tree(t)}, Rescue: []string{"apps"}}
			made, report := madeBundle(t, o)
			for _, f := range report.Files {
				if f.Why == "for a device where its source is damaged" || f.Method == "whole" {
					continue
				}
				t.Logf("%+v", f)
				if f.Method != "recompress" || f.Bytes > c.most {
					t.Errorf("%+v", f)
				}
			}
			got, _, err := exported(t, made, 0, o.From[0].Root)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got["apps/one.squashfs"], b) {
				t.Error("the image came out differently")
			}

			// Rotten sources are named, or the file comes from the rescue section.
			for _, at := range []int{2, 5000, len(a) / 2, tables(a)} {
				rot(t, o.From[0].Root, "apps/one.squashfs", at)
				got, _, err := exported(t, made, 0, o.From[0].Root)
				if err != nil {
					t.Fatalf("rotten at %d: %v", at, err)
				}
				if !bytes.Equal(got["apps/one.squashfs"], b) {
					t.Errorf("rotten at %d: the image came out differently", at)
				}
				rot(t, o.From[0].Root, "apps/one.squashfs", at) // as it was
			}
			o.Rescue = nil
			made, _ = madeBundle(t, o)
			rot(t, o.From[0].Root, "apps/one.squashfs", tables(a))
			var source *SourceError
			if _, _, err := exported(t, made, 0, o.From[0].Root); !errors.As(err, &source) {
				t.Errorf("rotten: %v", err)
			}
		})
	}
}

// armCalls is code whose blocks mksquashfs packs with the filter for ARM, which nobody here undoes: calls of one function.
func armCalls(n int) []byte {
	var b []byte
	for at := 0; at < n; at += 16 {
		b = binary.LittleEndian.AppendUint32(b, 0xeb000000|uint32(0x100000-at)/4&0xffffff)
		b = binary.LittleEndian.AppendUint32(b, 0xe1a00000|uint32(at/16%7))
		b = binary.LittleEndian.AppendUint64(b, uint64(at/64%5)*0x123457)
	}
	return b
}

// Blocks that cannot be expanded, on the maker's side or on the device, are no matter where nothing is made of them.
func TestImageWithUnknownBlocks(t *testing.T) {
	was := files{"a": words(1, 300<<10), "code": armCalls(256 << 10), "z": words(2, 300<<10)}
	is := files{"a": edit(was["a"], 100<<10, "more"), "code": was["code"], "z": edit(was["z"], 100<<10, "more")}
	options := []string{"-comp", "xz", "-Xbcj", "arm", "-b", "64K"}
	a, b := testenv.Squashfs(t, was, options...), testenv.Squashfs(t, is, options...)
	if plain := testenv.Squashfs(t, was, "-comp", "xz", "-b", "64K"); len(plain) <= len(a) {
		t.Fatalf("the filter is not used: %d and %d bytes", len(plain), len(a))
	}
	base := files{"image": a}.tree(t)
	made, report := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: files{"image": b}.tree(t)}})
	if m := methodOf(t, report, "image"); m != "recompress" {
		t.Errorf("method %s", m)
	}
	got, _, err := exported(t, made, 0, base)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got["image"], b) {
		t.Error("the image came out differently")
	}
}

// Whoever makes an image of a rotten one, of which nothing is needed where it rotted, makes it right.
func TestImageReadsExactly(t *testing.T) {
	image := testenv.Squashfs(t, files{"a": words(1, 600<<10)}, "-b", "64K", "-no-fragments")
	im, err := redeflate.OpenImage(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	block := func(i int) int64 { return 96 + int64(i)*(64<<10) + 1 }
	rotten := bytes.Clone(image)
	packed := len(image) / 10
	for i := packed * 2; i < packed*3; i++ {
		rotten[i] ^= 0x5a
	}
	bad, err := redeflate.OpenImage(bytes.NewReader(rotten), int64(len(rotten)))
	if err != nil {
		t.Fatal(err)
	}
	v := &view{ReaderAt: bad, size: bad.Size(), path: "image"}
	w := &view{ReaderAt: im, size: im.Size(), path: "image"}
	sound, damaged := 0, 0
	for i := range 9 {
		p, err := v.bytes(block(i), 1000)
		q, err2 := w.bytes(block(i), 1000)
		switch {
		case err2 != nil:
			t.Fatal(err2)
		case err != nil:
			if source := (*SourceError)(nil); !errors.As(err, &source) {
				t.Error(err)
			}
			damaged++
		case !bytes.Equal(p, q):
			t.Error("other bytes")
		default:
			sound++
		}
	}
	if sound < 5 || damaged == 0 {
		t.Errorf("%d blocks sound, %d damaged", sound, damaged)
	}
}

// What is placed on the parts of an image stays what it was.
func TestPartMap(t *testing.T) {
	parts := []redeflate.Part{{Offset: 100, Length: 50}, {Offset: 1000, Length: 70}, {Offset: 2000, Length: 30}}
	var row []byte
	inside := noise(5, 3000)
	for _, p := range parts {
		row = append(row, inside[p.Offset:p.Offset+p.Length]...)
	}
	m := newPartMap(parts)
	for from := range row {
		for to := from + 1; to <= len(row); to++ {
			diff := noise(4, to-from)
			var got, data []byte
			for _, a := range m.place(nil, action{op: op{kind: opAdd, length: int64(to - from), pos: int64(from)}, data: diff}) {
				got = append(got, inside[a.pos:a.pos+a.length]...)
				data = append(data, a.data...)
			}
			if !bytes.Equal(got, row[from:to]) || !bytes.Equal(data, diff) {
				t.Fatalf("from %d to %d", from, to)
			}
		}
	}
}

// Short runs from far away become their bytes; what comes out is the same.
func TestNearby(t *testing.T) {
	image := testenv.Squashfs(t, files{"a": words(1, 800<<10)}, "-b", "4K", "-no-fragments")
	old, err := redeflate.OpenImage(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	inside := make([]byte, old.Size())
	if _, err := old.ReadAt(inside, 0); err != nil {
		t.Fatal(err)
	}
	places := newPartMap([]redeflate.Part{{Offset: 0, Length: old.Size()}})
	var patch []action
	var want []byte
	for i := range int64(2000) {
		a := action{op: op{kind: opCopy, length: 10 + i%50, pos: i * 37 << 10 % (700 << 10)}}
		want = append(want, inside[a.pos:a.pos+a.length]...)
		patch = append(patch, a)
	}
	var got []byte
	inserted, copied := 0, 0
	for _, a := range nearby(patch, want, places, old) {
		if a.kind == opInsert {
			inserted += int(a.length)
			got = append(got, a.data...)
			continue
		}
		copied += int(a.length)
		got = append(got, inside[a.pos:a.pos+a.length]...)
	}
	if !bytes.Equal(got, want) {
		t.Error("something else comes out")
	}
	if inserted == 0 || copied <= inserted {
		t.Errorf("%d bytes inserted, %d copied", inserted, copied)
	}
}
