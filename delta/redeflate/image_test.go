package redeflate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
	"github.com/btrovl/btrovl/integration/testenv"
)

// imageFiles are files of all sizes, and the same some time later.
func imageFiles() (old, new map[string][]byte) {
	old = map[string][]byte{
		"usr/bin/program": records(350<<10, 1), "usr/bin/other": records(150<<10, 2), "usr/share/text": prose(450<<10, 3),
		"usr/share/same": prose(300<<10, 4), "etc/twin": prose(200<<10, 5), "etc/copy": prose(200<<10, 5),
		"var/noise": noise(200<<10, 6), "var/holes": make([]byte, 1<<20), "etc/empty": {}, "usr/share/gone": prose(150<<10, 7),
	}
	for i := range 100 {
		old[fmt.Sprintf("etc/conf.d/%d", i)] = prose(100+i*37, uint64(100+i))
	}
	new = make(map[string][]byte)
	for name, data := range old {
		new[name] = data
	}
	insert := func(name string, at int, what string) {
		new[name] = append(append(append([]byte(nil), new[name][:at]...), what...), new[name][at:]...)
	}
	insert("usr/bin/program", 200<<10, "some bytes that were not there before")
	insert("usr/share/text", 5, "more")
	insert("usr/share/text", 400<<10, "and more of it")
	insert("etc/conf.d/17", 50, "changed")
	insert("etc/conf.d/70", 2000, "changed")
	delete(new, "usr/share/gone")
	new["usr/share/fresh"] = prose(100<<10, 8)
	return old, new
}

// Images of all compressors that can be taken apart, as mksquashfs makes them, come back; what did not change is kept.
func TestImage(t *testing.T) {
	old, new := imageFiles()
	for name, options := range map[string][]string{
		"gzip":              {},
		"gzip, window":      {"-Xwindow-size", "10"},
		"xz":                {"-comp", "xz"},
		"xz, x86":           {"-comp", "xz", "-Xbcj", "x86"},
		"zstd":              {"-comp", "zstd"},
		"zstd, 4 KiB":       {"-comp", "zstd", "-Xcompression-level", "3", "-b", "4K"},
		"gzip, 1 MiB":       {"-b", "1M"},
		"xz, 1 MiB":         {"-comp", "xz", "-b", "1M"},
		"no fragments":      {"-no-fragments"},
		"no export, xattrs": {"-no-exports", "-no-xattrs"},
		"plain tables":      {"-noI", "-noId", "-noX"},
		"plain fragments":   {"-noF", "-no-duplicates", "-Xcompression-level", "1"},
		"tail ends":         {"-tailends", "-comp", "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := testenv.Squashfs(t, old, options...), testenv.Squashfs(t, new, options...)
			u, err := UnpackImage(b, Options{Old: a})
			if err != nil {
				t.Fatal(err)
			}
			kept := u.Plain() - int64(len(u.Rest))
			t.Logf("%d bytes, kept %d in %d runs, rest %d, recipe %d, gone %d", len(b), kept, len(u.Kept), len(u.Rest), len(u.Recipe), len(u.Old))
			if kept < int64(len(b))/8 && !strings.Contains(name, "1 MiB") { // there, small files are in one block
				t.Errorf("%d of %d bytes are kept", kept, len(b))
			}
			wants := [][]byte{new["usr/share/text"][:64<<10], new["usr/bin/program"][140<<10 : 250<<10]}
			if !strings.Contains(name, "xz") && !strings.Contains(name, "zstd") && !strings.Contains(name, "tail") {
				wants = append(wants, new["usr/share/fresh"]) // others need an old block that is like this one
			}
			for _, want := range wants {
				if name != "zstd, 4 KiB" && name != "gzip, window" && !bytes.Contains(u.Rest, want) { // blocks of which some stay packed
					t.Error("what is new is not taken apart")
				}
			}
			if _, err := Memory(u.Recipe, 2); err != nil {
				t.Error(err)
			}
			checkImageReads(t, a, u)
		})
	}
	t.Run("of another compressor", func(t *testing.T) {
		u, err := UnpackImage(testenv.Squashfs(t, new), Options{Old: testenv.Squashfs(t, old, "-comp", "xz")})
		if err != nil || len(u.Kept) > 0 {
			t.Errorf("%v, %d runs kept", err, len(u.Kept))
		}
	})
	for _, c := range []string{"lzo", "lz4", "lzma"} {
		t.Run(c, func(t *testing.T) {
			a := testenv.Squashfs(t, old, "-comp", c)
			if _, err := OpenImage(bytes.NewReader(a), int64(len(a))); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%v", err)
			}
		})
	}
}

// checkImageReads reads what is inside of an image in two ways, and where the parts are said to be.
func checkImageReads(t *testing.T, file []byte, u *UnpackedImage) {
	t.Helper()
	open := func() *Image {
		im, err := OpenImage(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	im := open()
	all := make([]byte, im.Size())
	if n, err := im.ReadAt(all, 0); n < len(all) {
		t.Fatal(n, err)
	}
	row := u.Old
	for _, p := range u.Parts {
		if !bytes.Equal(all[p.Offset:p.Offset+p.Length], row[:p.Length]) {
			t.Errorf("the part of %d bytes at %d is not there", p.Length, p.Offset)
		}
		row = row[p.Length:]
	}
	if len(row) > 0 {
		t.Errorf("%d bytes are in no part", len(row))
	}
	im = open()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		at := rnd.Int64N(im.Size())
		p := make([]byte, 1+rnd.IntN(300<<10))
		n, err := im.ReadAt(p, at)
		if want := all[at:min(at+int64(len(p)), im.Size())]; !bytes.Equal(p[:n], want) || (err == io.EOF) != (n < len(p)) {
			t.Fatalf("%d bytes at %d: %v", n, at, err)
		}
	}
	if n, err := im.ReadAt(make([]byte, 1), im.Size()); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
}

// Damage gives errors, in reasonable time and memory.
func TestImageDamage(t *testing.T) {
	old, new := imageFiles()
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, options := range [][]string{{"-b", "16K"}, {"-comp", "xz", "-b", "64K"}, {"-comp", "zstd", "-noI", "-noX", "-noId"}} {
		a, b := testenv.Squashfs(t, old, options...), testenv.Squashfs(t, new, options...)
		for i := range 24 {
			c := bytes.Clone(a)
			switch i % 4 {
			case 0:
				c = c[:rnd.IntN(len(c))]
			case 1:
				c[rnd.IntN(squashHead)] ^= 1 << rnd.IntN(8)
			case 2: // tables are at the end
				for range 4 {
					c[len(c)-1-rnd.IntN(20<<10)] ^= 1 << rnd.IntN(8)
				}
			case 3:
				c[rnd.IntN(len(c))] ^= 1 << rnd.IntN(8)
			}
			im, err := OpenImage(bytes.NewReader(c), int64(len(c)))
			if err == nil {
				for at := int64(0); at < im.Size(); at += 64 << 10 {
					im.ReadAt(make([]byte, 64<<10), at)
				}
			}
			if i%6 == 5 {
				UnpackImage(b, Options{Old: c, NoVerify: true})
				UnpackImage(c, Options{Old: b, NoVerify: true})
			}
		}
	}
}

// A block that a recipe refers to and that is another one makes another image, or an error; never a panic.
func TestImageAfterWrongOld(t *testing.T) {
	old, new := imageFiles()
	for _, c := range []string{"xz", "zstd"} {
		a, b := testenv.Squashfs(t, old, "-comp", c), testenv.Squashfs(t, new, "-comp", c)
		u, err := UnpackImage(b, Options{Old: a})
		if err != nil {
			t.Fatal(err)
		}
		if !NeedsOld(u.Recipe) {
			t.Error("the recipe needs no old image")
		}
		if err := u.prove(b, &Options{Old: a}); err != nil {
			t.Error(err)
		}
		for _, wrong := range [][]byte{b, a[:len(a)/2], nil} {
			if err := u.prove(b, &Options{Old: append(wrong, make([]byte, len(a))...)[:len(a)]}); err == nil {
				t.Error("another image made the same")
			}
		}
	}
}

// FuzzImage: whatever the tables of an image say, reading it ends and does not panic.
func FuzzImage(f *testing.F) {
	name := "testdata/images/seed.squashfs"
	seed, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, file []byte) {
		im, err := OpenImage(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		p := make([]byte, 100<<10)
		for at := int64(0); at < min(im.Size(), 8<<20); at += int64(len(p)) {
			im.ReadAt(p, at)
		}
		if u, err := UnpackImage(file, Options{Old: seed, MaxPlain: 1 << 20}); err == nil && int64(len(u.Rest)) > 1<<20+int64(len(file)) {
			t.Errorf("rest of %d bytes", len(u.Rest))
		}
	})
}

// The blocks of extended attributes, which are behind all other tables, are blocks of the image.
func TestImageXattrs(t *testing.T) {
	was := make(map[string][]byte)
	for i := range 60 {
		was[fmt.Sprintf("a-file-with-an-attribute-%d", i)] = make([]byte, 3*i)
	}
	b := testenv.Squashfs(t, was)
	xattrs := int64(binary.LittleEndian.Uint64(b[56:]))
	pairs := int64(binary.LittleEndian.Uint64(b[xattrs:]))
	if h := binary.LittleEndian.Uint16(b[pairs:]); h&0x8000 != 0 {
		t.Fatal("the attributes are not compressed")
	}
	im, err := OpenImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, im.Size())
	if n, err := im.ReadAt(all, 0); n < len(all) {
		t.Fatal(err)
	}
	for name, data := range was {
		if !bytes.Contains(all, []byte("note")) || len(data) > 0 && len(data)%3 == 0 && bytes.Count(all, []byte(name)) < 3 { // entry, link, attribute
			t.Errorf("%s is found %d times", name, bytes.Count(all, []byte(name)))
		}
	}
}

// Operations that follow others, in every wrong way: an error, and Memory counts what they hold.
func TestHostileFollows(t *testing.T) {
	old, new := imageFiles()
	var recipes [][]byte
	var images [][]byte
	for _, c := range []string{"xz", "zstd"} {
		a, b := testenv.Squashfs(t, old, "-comp", c), testenv.Squashfs(t, new, "-comp", c)
		u, err := UnpackImage(b, Options{Old: a})
		if err != nil {
			t.Fatal(err)
		}
		recipes, images = append(recipes, u.Recipe), append(images, a)
		if need, err := Memory(u.Recipe, 2); err != nil || need < relz.PriorsMemory {
			t.Errorf("%d bytes, %v", need, err)
		}
		plain := make([]byte, u.Plain())
		// Without following what they follow, or following what is of another kind.
		for _, recipe := range [][]byte{u.Recipe, append(bytes.Clone(recipes[0]), u.Recipe[1:]...), append(bytes.Clone(u.Recipe), recipes[0][1:]...)} {
			for _, from := range append(images, nil) {
				r := Restorer{}
				if from != nil {
					r.Old = bytes.NewReader(from)
				}
				r.Restore(io.Discard, bytes.NewReader(append(plain, plain...)), recipe)
			}
		}
		for _, op := range []byte{opXz | opFollows, opLzma | opOld | opFollows, opCopy | opFollows, opLiteral | opFollows, opZstd | opOld | opFollows | opZlib} {
			in := recipeReader{b: []byte{recipeVersion, op, 9, 0, 0, 0, 0, 0, 0}}
			if err := in.open(); err != nil {
				t.Fatal(err)
			}
			if _, err := in.operation(); err == nil {
				t.Errorf("operation %#x is none", op)
			}
		}
	}
}

// TestFrozenImages: what is inside of an image, and what recipes of images mean, stays what it was. The recipes follow one another.
func TestFrozenImages(t *testing.T) {
	for c, inside := range map[string]string{
		"gzip": "f36e9e24046be1a080adf2b4881942d585a01f1b276050a74c96ab67acc007fc",
		"xz":   "88674974b11530874dd84c27f5fb2b1470baadbb3bea1857c8df9ba3eb7acd40",
		"zstd": "68b60b200b6bf76b96f90adbffe5a62ed65992a5f485ad285c6e0f7ec0c769ca",
	} {
		part := func(ext string) []byte {
			b, err := os.ReadFile("testdata/images/" + c + "." + ext)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		old := part("1.squashfs")
		im, err := OpenImage(bytes.NewReader(old), int64(len(old)))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(im, 0, im.Size())); err != nil || fmt.Sprintf("%x", h.Sum(nil)) != inside {
			t.Errorf("%s: %v; inside is %x", c, err, h.Sum(nil))
		}
		var out bytes.Buffer
		r := Restorer{Old: bytes.NewReader(old)}
		if err := r.Restore(&out, bytes.NewReader(part("plain")), part("recipe")); err != nil || !bytes.Equal(out.Bytes(), part("2.squashfs")) {
			t.Errorf("%s: %v", c, err)
		}
		follows := 0
		in := recipeReader{b: part("recipe")}
		for err := in.open(); err == nil; {
			var o operation
			if o, err = in.operation(); err == nil && o.old != nil && o.old.follows {
				follows++
			}
		}
		if c != "gzip" && follows < 2 {
			t.Errorf("%s: %d operations follow", c, follows)
		}
	}
}

// Superblocks that promise too much are refused before anything follows from that.
func TestImageSuperblock(t *testing.T) {
	old, _ := imageFiles()
	good := testenv.Squashfs(t, map[string][]byte{"a": old["etc/conf.d/9"], "b": old["etc/twin"]})
	for name, change := range map[string]func(b []byte){
		"magic":       func(b []byte) { b[0]++ },
		"version":     func(b []byte) { b[28] = 3 },
		"block size":  func(b []byte) { b[12]++ },
		"block log":   func(b []byte) { b[22] = 21 },
		"inode table": func(b []byte) { binary.LittleEndian.PutUint64(b[64:], 1<<60) },
		"directories": func(b []byte) { binary.LittleEndian.PutUint64(b[72:], 10) },
		"ids":         func(b []byte) { binary.LittleEndian.PutUint64(b[48:], 1<<63) },
		"xattrs":      func(b []byte) { binary.LittleEndian.PutUint64(b[56:], 1<<63) },
		"inodes":      func(b []byte) { binary.LittleEndian.PutUint32(b[4:], 1<<31) },
	} {
		b := bytes.Clone(good)
		change(b)
		if _, err := OpenImage(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
