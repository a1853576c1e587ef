package delta

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/btrovl/btrovl/delta/bundle"
)

// calls is a program of n functions, each of which calls another; in the grown one a
// function in the middle is longer, so that half of the calls lead elsewhere.
func calls(n int, grown bool) []byte {
	le := binary.LittleEndian
	const base, head = 0x400000, 64 + 56
	var starts []int
	var text []byte
	for i := range n {
		starts = append(starts, len(text))
		body := make([]byte, 40+i%50)
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(body)
		if grown && i == n/2 {
			body = append(body, body...)
		}
		for k := range body { // nothing that looks like a call
			body[k] &= 0x3f
		}
		text = append(append(text, body...), 0xe8, 0, 0, 0, 0, 0xc3)
	}
	for i := range n {
		at := len(text) - 6
		if i+1 < n {
			at = starts[i+1] - 6
		}
		le.PutUint32(text[at+1:], uint32(starts[i*7919%n]-at-5))
	}
	names := []byte("\x00.text\x00.shstrtab\x00")
	b := make([]byte, head)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], 64)
	le.PutUint64(b[40:], uint64(head+len(text)+len(names)))
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	le.PutUint32(b[64:], 1)
	le.PutUint32(b[68:], 5)
	le.PutUint64(b[80:], base)
	le.PutUint64(b[96:], uint64(head+len(text)))
	le.PutUint64(b[104:], uint64(head+len(text)))
	b = append(append(b, text...), names...)
	section := func(name, typ uint32, flags, addr, off, size uint64) {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], typ)
		le.PutUint64(h[8:], flags)
		le.PutUint64(h[16:], addr)
		le.PutUint64(h[24:], off)
		le.PutUint64(h[32:], size)
		b = append(b, h...)
	}
	section(0, 0, 0, 0, 0, 0)
	section(1, 1, 6, base+head, head, uint64(len(text)))
	section(7, 3, 0, 0, uint64(head+len(text)), uint64(len(names)))
	return b
}

// A program that is too large to be held comes out the same, in a file and in memory, and
// a source that rotted is found there, too.
func TestLargeProgram(t *testing.T) {
	from, to := files{"prog": calls(24000, false)}, files{"prog": calls(24000, true)}
	base := from.tree(t)
	b, report := madeBundle(t, MakeOptions{From: []Tree{{Version: "1", Root: base}}, To: Tree{Version: "2", Root: to.tree(t)}})
	if f := report.Files[0]; f.Method != "program" || f.Bytes > 2000 {
		t.Fatalf("%s of %d bytes", f.Method, f.Bytes)
	}
	apply := func(limit int64) ([]byte, error) {
		p, r, err := openSection(reader(t, b), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.close()
		olds, news, err := p.listings(t.Context(), r, base)
		if err != nil {
			t.Fatal(err)
		}
		spool := mustOpen(t, t.TempDir())
		a := newApplier(&bundle.Manifest{Apply: p.br.Manifest().Apply}, base, newStage(spool, olds, news), ApplyOptions{Jobs: 1})
		a.target, a.objectLimit = &spoolTarget{dir: spool}, limit
		if err := a.all(t.Context(), p, r); err != nil {
			return nil, err
		}
		f, size, err := a.target.openNew(1)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := make([]byte, size)
		_, err = f.ReadAt(got, 0)
		return got, err
	}
	for _, limit := range []int64{maxObject, 5 << 19} {
		if got, err := apply(limit); err != nil || !bytes.Equal(got, to["prog"]) {
			t.Errorf("limit %d: %d bytes, %v", limit, len(got), err)
		}
	}
	if _, err := apply(1 << 20); err == nil || exitDamage(err) == nil {
		t.Errorf("a program that takes more than is allowed: %v", err)
	}
	rot(t, base, "prog", 1<<20)
	if _, err := apply(5 << 19); err == nil {
		t.Error("a rotten source is not noticed")
	}
}

func exitDamage(err error) *bundle.DamageError {
	d, _ := err.(*bundle.DamageError)
	return d
}
