package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand"
	"testing"
)

// object makes a small relocatable ELF file: functions, calls between them, a table of
// their addresses, a signature. grow bytes are inserted into one of the functions.
func object(seed int64, grow int) []byte {
	r := rand.New(rand.NewSource(seed))
	const functions = 60
	le := binary.LittleEndian
	var code, rela, table, syms, names []byte
	names = append(names, 0)
	syms = make([]byte, symSize) // the null symbol
	section := make([]byte, symSize)
	section[4] = 3
	le.PutUint16(section[6:], 1)
	syms = append(syms, section...)
	var starts []int
	for i := range functions {
		starts = append(starts, len(code))
		body := make([]byte, 200+r.Intn(200))
		r.Read(body)
		if i == functions/3 {
			body = append(body, bytes.Repeat([]byte{0x90}, grow)...)
		}
		sym := make([]byte, symSize)
		le.PutUint32(sym, uint32(len(names)))
		sym[4] = 0x12
		le.PutUint16(sym[6:], 1)
		le.PutUint64(sym[8:], uint64(len(code)))
		le.PutUint64(sym[16:], uint64(len(body)))
		syms = append(syms, sym...)
		names = append(names, fmt.Sprintf("function_%d\x00", i)...)
		code = append(code, body...)
	}
	entry := func(b []byte, at int, sym, typ uint32, addend int64) []byte {
		e := make([]byte, relaSize)
		le.PutUint64(e, uint64(at))
		le.PutUint32(e[8:], typ)
		le.PutUint32(e[12:], sym)
		le.PutUint64(e[16:], uint64(addend))
		return append(b, e...)
	}
	for i, s := range starts {
		rela = entry(rela, s+10, uint32(2+(i*7)%functions), 4, -4)
		rela = entry(rela, s+30, 1, 2, int64(starts[(i*11)%functions])+16)
		table = entry(table, 8*i, 1, 1, int64(s))
	}
	zeros := make([]byte, 8*functions)
	sections := []struct {
		name string
		typ  uint32
		data []byte
		link uint32
		info uint32
	}{
		{}, {".text", 1, code, 0, 0}, {"__table", 1, zeros, 0, 0}, {".symtab", 2, syms, 4, 0}, {".strtab", 3, names, 0, 0},
		{".rela.text", 4, rela, 3, 1}, {".rela__table", 4, table, 3, 2}, {".shstrtab", 3, nil, 0, 0},
	}
	strs := []byte{0}
	var at []uint32
	for _, s := range sections {
		at = append(at, uint32(len(strs)))
		strs = append(append(strs, s.name...), 0)
	}
	sections[len(sections)-1].data = strs
	out := make([]byte, 64)
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 1)
	le.PutUint16(out[18:], 62)
	le.PutUint16(out[58:], shdrSize)
	le.PutUint16(out[60:], uint16(len(sections)))
	le.PutUint16(out[62:], uint16(len(sections)-1))
	var headers []byte
	for i, s := range sections {
		for len(out)%8 != 0 {
			out = append(out, 0)
		}
		h := make([]byte, shdrSize)
		le.PutUint32(h, at[i])
		le.PutUint32(h[4:], s.typ)
		le.PutUint64(h[24:], uint64(len(out)))
		le.PutUint64(h[32:], uint64(len(s.data)))
		le.PutUint32(h[40:], s.link)
		le.PutUint32(h[44:], s.info)
		headers = append(headers, h...)
		out = append(out, s.data...)
	}
	le.PutUint64(out[40:], uint64(len(out)))
	out = append(out, headers...)
	signature := make([]byte, 256)
	rand.New(rand.NewSource(seed + int64(grow))).Read(signature)
	out = append(out, "PKCS#7 \x04\x82\x01\x00"...)
	out = append(out, signature...)
	out = append(out, make([]byte, 12)...)
	return append(out, moduleMagic...)
}

// Code that grows leaves no trace in tables.
func TestObject(t *testing.T) {
	old, new := object(1, 0), object(1, 40)
	src := bytes.Clone(old)
	d, err := diffObject(context.Background(), &hints{}, new, old)
	if err != nil || d == nil {
		t.Fatal(d, err)
	}
	if !bytes.Equal(src, old) {
		t.Fatal("the source was changed")
	}
	data := 0
	for _, a := range d.actions {
		if a.kind != opRaw {
			data += len(a.data)
		}
	}
	if data > 400 {
		t.Errorf("%d bytes of data for 40 new ones", data)
	}
	b, err := newObjectBuilder(&hints{}, src, make([]byte, len(new)), d.head)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range d.actions {
		if err := b.do(a); err != nil {
			t.Fatal(err)
		}
	}
	if b.part != numParts || !bytes.Equal(b.dst, new) {
		t.Fatal("it came out differently")
	}
}

// Whatever stands in objects and operations: an error at most.
func FuzzObject(f *testing.F) {
	f.Add(object(1, 0), object(1, 8), uint16(100))
	f.Add(object(1, 8), object(2, 0), uint16(0))
	f.Fuzz(func(t *testing.T, old, new []byte, head uint16) {
		if len(old) > 1<<18 || len(new) > 1<<18 {
			return
		}
		d, err := diffObject(context.Background(), &hints{}, new, old)
		ok := err == nil && d != nil
		if !ok {
			d = &objectDiff{head: int64(head), actions: []action{{op: op{kind: opInsert, length: int64(len(new))}, data: new}}}
		}
		b, err := newObjectBuilder(&hints{}, bytes.Clone(old), make([]byte, len(new)), d.head)
		if err != nil {
			return
		}
		for _, a := range d.actions {
			if err := b.do(a); err != nil {
				return
			}
		}
		if ok && !bytes.Equal(b.dst, new) {
			t.Fatal("accepted, but different")
		}
	})
}
