package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
)

// manyFiles is the encoded listing of n files with names as long as a real system's.
func manyFiles(n int) []byte {
	l := &listing{entries: []entry{{mode: unix.S_IFDIR | 0o755, link: -1}}}
	for i := range n {
		l.entries = append(l.entries, entry{path: fmt.Sprintf("a-name-of-about-thirty-bytes-%08d.conf", i), mode: unix.S_IFREG | 0o644, link: -1})
	}
	return l.encode()
}

func heap() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// What the manifest adds for large lists covers what they take.
func TestListingMemory(t *testing.T) {
	const n = 100_000
	before := heap()
	encoded := manyFiles(n)
	l, err := decodeListing(encoded)
	if err != nil {
		t.Fatal(err)
	}
	a := newApplier(&bundle.Manifest{}, nil, newStage(os.Stdin, &listing{}, l), ApplyOptions{Jobs: 1})
	took := heap() - before
	if stated := listingMemory(n, int64(len(encoded))); took > stated || took < stated/4 {
		t.Errorf("%d files take %d bytes, stated are %d", n, took, stated)
	}
	runtime.KeepAlive(a)
	runtime.KeepAlive(encoded)
}

func TestStatedMemory(t *testing.T) {
	for _, asked := range []int64{LowMemory / 2, LowMemory, DefaultMemory} {
		for _, lists := range []int64{0, 1 << 20, asked / 4, asked, 10 * asked} {
			m := &bundle.Manifest{Apply: bundle.Needs{Memory: statedMemory(asked, lists)}}
			if allowedMemory(m) < asked || allowedMemory(m) < lists {
				t.Errorf("%d asked, lists %d: stated %d", asked, lists, m.Apply.Memory)
			}
		}
	}
}

// A section that takes more than the manifest says is refused before it is taken.
func TestMoreMemoryThanStated(t *testing.T) {
	open := func(section []byte, memory int64) error {
		m := &bundle.Manifest{To: bundle.BaseID{Version: "2", Digest: strings.Repeat("0", 64)}, Apply: bundle.Needs{Memory: memory}}
		payload := append(payloadHead([]part{{bases: 1, size: int64(len(section))}}), section...)
		var out bytes.Buffer
		if _, err := bundle.Create(&out, m, bytes.NewReader(payload), int64(len(payload)), noSigner{}); err != nil {
			t.Fatal(err)
		}
		br, err := bundle.NewReader(&out, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, r, err := openSection(br, 0)
		if err != nil {
			return err
		}
		defer r.close()
		_, _, err = readListings(context.Background(), r, nil, m, 0)
		return err
	}
	none := func(w *streamWriter) { w.uint(streamControl, 0) }
	many := handmadeSection(t, manyFiles(50_000), none)
	if err := open(many, 0); err != nil {
		t.Errorf("what fits: %v", err)
	}
	before := heap()
	for name, section := range map[string][]byte{
		"many files": many,
		"long list": func() []byte {
			s := bytes.Clone(handmadeSection(t, handmade(nil), none))
			binary.LittleEndian.PutUint32(s[sectionHeadSize-4:], 1<<32-1)
			return s
		}(),
		"windows": func() []byte {
			h := sectionHead{listing: 100}
			for i := range h.codecs {
				h.codecs[i], h.dicts[i] = codecLZMA2, maxDict
			}
			return h.encode()
		}(),
	} {
		if err := open(section, 16<<20); err == nil || !strings.Contains(err.Error(), "16777216 bytes of memory") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if took := heap() - before; took > 16<<20 {
		t.Errorf("%d bytes are still held", took)
	}
}

// A bundle of many files states more than was asked for.
func TestMakeStatesMemory(t *testing.T) {
	dir := t.TempDir()
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%0200d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	m := &bundle.Manifest{}
	for _, asked := range []int64{LowMemory / 2, DefaultMemory} {
		var out bytes.Buffer
		r, err := Make(context.Background(), &out, MakeOptions{To: Tree{Version: "1", Root: root}, Sign: noSigner{}, Compression: Fast, Memory: asked, Jobs: 1})
		if err != nil {
			t.Fatal(err)
		}
		m = r.Manifest
		lists := listingMemory(3001, 3001*(200+24))
		if m.Apply.Memory < statedMemory(asked, lists-lists/8) || m.Apply.Memory > statedMemory(asked, lists+lists/8) {
			t.Errorf("asked for %d: states %d", asked, m.Apply.Memory)
		}
	}
}
