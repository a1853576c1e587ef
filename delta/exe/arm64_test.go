package exe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// Each field of an instruction says what it was made to say, and the rest of the word stays.
func TestWords(t *testing.T) {
	const pc = 0x40412340
	for _, c := range []struct {
		kind   siteKind
		w      uint32
		low    uint16
		target uint64
	}{
		{branch26, 0x94000000, 0, pc + 1<<27 - 4}, {branch26, 0x17ffffff, 0, pc - 1<<27},
		{branch19, 0x54000001, 0, pc - 1<<20}, {branch19, 0xb4ffffe3, 0, pc + 1<<20 - 4},
		{branch14, 0x37080001, 0, pc - 1<<15}, {literal19, 0x58000002, 0, pc + 4096},
		{near21, 0x10000000, 0, pc + 3}, {near21, 0x70ffffff, 0, pc - 1<<20},
		{page21, 0x90000000, 0x123, 0x400123}, {page21, 0xf0ffffe1, 0xfff, 0x80000fff},
	} {
		checkWord(t, site{kind: c.kind, base: pc, low: c.low}, c.w, c.target)
	}
	for _, c := range []struct {
		w     uint32
		scale uint
	}{{0x91000000, 0}, {0x39400000, 0}, {0x79400000, 1}, {0xb9400000, 2}, {0xf9400000, 3}, {0x3dc00000, 4}, {0xfd400000, 3}} {
		s := site{kind: low12, base: 0x5000}
		target := uint64(0x5000 + 5<<c.scale)
		w := setWord(s, c.w, target, 0)
		if got := wordTarget(s, w); got != target {
			t.Errorf("%08x: leads to %x, want %x", c.w, got, target)
		}
		if c.scale > 0 && setWord(s, w, 0x5001, 0) != w {
			t.Errorf("%08x: an address that it cannot say", c.w)
		}
	}
}

// checkWord: w can be made to lead to a target, the rest of it stays, and it is masked as before.
func checkWord(t *testing.T, s site, w uint32, target uint64) {
	t.Helper()
	now := setWord(s, w, target, s.base)
	if got := wordTarget(s, now); got != target {
		t.Errorf("kind %d, %08x: leads to %x, want %x", s.kind, now, got, target)
	}
	if (now^w)&^s.kind.fields() != 0 {
		t.Errorf("kind %d: %08x became %08x", s.kind, w, now)
	}
	if mark(s.kind, now, 0) != mark(s.kind, w, 0) {
		t.Errorf("kind %d: masks differ", s.kind)
	}
}

// sameEachTime: any input has some result, always the same.
func sameEachTime(t *testing.T, old []byte, from, to, n int64) {
	Mask(old)
	moves := []Move{{from, to, n}, {to, from, n}}
	x, y := bytes.Clone(old), bytes.Clone(old)
	if Rewrite(x, old, slices.Clone(moves)) != Rewrite(y, old, slices.Clone(moves)) || !bytes.Equal(x, y) {
		t.Fatal(fmt.Sprint("not the same each time: ", moves))
	}
}

// buildARM64 links a program as build does, with the instructions of AArch64.
func (p *program) buildARM64() []byte {
	le := binary.LittleEndian
	a := &assembler{base: 0x400000, at: headerSize + 2*phdrSize}
	n := len(p.functions)
	const fixed = 4 * 8
	var starts []int
	codeSize := 0
	for _, f := range p.functions {
		starts = append(starts, codeSize)
		codeSize += len(f)/4*4 + fixed
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
	names := a.add(".dynstr", 3, 0, 1)
	sym := a.add(".dynsym", shtDynsym, 0, symbolSize*(len(p.imports)+1))
	a.at += uint64(20 * len(p.imports))
	rela := a.add(".rela.dyn", shtRela, 0, relaSize*(n+len(p.imports)))
	rela.link, sym.link = 1+slices.Index(a.s, sym), 1+slices.Index(a.s, names)
	got := a.add(".got", shtProgbits, 0, 8*len(p.imports))
	data := a.add(".data", shtProgbits, 0, 8*n)

	word := func(s *buildSection, at int, k siteKind, w uint32, target uint64) {
		base := s.addr + uint64(at)
		if k == low12 {
			base = target &^ pageMask
		}
		le.PutUint32(s.data[at:], setWord(site{kind: k, base: base}, w, target, base))
	}
	fn := func(i int) uint64 { return text.addr + uint64(starts[i%n]) }
	for i, f := range p.functions {
		at := starts[i]
		for k := 0; k+4 <= len(f); k, at = k+4, at+4 {
			le.PutUint32(text.data[at:], 0x52800000|uint32(f[k])<<5|uint32(i%16)<<13) // movz
		}
		s := strAt[i%len(strAt)]
		word(text, at, page21, 0x90000001, s)
		le.PutUint32(text.data[at+4:], 0xd503201f) // nop
		word(text, at+8, low12, 0x91000021, s)
		word(text, at+12, branch26, 0x94000000, fn(i*7+2))
		word(text, at+16, branch26, 0x94000000, plt.addr+16*uint64(i%len(p.imports)))
		word(text, at+20, branch19, 0x54000000, text.addr+uint64(starts[i]))
		word(text, at+24, near21, 0x10000002, fn(i*3))
		le.PutUint32(text.data[at+28:], 0xd65f03c0) // ret
		le.PutUint64(rela.data[relaSize*i:], data.addr+uint64(8*i))
		le.PutUint64(rela.data[relaSize*i+8:], 1027)
		le.PutUint64(rela.data[relaSize*i+16:], fn(i*3))
	}
	for i, name := range p.imports {
		le.PutUint32(sym.data[symbolSize*(i+1):], uint32(len(names.data)))
		names.data = append(append(names.data, name...), 0)
		slot := got.addr + uint64(8*i)
		word(plt, 16*i, page21, 0x90000010, slot)
		word(plt, 16*i+4, low12, 0xf9400211, slot)
		word(plt, 16*i+8, low12, 0x91000210, slot)
		le.PutUint32(plt.data[16*i+12:], 0xd61f0220)
		le.PutUint64(rela.data[relaSize*(n+i):], slot)
		le.PutUint64(rela.data[relaSize*(n+i)+8:], uint64(i+1)<<32|1025)
	}
	return a.link(layout64, typeExec, machineARM64)
}

func TestProgramsARM64(t *testing.T) {
	old, new := newProgram(false).buildARM64(), grown(false).buildARM64()
	same := bytes.Clone(old)
	if !Rewrite(same, old, []Move{{0, 0, int64(len(old))}}) || !bytes.Equal(same, old) {
		t.Error("it changes where nothing moves")
	}
	moves, got, want := compared(t, old, new)
	t.Logf("%d bytes to say, %d without addresses, of %d", got, want, len(new))
	if got*5 > want {
		t.Errorf("%d bytes to say, %d without addresses", got, want)
	}
	// A file for another machine is not brought up to date.
	other := newProgram(false).build()
	if Rewrite(bytes.Clone(old), other[:HeadSize(other)], moves) {
		t.Error("rewritten for another machine")
	}
}

func FuzzARM64(f *testing.F) {
	b := newProgram(false).buildARM64()
	f.Add(b, int64(100), int64(200), int64(5000))
	f.Fuzz(sameEachTime)
}
