package exe

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/btrovl/btrovl/delta/bsdiff"
)

// A program is assembled from functions that call each other, strings, pointers, and
// all the tables that a linker (or, for a kernel, its build) makes of them.
type program struct {
	kernel    bool
	functions [][]byte // instructions before the calls of each
	strings   []string
	imports   []string
}

// buildSection is a section in the making.
type buildSection struct {
	name      string
	typ       uint32
	flags     uint64
	link      int // index
	addr, off uint64
	data      []byte
}

type assembler struct {
	s    []*buildSection
	base uint64
	at   uint64
}

func (a *assembler) add(name string, typ uint32, flags uint64, size int) *buildSection {
	a.at = (a.at + 15) &^ 15
	s := &buildSection{name: name, typ: typ, flags: flags, addr: a.base + a.at, off: a.at, data: make([]byte, size)}
	a.at += uint64(size)
	a.s = append(a.s, s)
	return s
}

func (s *buildSection) rel32(at int, target uint64) {
	binary.LittleEndian.PutUint32(s.data[at:], uint32(target-(s.addr+uint64(at))-4))
}

func (s *buildSection) place32(at int, target uint64) {
	binary.LittleEndian.PutUint32(s.data[at:], uint32(target-(s.addr+uint64(at))))
}

// build links the program.
func (p *program) build() []byte {
	le := binary.LittleEndian
	const phdrs = 2
	a := &assembler{base: 0x400000, at: headerSize + phdrs*phdrSize}
	if p.kernel {
		a.base = 0xffffffff81000000
	}
	n := len(p.functions)
	// Each function: its bytes; lea string; call the next but one; call an import; ret; padding.
	size := func(f []byte) int { return (len(f) + 7 + 5 + 5 + 1 + 15) &^ 15 }
	codeSize := 0
	var starts []int
	for _, f := range p.functions {
		starts = append(starts, codeSize)
		codeSize += size(f)
	}
	text := a.add(".text", shtProgbits, 4, codeSize)
	plt := a.add(".plt", shtProgbits, 4, 16*len(p.imports))
	strs := a.add(".rodata", shtProgbits, 0, 0)
	var strAt []uint64
	for _, s := range p.strings {
		strAt = append(strAt, strs.addr+uint64(len(strs.data)))
		strs.data = append(append(strs.data, s...), 0)
	}
	a.at += uint64(len(strs.data))
	if p.kernel {
		p.kallsyms(a, strs, text, starts)
	}
	hdr := a.add(".eh_frame_hdr", shtProgbits, 0, 12+8*n)
	const cie, fde = 24, 24
	frame := a.add(".eh_frame", shtProgbits, 0, cie+fde*n)
	names := a.add(".dynstr", 3, 0, 1)
	sym := a.add(".dynsym", shtDynsym, 0, symbolSize*(len(p.imports)+1))
	a.at += uint64(20 * len(p.imports)) // room for the names
	rela := a.add(".rela.dyn", shtRela, 0, relaSize*(n+len(p.imports)))
	rela.link = 1 + slices.Index(a.s, sym)
	sym.link = 1 + slices.Index(a.s, names)
	got := a.add(".got", shtProgbits, 0, 8*len(p.imports))
	data := a.add(".data", shtProgbits, 0, 8*n)

	fn := func(i int) uint64 { return text.addr + uint64(starts[i%n]) }
	for i, f := range p.functions {
		at := starts[i]
		at += copy(text.data[at:], f)
		at += copy(text.data[at:], []byte{0x48, 0x8d, 0x3d})
		text.rel32(at, strAt[i%len(strAt)])
		text.data[at+4] = 0xe8
		text.rel32(at+5, fn(i*7+2))
		text.data[at+9] = 0xe8
		text.rel32(at+10, plt.addr+16*uint64(i%len(p.imports)))
		text.data[at+14] = 0xc3
		le.PutUint64(data.data[8*i:], fn(i*3))
		le.PutUint64(rela.data[relaSize*i:], data.addr+uint64(8*i))
		le.PutUint64(rela.data[relaSize*i+8:], 8)
		le.PutUint64(rela.data[relaSize*i+16:], fn(i*3))
	}
	for i, name := range p.imports {
		le.PutUint32(sym.data[symbolSize*(i+1):], uint32(len(names.data)))
		names.data = append(append(names.data, name...), 0)
		slot := got.addr + uint64(8*i)
		copy(plt.data[16*i:], []byte{0xff, 0x25, 0, 0, 0, 0, 0x68, byte(i), 0, 0, 0, 0xe9})
		plt.rel32(16*i+2, slot)
		plt.rel32(16*i+12, plt.addr)
		e := rela.data[relaSize*(n+i):]
		le.PutUint64(e, slot)
		le.PutUint64(e[8:], uint64(i+1)<<32|6)
	}
	le.PutUint32(frame.data, cie-4)
	copy(frame.data[8:], "\x01zR\x00\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01")
	copy(hdr.data, []byte{1, pcrel4, 3, 0x3b})
	hdr.place32(4, frame.addr)
	le.PutUint32(hdr.data[8:], uint32(n))
	for i := range n {
		at := cie + fde*i
		le.PutUint32(frame.data[at:], fde-4)
		le.PutUint32(frame.data[at+4:], uint32(at+4))
		frame.place32(at+8, fn(i))
		le.PutUint32(frame.data[at+12:], uint32(size(p.functions[i])))
		copy(frame.data[at+17:], fmt.Sprintf("%d", i*i))
		le.PutUint32(hdr.data[12+8*i:], uint32(fn(i)-hdr.addr))
		le.PutUint32(hdr.data[16+8*i:], uint32(frame.addr+uint64(at)-hdr.addr))
	}
	if p.kernel {
		ip := a.add(".orc_unwind_ip", shtProgbits, 0, 4*n)
		ks := a.add("__ksymtab", shtProgbits, 0, 12*n)
		for i := range n {
			ip.place32(4*i, fn(i)+4)
			ks.place32(12*i, fn(i))
			ks.place32(12*i+4, strAt[i%len(strAt)])
			ks.place32(12*i+8, strs.addr+uint64(len(strs.data))-1)
		}
	}
	b := a.link(layout64, typeExec, machineX86)
	if p.kernel { // relocations of 64 bits, then none relative, then none of 32 bits
		b = append(b, 0, 0, 0, 0)
		for i := range n {
			b = le.AppendUint32(b, uint32(data.addr)+uint32(8*i))
		}
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	return b
}

// kallsyms appends the kernel's list of its symbols to a section.
func (p *program) kallsyms(a *assembler, s, text *buildSection, starts []int) {
	le := binary.LittleEndian
	pad := func() {
		for len(s.data)%8 != 0 {
			s.data = append(s.data, 0)
		}
	}
	const each = 60 // symbols of a function, so that the list is long enough to be noticed
	var syms []uint64
	for i := range starts {
		for k := range each {
			syms = append(syms, uint64(starts[i])+uint64(k/4))
		}
	}
	pad()
	for _, v := range syms {
		s.data = le.AppendUint32(s.data, uint32(^v))
	}
	pad()
	s.data = le.AppendUint64(s.data, text.addr)
	s.data = le.AppendUint32(s.data, uint32(len(syms)))
	pad()
	for i := range syms {
		name := fmt.Sprintf("t%x", i)
		s.data = append(append(s.data, byte(len(name))), name...)
	}
	pad()
	s.data = append(s.data, make([]byte, (len(syms)+255)/256*4)...)
	pad()
	for i := range syms {
		k := i * 7919 % len(syms)
		s.data = append(s.data, byte(k>>16), byte(k>>8), byte(k))
	}
	a.at = s.off + uint64(len(s.data))
}

// link writes headers around the sections.
func (a *assembler) link(l *layout, kind, machine uint16) []byte {
	le := binary.LittleEndian
	end := a.at
	shstr := &buildSection{name: ".shstrtab", typ: 3, off: end}
	all := append([]*buildSection{{}}, append(slices.Clone(a.s), shstr)...)
	b := make([]byte, end)
	for _, s := range a.s {
		copy(b[s.off:], s.data)
	}
	word := func(b []byte, v uint64) []byte {
		if l == layout32 {
			return le.AppendUint32(b, uint32(v))
		}
		return le.AppendUint64(b, v)
	}
	var table []byte
	for _, s := range all {
		table = le.AppendUint32(table, uint32(len(shstr.data)))
		shstr.data = append(append(shstr.data, s.name...), 0)
		table = le.AppendUint32(table, s.typ)
		for _, v := range []uint64{s.flags, s.addr, s.off, uint64(len(s.data))} {
			table = word(table, v)
		}
		table = le.AppendUint32(table, uint32(s.link))
		table = append(table, make([]byte, int(l.shdr)-len(table)%int(l.shdr))...)
	}
	// The last one's size was not known yet.
	size := table[len(table)-int(l.shdr)+8+3*len(word(nil, 0)):]
	copy(size, word(nil, uint64(len(shstr.data))))
	b = append(b, shstr.data...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	shoff := len(b)
	b = append(b, table...)

	head := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	head = le.AppendUint32(le.AppendUint16(le.AppendUint16(head, kind), machine), 1)
	for _, v := range []uint64{0, l.header, uint64(shoff)} { // entry, program headers, sections
		head = word(head, v)
	}
	head = le.AppendUint32(head, 0)
	for _, v := range []uint64{l.header, l.phdr, 2, l.shdr, uint64(len(all)), uint64(len(all) - 1)} {
		head = le.AppendUint16(head, uint16(v))
	}
	head = le.AppendUint32(head, ptLoad)
	if l == layout64 {
		head = le.AppendUint32(head, 5)
	}
	for _, v := range []uint64{0, a.base, 0, end, end + 1000} {
		head = word(head, v)
	}
	if l == layout32 {
		head = le.AppendUint32(head, 5)
	}
	copy(b, head)
	if l == layout32 {
		b[4] = 1 // the class
	}
	return b
}

func newProgram(kernel bool) *program {
	p := &program{kernel: kernel}
	for i := range 120 {
		body := make([]byte, 20+i%37)
		for k := range body {
			body[k] = byte(0x50 + (i*k+k*k)%16)
		}
		p.functions = append(p.functions, body)
		p.strings = append(p.strings, fmt.Sprintf("message number %d", i*i))
	}
	for i := range 9 {
		p.imports = append(p.imports, fmt.Sprintf("import_%d", i*i*i))
	}
	return p
}

// grown is the same program, with a longer function, a new one, a new string and a new import.
func grown(kernel bool) *program {
	p := newProgram(kernel)
	p.functions[30] = append(p.functions[30], bytes.Repeat([]byte{0x90, 0x66}, 40)...)
	p.strings[50] = "a message that is quite a bit longer now"
	return p
}

// Sections that have no content may say that it is anywhere.
func TestNoContent(t *testing.T) {
	le := binary.LittleEndian
	for _, name := range []string{".shstrtab", ".dynstr", ".dynsym", ".rodata"} {
		b := newProgram(true).build()
		shoff := le.Uint64(b[40:])
		for i, s := range parse(b).sections {
			if s.name == name {
				le.PutUint32(b[shoff+uint64(i)*shdrSize+4:], shtNobits)
				le.PutUint64(b[shoff+uint64(i)*shdrSize+24:], 1<<63+1)
			}
		}
		Mask(b)
		Rewrite(bytes.Clone(b), b, []Move{{0, 100, 5000}})
	}
}

// cost counts the bytes of operations that bring something new.
func cost(new, old []byte, ops []bsdiff.Op) (n int64) {
	at := int64(0)
	for _, op := range ops {
		for i := range op.Length {
			if op.Kind == bsdiff.Insert || new[at+i] != old[op.Offset+i] {
				n++
			}
		}
		at += op.Length
	}
	return n
}

// compared rewrites an old program with its moves to a new one, and returns these and how
// much there is to say of the new one then, and how much of the old one as it is.
func compared(t *testing.T, old, new []byte) (moves []Move, got, want int64) {
	t.Helper()
	plain, err := bsdiff.Diff(context.Background(), new, [][]byte{old}, bsdiff.Options{})
	if err != nil {
		t.Fatal(err)
	}
	moves, err = Match(context.Background(), old, new)
	if err != nil || len(moves) == 0 {
		t.Fatalf("%d moves, %v", len(moves), err)
	}
	rewritten := bytes.Clone(old)
	if !Rewrite(rewritten, new[:HeadSize(new)], slices.Clone(moves)) {
		t.Fatal("nothing was rewritten")
	}
	var regions []bsdiff.Region
	for _, m := range moves {
		regions = append(regions, bsdiff.Region{New: int(m.New), Old: int(m.Old), Length: int(m.Length)})
	}
	return moves, cost(new, rewritten, bsdiff.Ops(new, rewritten, regions)), cost(new, old, plain)
}

func TestPrograms(t *testing.T) {
	for _, kernel := range []bool{false, true} {
		old, new := newProgram(kernel).build(), grown(kernel).build()
		_, got, want := compared(t, old, new)
		t.Logf("kernel %v: %d bytes to say, %d without addresses, of %d", kernel, got, want, len(new))
		if got*5 > want {
			t.Errorf("kernel %v: %d bytes to say, %d without addresses", kernel, got, want)
		}
	}
}

// Where nothing moves, nothing changes: in every program that there is.
func TestRewriteInPlace(t *testing.T) {
	files := []string{os.Args[0]}
	for _, pattern := range []string{"/usr/bin/*", "/usr/lib/x86_64-linux-gnu/*.so.*"} {
		found, _ := filepath.Glob(pattern)
		for i := 0; i < len(found); i += 1 + len(found)/12 {
			files = append(files, found[i])
		}
	}
	known := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil || len(b) > 8<<20 {
			continue
		}
		c := bytes.Clone(b)
		if Rewrite(c, b, []Move{{0, 0, int64(len(b))}}) {
			known++
		}
		if !bytes.Equal(b, c) {
			t.Errorf("%s changes", name)
		}
		if m := Mask(b); m != nil && len(m) != len(b) {
			t.Errorf("%s: a mask of %d bytes for %d", name, len(m), len(b))
		}
	}
	for _, kernel := range []bool{false, true} {
		b := newProgram(kernel).build()
		c := bytes.Clone(b)
		if !Rewrite(c, b, []Move{{0, 0, int64(len(b))}}) || !bytes.Equal(b, c) {
			t.Errorf("kernel %v changes", kernel)
		}
	}
	t.Logf("%d files known", known)
}

func TestUnknownFiles(t *testing.T) {
	good := newProgram(false).build()
	if HeadSize(good) != headerSize+2*phdrSize {
		t.Errorf("a head of %d bytes", HeadSize(good))
	}
	for name, b := range map[string][]byte{
		"empty":       nil,
		"text":        []byte("#!/bin/sh\n"),
		"short":       good[:60],
		"object":      append(append(bytes.Clone(good[:16]), 1, 0), good[18:]...),
		"arm":         append(append(bytes.Clone(good[:18]), 40, 0), good[20:]...),
		"no segments": append(append(bytes.Clone(good[:56]), 0, 0), good[58:]...),
	} {
		if n := HeadSize(b); n != 0 {
			t.Errorf("%s: a head of %d bytes", name, n)
		}
		if Mask(b) != nil {
			t.Errorf("%s: a mask", name)
		}
		if Rewrite(bytes.Clone(b), good, []Move{{0, 0, 1}}) || Rewrite(bytes.Clone(good), b, []Move{{0, 0, 1}}) {
			t.Errorf("%s: rewritten", name)
		}
		if moves, err := Match(context.Background(), b, good); len(moves) != 0 || err != nil {
			t.Errorf("%s: %d moves, %v", name, len(moves), err)
		}
	}
}

func TestCover(t *testing.T) {
	got := cover([]Move{{100, 5, 50}, {0, 200, 40}, {30, 300, 100}, {35, 7, 10}, {120, 9, 40}})
	want := []Move{{0, 200, 30}, {30, 300, 100}, {130, 19, 30}}
	if !slices.Equal(got, want) {
		t.Errorf("cover: %v, want %v", got, want)
	}
}

func FuzzRewrite(f *testing.F) {
	for _, kernel := range []bool{false, true} {
		b := newProgram(kernel).build()
		f.Add(b, b[:HeadSize(b)], int64(100), int64(200), int64(5000))
		f.Add(b[:5000], b, int64(0), int64(-1), int64(1))
	}
	f.Fuzz(func(t *testing.T, old, head []byte, from, to, n int64) {
		Mask(old)
		moves := []Move{{from, to, n}, {to, from, n}, {n, n, n}}
		a, b := bytes.Clone(old), bytes.Clone(old)
		if Rewrite(a, head, slices.Clone(moves)) != Rewrite(b, bytes.Clone(head), slices.Clone(moves)) || !bytes.Equal(a, b) {
			t.Fatal("not the same each time")
		}
	})
}
