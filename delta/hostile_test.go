package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// handmade builds a listing that no tree could have.
func handmade(change func(*listing)) []byte {
	l := &listing{entries: []entry{
		{path: "", mode: unix.S_IFDIR | 0o755, link: -1},
		{path: "dir", mode: unix.S_IFDIR | 0o755, link: -1},
		{path: "dir/file", mode: unix.S_IFREG | 0o644, link: -1},
		{path: "link", mode: unix.S_IFLNK | 0o777, target: "dir", link: -1},
	}}
	if change != nil {
		change(l)
	}
	return l.encode()
}

func xattr(name string, n int) tree.Xattr { return tree.Xattr{Name: name, Value: make([]byte, n)} }

func TestHostileListing(t *testing.T) {
	if _, err := decodeListing(handmade(nil)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*listing){
		"dot dot":            func(l *listing) { l.entries[2].path = "dir/.." },
		"dot":                func(l *listing) { l.entries[2].path = "dir/." },
		"empty name":         func(l *listing) { l.entries[2].path = "dir/" },
		"twice":              func(l *listing) { l.entries[3].path = "dir" },
		"out of order":       func(l *listing) { l.entries[3].path = "a" },
		"long name":          func(l *listing) { l.entries[3].path = strings.Repeat("x", 256) },
		"root is a file":     func(l *listing) { l.entries[0].mode = unix.S_IFREG },
		"unknown type":       func(l *listing) { l.entries[2].mode = 0o644 },
		"empty target":       func(l *listing) { l.entries[3].target = "" },
		"nanoseconds":        func(l *listing) { l.entries[2].nsec = 1e9 },
		"link to itself":     func(l *listing) { l.entries[2].link = 2 },
		"link to later":      func(l *listing) { l.entries[2].link = 3 },
		"link to directory":  func(l *listing) { l.entries[2].link = 1 },
		"link of another":    func(l *listing) { l.entries[3].link = 2 },
		"directory linked":   func(l *listing) { l.entries[1].link = 0 },
		"attribute nameless": func(l *listing) { l.entries[2].xattrs = append(l.entries[2].xattrs, xattr("", 1)) },
		"attribute too long": func(l *listing) { l.entries[2].xattrs = append(l.entries[2].xattrs, xattr("user.x", 1<<17)) },
	} {
		if _, err := decodeListing(handmade(change)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, n := range []uint32{0, 1 << 20, 1<<32 - 1} {
		b := handmade(nil)
		binary.LittleEndian.PutUint32(b, n)
		if _, err := decodeListing(b); err == nil {
			t.Errorf("%d entries: accepted", n)
		}
	}
}

// handmadeSection packs streams that a test wrote.
func handmadeSection(t testing.TB, listing []byte, write func(w *streamWriter)) []byte {
	t.Helper()
	w, err := newStreamWriter(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	o := opWriter{w: w}
	o.op(op{kind: opInsert, length: int64(len(listing))})
	w.bytes(streamExtra, listing)
	h := &sectionHead{listing: uint32(len(listing))}
	empty := (&hints{}).encode()
	w.uint(streamControl, uint64(len(empty)))
	w.bytes(streamRecipe, empty)
	write(w)
	var out bytes.Buffer
	if _, err := w.pack(context.Background(), t.TempDir(), h, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// applySection applies a full section to an empty directory.
func applySection(t testing.TB, section []byte, dir string, limit int64) error {
	t.Helper()
	r, err := newSectionReader(bytes.NewReader(section))
	if err != nil {
		return err
	}
	defer r.close()
	m := &bundle.Manifest{}
	m.Apply.NewData = limit
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	olds, news, err := readListings(ctx, r, nil, m, 0)
	if err != nil {
		return err
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	a := newApplier(m, nil, newStage(root, olds, news), ApplyOptions{Jobs: 2})
	if err := a.stage.clear(); err != nil {
		return err
	}
	if err := a.contents(ctx, r); err != nil {
		return err
	}
	return a.stage.nodes()
}

func TestHostileRecords(t *testing.T) {
	testenv.Root(t)
	good := record{index: 2, method: methodPatch, size: 5, crc: 0x9a71bb4c}
	hello := func(w *streamWriter) {
		(&opWriter{w: w}).op(op{kind: opInsert, length: 5})
		w.bytes(streamExtra, []byte("hello"))
	}
	one := func(change func(*record), rest func(*streamWriter)) func(*streamWriter) {
		return func(w *streamWriter) {
			w.uint(streamControl, 1)
			r, c := good, cursor{}
			if change != nil {
				change(&r)
			}
			w.record(&c, &r)
			rest(w)
		}
	}
	if err := applySection(t, handmadeSection(t, handmade(nil), one(nil, hello)), t.TempDir(), 100); err != nil {
		t.Fatalf("what is right: %v", err)
	}
	for name, c := range map[string]struct {
		write func(*streamWriter)
		limit int64
	}{
		"no content":        {func(w *streamWriter) { w.uint(streamControl, 0) }, 100},
		"count":             {func(w *streamWriter) { w.uint(streamControl, 1<<60) }, 100},
		"directory":         {one(func(r *record) { r.index = 1 }, hello), 100},
		"symlink":           {one(func(r *record) { r.index = 3 }, hello), 100},
		"beyond":            {one(func(r *record) { r.index = 4 }, hello), 100},
		"before":            {one(func(r *record) { r.index = -1 }, hello), 100},
		"more than said":    {one(nil, hello), 4},
		"over 4 GiB":        {one(func(r *record) { r.size = 1 << 33 }, hello), 100},
		"huge":              {one(func(r *record) { r.size = 1 << 62 }, hello), 1 << 40},
		"source of nothing": {one(func(r *record) { r.sources = []source{{index: 0}} }, hello), 100},
		"not yet there":     {one(func(r *record) { r.sources = []source{{index: 2, new: true}} }, hello), 100},
		"copy of nothing":   {one(func(r *record) { r.method = methodCopy }, hello), 100},
		"unknown method":    {one(func(r *record) { r.method = 7 }, hello), 100},
		"object of nothing": {one(func(r *record) { r.method = methodObject }, hello), 100},
		"clone of nothing":  {one(func(r *record) { r.cloned = true }, hello), 100},
		"reads beyond":      {one(nil, func(w *streamWriter) { (&opWriter{w: w}).op(op{kind: opCopy, length: 5}) }), 100},
		"too long": {one(nil, func(w *streamWriter) {
			(&opWriter{w: w}).op(op{kind: opInsert, length: 1 << 40})
			w.bytes(streamExtra, []byte("hello"))
		}), 100},
		"recipe": {one(func(r *record) { r.method, r.plain, r.recipe = methodRestore, 5, 4 }, func(w *streamWriter) {
			w.bytes(streamRecipe, []byte{0xff, 0xff, 0xff, 0xff})
			hello(w)
		}), 100},
		"huge recipe":  {one(func(r *record) { r.method, r.plain, r.recipe = methodRestore, 5, 1<<40 }, hello), 100},
		"nothing left": {one(nil, func(*streamWriter) {}), 100},
		"checksum":     {one(func(r *record) { r.crc = 1 }, hello), 100},
		"twice": {func(w *streamWriter) {
			w.uint(streamControl, 2)
			var c cursor
			for range 2 {
				w.record(&c, &good)
				hello(w)
			}
		}, 100},
	} {
		if err := applySection(t, handmadeSection(t, handmade(nil), c.write), t.TempDir(), c.limit); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Somebody who can write to the stage meanwhile turns a directory into a symbolic link:
// nothing outside is touched.
func TestSymlinkRace(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	outside := t.TempDir()
	news, err := decodeListing(handmade(nil))
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s := newStage(root, &listing{}, news)
	if err := s.clear(); err != nil {
		t.Fatal(err)
	}
	s.dirs.close()
	os.Remove(filepath.Join(dir, "dir"))
	os.Symlink(outside, filepath.Join(dir, "dir"))
	target := &stageTarget{a: newApplier(&bundle.Manifest{}, nil, s, ApplyOptions{})}
	if _, err := target.open(&record{index: 2, method: methodPatch}, nil); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("opened through a symbolic link: %v", err)
	}
	if err := s.attributes(2, &s.dirs); err == nil {
		t.Error("attributes set through a symbolic link")
	}
	if names, _ := os.ReadDir(outside); len(names) != 0 {
		t.Errorf("outside: %v", names)
	}
}

// Frames in an order that would need all of the payload in memory.
func TestFrameOrder(t *testing.T) {
	h := &sectionHead{listing: 100}
	b := h.encode()
	block := make([]byte, 1<<20)
	for range 64 {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(block))<<8|streamDiff)
		b = append(b, block...)
	}
	r, err := newSectionReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if _, err := r.uint(streamControl, 10); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("error: %v", err)
	}
}

func FuzzListing(f *testing.F) {
	f.Add(handmade(nil))
	f.Add(handmade(func(l *listing) {
		l.entries = append(l.entries, entry{path: "null", mode: unix.S_IFCHR, rdev: 259, link: -1},
			entry{path: "other", mode: unix.S_IFREG | 0o644, link: 2})
		l.entries[2].xattrs = append(l.entries[2].xattrs, xattr("user.x", 3))
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeListing(b)
		if err != nil {
			return
		}
		if !bytes.Equal(l.encode(), b) {
			t.Fatal("accepted, but there is another encoding")
		}
	})
}

func FuzzHints(f *testing.F) {
	f.Add((&hints{crcs: []crcPair{{1, 2}, {5, 6}}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHints(b)
		if err != nil {
			return
		}
		o := object(1, 0)
		h.rewrite(o, elfSections(o))
		h.checksums(o, elfSections(o))
	})
}

// FuzzSection feeds the payload decoder behind the container's checks.
func FuzzSection(f *testing.F) {
	good := record{index: 2, method: methodPatch, size: 5, crc: 0x9a71bb4c}
	f.Add(handmadeSection(f, handmade(nil), func(w *streamWriter) {
		w.uint(streamControl, 1)
		var c cursor
		w.record(&c, &good)
		(&opWriter{w: w}).op(op{kind: opInsert, length: 5})
		w.bytes(streamExtra, []byte("hello"))
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := newSectionReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.close()
		for _, d := range r.head.dicts {
			if d > 1<<20 {
				return // only slow
			}
		}
		if r.head.listing > 1<<20 {
			return
		}
		m := &bundle.Manifest{}
		m.Apply.NewData = 1 << 20
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		olds, news, err := readListings(ctx, r, nil, m, 0)
		if err != nil {
			return
		}
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		a := newApplier(m, nil, newStage(root, olds, news), ApplyOptions{Jobs: 1})
		a.target = &spoolTarget{dir: root}
		a.contents(ctx, r)
	})
}
