package redeflate

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// goGzip is a gzip file by an encoder that is none of our models.
func goGzip(t testing.TB, plain []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain)
	w.Close()
	return b.Bytes()
}

// modelGzip is a gzip file by one of our models.
func modelGzip(t testing.TB, plain []byte, id modelID) []byte {
	t.Helper()
	var w recipeWriter
	w.b = append(w.b, recipeVersion)
	w.literal([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3})
	w.deflate(opGzip, id, restOfAll, nil)
	var b bytes.Buffer
	if err := Restore(&b, bytes.NewReader(plain), w.b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// checkWhole checks everything that Unpack promises of a file.
func checkWhole(t *testing.T, file []byte) *Unpacked {
	t.Helper()
	u := mustUnpack(t, file)
	if !bytes.Equal(restored(t, u), file) {
		t.Error("the file does not come back")
	}
	checkSegments(t, u)
	var plain bytes.Buffer
	if err := Expand(&plain, bytes.NewReader(file), int64(len(file))); err != nil {
		t.Errorf("cannot expand: %v", err)
	} else if !bytes.Equal(plain.Bytes(), u.Plain) {
		t.Error("Expand and Unpack see different plains")
	}
	if n, err := Memory(u.Recipe, 2); err != nil || n < finderBuffer && strings.Contains(u.Encoder, "zlib") {
		t.Errorf("Memory = %d, %v", n, err)
	}
	return u
}

// TestForeignEncoder: a stream of an encoder that we do not know comes back
// by fixes, whatever its blocks are like.
func TestForeignEncoder(t *testing.T) {
	plain := bytes.Join([][]byte{prose(200000, 1), noise(90000, 2), prose(150000, 1)}, nil)
	for _, level := range []int{5, 6, 7, 8, 9} {
		file := goGzip(t, plain, level)
		u := checkWhole(t, file)
		if !strings.Contains(u.Encoder, "with fixes") || len(u.Recipe) > len(file)/fixShare {
			t.Errorf("level %d: %s, recipe of %d bytes for %d", level, u.Encoder, len(u.Recipe), len(file))
		}
	}
	// Huffman codes without matches, and nothing but stored blocks.
	for _, level := range []int{flate.HuffmanOnly, flate.NoCompression} {
		if u, err := Unpack(goGzip(t, plain, level), Options{}); err == nil && len(u.Recipe) > len(plain)/fixShare {
			t.Errorf("level %d: recipe of %d bytes", level, len(u.Recipe))
		}
	}
}

// TestFlushed: a stream that was flushed now and then, as servers and loggers
// do, differs from the model at the flushes only.
func TestFlushed(t *testing.T) {
	plain := prose(300000, 4)
	m, _ := newModel(familyZlib<<4 | 6)
	m.piece, m.linked = 70000, true
	var e encoder
	var b bytes.Buffer
	b.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
	if err := e.encode(&b, m, bytes.NewReader(plain), -1, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	trailer := goGzip(t, plain, 1)
	b.Write(trailer[len(trailer)-gzipTrailer:])
	u := checkWhole(t, b.Bytes())
	if len(u.Recipe) > 200 {
		t.Errorf("%s, recipe of %d bytes", u.Encoder, len(u.Recipe))
	}
}

// TestFrames: several members, padding, garbage and early archives stay.
func TestFrames(t *testing.T) {
	a := modelGzip(t, prose(30000, 5), familyGNU<<4|9)
	b := modelGzip(t, records(80000, 6), familyZlib<<4|6)
	early := cpioArchive(map[string]string{"kernel/x86/microcode/GenuineIntel.bin": string(noise(3000, 1))})
	late := modelGzip(t, cpioArchive(map[string]string{"./bin/sh": "shell", "/etc/fstab": "table", "lib": ""}), familyGNU<<4|6)
	damaged := bytes.Clone(a)
	damaged[len(damaged)-5] ^= 1 // CRC
	for name, file := range map[string][]byte{
		"one":              a,
		"two members":      append(bytes.Clone(a), b...),
		"padded":           append(bytes.Clone(a), make([]byte, 1000)...),
		"garbage":          append(bytes.Clone(a), "and more"...),
		"padded, a member": append(append(bytes.Clone(b), make([]byte, 77)...), a...),
		"early archive":    append(bytes.Clone(early), late...),
		"padded archive":   append(append(bytes.Clone(early), make([]byte, 1204)...), late...),
		"empty":            modelGzip(t, nil, familyGNU<<4|9),
	} {
		t.Run(name, func(t *testing.T) { checkWhole(t, file) })
	}
	for name, file := range map[string][]byte{
		"nothing":   nil,
		"text":      prose(1000, 1),
		"bad CRC":   damaged,
		"cut":       a[:len(a)-100],
		"just head": a[:20],
	} {
		if _, err := Unpack(file, Options{}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", name, err)
		}
	}
	if _, err := Unpack(a, Options{MaxPlain: 29999}); err == nil {
		t.Error("MaxPlain does not hold")
	}
}

// cpioArchive writes a newc archive, sorted as given by the map's keys.
func cpioArchive(files map[string]string) []byte {
	var b bytes.Buffer
	add := func(name string, mode int, content string) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.WriteString(content)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	add("dir", 0o040755, "")
	for name, content := range files {
		add(name, 0o100644, content)
	}
	add(cpioTrailer, 0, "")
	for b.Len()%512 != 0 {
		b.WriteByte(0)
	}
	return b.Bytes()
}

// members maps paths to contents.
func members(u *Unpacked) map[string]string {
	out := map[string]string{}
	for _, s := range u.Segments {
		if s.Kind == Member {
			out[s.Path] = string(u.Plain[s.Offset : s.Offset+s.Length])
		}
	}
	return out
}

// TestMembers: files in archives are found by their paths.
func TestMembers(t *testing.T) {
	files := map[string]string{
		"usr/bin/true": string(records(20000, 1)), "etc/passwd": "root", "lib/modules/x.ko": string(noise(5000, 1)),
	}
	var tarred bytes.Buffer
	long := strings.Repeat("very/", 40) + "deep"
	w := tar.NewWriter(&tarred)
	for name, content := range files {
		w.WriteHeader(&tar.Header{Name: "./" + name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatGNU})
		io.WriteString(w, content)
	}
	for _, f := range []tar.Format{tar.FormatGNU, tar.FormatPAX} {
		w.WriteHeader(&tar.Header{Name: long + f.String(), Mode: 0o644, Size: 4, Format: f})
		io.WriteString(w, "long")
	}
	w.Close()
	var zipped bytes.Buffer
	z := zip.NewWriter(&zipped)
	for i, name := range []string{"etc/passwd", "lib/modules/x.ko", "usr/bin/true"} {
		f, _ := z.CreateHeader(&zip.FileHeader{Name: name, Method: []uint16{zip.Deflate, zip.Store, zip.Deflate}[i]})
		io.WriteString(f, files[name])
	}
	z.SetComment("the end")
	z.Close()
	for name, file := range map[string][]byte{
		"cpio": cpioArchive(files),
		"gzip": modelGzip(t, cpioArchive(files), familyGNU<<4|6),
		"tar":  modelGzip(t, tarred.Bytes(), familyGNU<<4|6),
		"zip":  zipped.Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			u := mustUnpack(t, file)
			if !bytes.Equal(restored(t, u), file) {
				t.Error("the file does not come back")
			}
			checkSegments(t, u)
			got := members(u)
			for path, content := range files {
				// Go's own compressor is not one of our models; what it made
				// of the small files does not pay to take apart.
				if got[path] != content && (name != "zip" || path == "lib/modules/x.ko") {
					t.Errorf("%s: %d bytes, want %d", path, len(got[path]), len(content))
				}
			}
			if name == "tar" && (got[long+"GNU"] != "long" || got[long+"PAX"] != "long") {
				t.Error("members with long names are lost")
			}
		})
	}
}

// TestZipOfZlib: what jar, zip and python write is reproduced without fixes.
func TestZipOfZlib(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return &modelWriter{w: w}, nil
	})
	for i := range 20 {
		f, _ := z.Create(fmt.Sprintf("dir/%d.class", i))
		f.Write(records(i*3000, uint64(i)))
	}
	z.Close()
	u := checkWhole(t, b.Bytes())
	if u.Encoder != "zlib -6" || len(u.Recipe) > 300 {
		t.Errorf("%s, recipe of %d bytes", u.Encoder, len(u.Recipe))
	}
}

// modelWriter compresses with zlib's model when it is closed.
type modelWriter struct {
	w io.Writer
	b bytes.Buffer
}

func (m *modelWriter) Write(p []byte) (int, error) { return m.b.Write(p) }
func (m *modelWriter) Close() error {
	var e encoder
	model, _ := newModel(familyZlib<<4 | 6)
	return e.encode(m.w, model, &m.b, -1, nil, nil, nil)
}

// TestFrozenRecipes: recipes of format version 1 still make what they made.
func TestFrozenRecipes(t *testing.T) {
	names, err := filepath.Glob("testdata/recipes/*")
	if err != nil || len(names) == 0 {
		t.Fatal("no recipes")
	}
	for _, name := range names {
		recipe, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(filepath.Join("testdata/seeds", filepath.Base(name)))
		if err != nil {
			t.Fatal(err)
		}
		var plain, out bytes.Buffer
		if err := Expand(&plain, bytes.NewReader(file), int64(len(file))); err != nil {
			t.Fatal(err)
		}
		if err := Restore(&out, &plain, recipe); err != nil || !bytes.Equal(out.Bytes(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRestorerIsReused: one Restorer makes one file after the other, and a
// failed one leaves nothing behind.
func TestRestorerIsReused(t *testing.T) {
	var r Restorer
	plain := prose(90000, 1)
	var files [][]byte
	for _, id := range []modelID{familyGNU<<4 | 9, familyZlib9<<4 | 1, familyPigz<<4 | 6, familyZlib<<4 | 5} {
		files = append(files, modelGzip(t, plain, id))
	}
	files = append(files, goGzip(t, plain, 7))
	for round := range 2 {
		for i, file := range files {
			u := mustUnpack(t, file)
			short := r.Restore(io.Discard, bytes.NewReader(u.Plain[:80000]), u.Recipe)
			if short == nil {
				t.Error("a plain that is too short is accepted")
			}
			var out bytes.Buffer
			if err := r.Restore(&out, iotestReader{bytes.NewReader(u.Plain)}, u.Recipe); err != nil || !bytes.Equal(out.Bytes(), file) {
				t.Errorf("round %d, file %d: %v", round, i, err)
			}
		}
	}
}

// iotestReader gives a few bytes at a time.
type iotestReader struct{ r io.Reader }

func (r iotestReader) Read(p []byte) (int, error) {
	return r.r.Read(p[:min(len(p), 777)])
}

// TestBadRecipes: every recipe that nobody wrote is refused with the reason.
func TestBadRecipes(t *testing.T) {
	for name, recipe := range map[string][]byte{
		"empty":              {},
		"version":            {9},
		"operation":          {1, 0x07},
		"both checksums":     {1, 0x32, 0x09, 0},
		"literal cut":        {1, 0x01, 200, 1, 2},
		"encoder":            {1, 0x02, 0xf3, 0},
		"level 0":            {1, 0x02, 0x10, 0},
		"no length":          {1, 0x02, 0x09},
		"huge length":        {1, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"fixes cut":          {1, 0x0a, 0x09, 0, 100, 1},
		"huge block":         {1, 0x0a, 0x09, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"endless blocks":     {1, 0x0a, 0x09, 0, 7, 1, 5, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"match too far":      {1, 0x0a, 0x09, 0, 7, 0, 0, 0, 3, 0xff, 0xff, 0x7f},
		"match longer":       {1, 0x0a, 0x09, 0, 6, 0, 0, 0, 0x80, 2, 1},
		"block of no kind":   {1, 0x0a, 0x09, 0, 5, 1, 3, 1, 0, 8},
		"header of no code":  {1, 0x0a, 0x09, 0, 9, 9, 7, 1, 0, 6, 14, 2, 0xff, 0xff},
		"length in a header": {1, 0x0a, 0x09, 0, 8, 9, 6, 1, 0, 6, 14, 1, 0xff},
	} {
		err := Restore(io.Discard, strings.NewReader("short"), recipe)
		var bad *RecipeError
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v, want a RecipeError", name, err)
		}
	}
}
