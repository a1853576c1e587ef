package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"sort"

	"github.com/btrovl/btrovl/delta/redeflate"
)

// The content of an object (methodObject) is decoded in an order that lets each part
// profit from those before it. A part is a list of ranges of the file:
//
//	head     from position `head` of the record to the end: section names and headers, signature
//	start    the ELF header, 64 bytes
//	code     everything that is in none of the others
//	types    .BTF, in the normal form of package btf; before it, that of the source is rewritten
//	strings  string tables of symbol tables
//	symbols  symbol tables; before them, those of the source are brought up to date
//	tables   relocations, their offsets as distances from the one before; the same
//
// From `code` on the ranges follow from the new section headers. They are cut at the
// beginnings of sections into pieces, and each piece has an old one: the section of
// the same name. Operations count their positions from there:
//
//	expected position   at the start of a piece: that of its old one; then: the end of the
//	                    source bytes used last
//	copy, length 0      to the end of the piece
//	raw, length 0       the object is complete
type objectPart int

const (
	partHead objectPart = iota
	partStart
	partCode
	partTypes
	partStrings
	partSymbols
	partTables
	numParts
)

type span struct{ from, to int64 }

// maxObject bounds what is held in memory for objects, source and content, with
// DefaultMemory; objectLimit for any memory that a manifest states.
const maxObject = DefaultMemory / 16 * 5

func objectLimit(memory int64) int64 {
	if memory <= 0 {
		return maxObject
	}
	return min(memory/16*5, maxObject)
}

// objectHead returns where the head of an object begins, or ok false for what cannot travel as one.
func objectHead(b []byte) (int64, bool) {
	s := elfSections(b)
	if s == nil {
		return 0, false
	}
	shoff := int64(binary.LittleEndian.Uint64(b[40:]))
	str := &s[binary.LittleEndian.Uint16(b[62:])]
	head := min(shoff, int64(str.off))
	if head < 64 {
		return 0, false
	}
	_, ok := objectSpans(s, head)
	return head, ok
}

// objectSpans finds the ranges of the parts behind the start. ok is false if sections overlap.
func objectSpans(s []elfSection, head int64) (spans [numParts][]span, ok bool) {
	var all []struct {
		span
		part objectPart
	}
	put := func(sec *elfSection, p objectPart) {
		if sec.typ == shtNobits || sec.size == 0 || int64(sec.off) >= head {
			return
		}
		all = append(all, struct {
			span
			part objectPart
		}{span{int64(sec.off), int64(sec.off + sec.size)}, p})
	}
	for i := range s {
		switch s[i].typ {
		case shtSymtab:
			put(&s[i], partSymbols)
			if int(s[i].link) < len(s) && s[s[i].link].typ == shtStrtab {
				put(&s[s[i].link], partStrings)
			}
		case shtRela:
			put(&s[i], partTables)
		case shtProgbits:
			if s[i].name == ".BTF" {
				put(&s[i], partTypes)
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].from < all[j].from })
	at := int64(64)
	add := func(p objectPart, from, to int64) {
		if from == to {
			return
		}
		if l := spans[p]; len(l) > 0 && l[len(l)-1].to == from {
			l[len(l)-1].to = to
			return
		}
		spans[p] = append(spans[p], span{from, to})
	}
	for _, a := range all {
		if a.from < at || a.to > head {
			return spans, false
		}
		add(partCode, at, a.from)
		add(a.part, a.from, a.to)
		at = a.to
	}
	add(partCode, at, head)
	return spans, true
}

// An objectBuilder runs the operations of an object in memory.
type objectBuilder struct {
	reloc *relocator
	hints *hints
	src   []byte // rewritten between the parts
	dst   []byte
	spans [numParts][]span
	head  int64
	part  objectPart
	cur   []piecePair // pieces of this part that are not complete
	pieceCursor
	oldSpans    [numParts][]span
	oldSections []elfSection
	record      bool // the moves
	moves       []redeflate.Move
}

func newObjectBuilder(h *hints, src, dst []byte, head int64) (*objectBuilder, error) {
	size := int64(len(dst))
	if head < 64 || head > size {
		return nil, damaged("an object whose head is at %d of %d", head, size)
	}
	b := &objectBuilder{hints: h, reloc: newRelocator(src), src: src, dst: dst, head: head, part: -1}
	b.spans[partHead] = []span{{head, size}}
	b.spans[partStart] = []span{{0, 64}}
	b.oldSections = b.reloc.olds
	if oldHead, ok := objectHead(src); ok {
		b.oldSpans, _ = objectSpans(b.oldSections, oldHead)
		b.oldSpans[partHead] = []span{{oldHead, int64(len(src))}}
		b.oldSpans[partStart] = []span{{0, 64}}
	}
	return b, b.advance()
}

// advance goes to the next piece that is not empty, if this one is complete.
func (b *objectBuilder) advance() error {
	if len(b.cur) > 0 {
		if b.at < b.cur[0].new.to {
			return nil
		}
		if b.cur = b.cur[1:]; len(b.cur) > 0 {
			b.at, b.pos = b.cur[0].new.from, b.cur[0].old.from
			return nil
		}
	}
	for len(b.cur) == 0 && b.part < numParts {
		b.part++
		var sections []elfSection
		switch b.part {
		case numParts:
			b.finish()
			return nil
		case partCode:
			b.hints.checksums(b.src, b.reloc.olds)
			s := elfSections(b.dst)
			spans, ok := objectSpans(s, b.head)
			if s == nil || !ok {
				return damaged("an object that is none")
			}
			for p := partCode; p < numParts; p++ {
				b.spans[p] = spans[p]
			}
		case partTypes:
			b.hints.rewrite(b.src, b.reloc.olds)
		case partSymbols:
			b.reloc.symbols(b.dst)
		case partTables:
			b.reloc.relocations(b.dst)
		}
		if b.part >= partCode {
			sections = elfSections(b.dst)
		}
		b.cur = pairPieces(b.spans[b.part], b.oldSpans[b.part], sections, b.oldSections, b.part)
	}
	b.at, b.pos = b.cur[0].new.from, b.cur[0].old.from
	return nil
}

// finish turns the parts that were compared in another form into what the file holds.
func (b *objectBuilder) finish() {
	s := elfSections(b.dst)
	b.hints.restore(b.dst, s)
	relaOffsets(b.dst, s)
}

// do runs one action, which must stay within a piece.
func (b *objectBuilder) do(c action) error {
	if c.ends() {
		return nil
	}
	if len(b.cur) == 0 {
		return damaged("more operations than an object has parts")
	}
	at := b.at
	if err := b.take(&c, b.cur[0].new.to, int64(len(b.src))); err != nil {
		return err
	}
	c.write(b.dst[at:b.at], b.src)
	if c.kind == opCopy || c.kind == opAdd {
		b.reloc.pos.add(c.pos, at, c.length)
		if b.record {
			if b.moved(c.pos, at, c.length); len(b.moves) > maxMoves {
				return damaged("an object in more than %d pieces", maxMoves)
			}
		}
	}
	return b.advance()
}

func (b *objectBuilder) content() ([]byte, bool) { return b.dst, b.part == numParts }

// An objectDiff says how an object is made of another.
type objectDiff struct {
	actions []action
	head    int64
	moves   []redeflate.Move
}

// diffObject finds the actions of an object. It runs them as the device does, because the source
// of each part depends on those before. It returns nil where the plain way must be taken.
func diffObject(ctx context.Context, h *hints, new, old []byte) (*objectDiff, error) {
	if int64(len(new)+len(old)) > maxObject {
		return nil, nil
	}
	head, ok := objectHead(new)
	if _, oldOK := objectHead(old); !ok || !oldOK {
		return nil, nil
	}
	src := append([]byte(nil), old...)
	b, err := newObjectBuilder(h, src, make([]byte, len(new)), head)
	if err != nil {
		return nil, err
	}
	b.record = true
	d := &objectDiff{head: head}
	// The form in which the new file is compared.
	form := bytes.Clone(new)
	sections := elfSections(new)
	h.normalize(form, sections)
	relaDistances(form, sections)
	for b.part < numParts {
		p := b.cur[0]
		found, err := diffPiece(ctx, form[p.new.from:p.new.to], src, p.old, b.part)
		if err != nil {
			return nil, err
		}
		for i, a := range found {
			if a.kind == opCopy || a.kind == opAdd {
				a.seek = a.pos - b.pos
			}
			if a.kind == opCopy && i == len(found)-1 {
				a.length = 0
			}
			d.actions = append(d.actions, a)
			if err := b.do(a); err != nil {
				return nil, err
			}
		}
	}
	if !bytes.Equal(b.dst, new) {
		return nil, nil // e.g. sections that overlap in a way that the forms do not survive
	}
	d.actions = append(d.actions, action{op: op{kind: opRaw}})
	d.moves = b.sortedMoves()
	return d, nil
}

// pairPieces cuts the spans of a part at the beginnings of sections, and pairs each piece with the
// old section of the same name, or with the whole extent of the old part.
func pairPieces(news, olds []span, sn, so []elfSection, part objectPart) []piecePair {
	var whole span
	if len(olds) > 0 {
		whole = span{olds[0].from, olds[len(olds)-1].to}
	}
	if part == partHead || part == partStart {
		if news[0].from == news[0].to {
			return nil
		}
		return []piecePair{{news[0], whole}}
	}
	oldPieces := make(map[string][]span)
	for _, p := range cutPieces(olds, so) {
		oldPieces[p.name] = append(oldPieces[p.name], p.span)
	}
	var pairs []piecePair
	for _, p := range cutPieces(news, sn) {
		pair := piecePair{new: p.span, old: whole}
		if all := oldPieces[p.name]; len(all) > 0 {
			pair.old = all[0]
			oldPieces[p.name] = all[1:]
		}
		pairs = append(pairs, pair)
	}
	return pairs
}

type namedSpan struct {
	span
	name string
}

func cutPieces(spans []span, s []elfSection) []namedSpan {
	starts := make(map[int64]string)
	var at []int64
	for i := range s {
		if off := int64(s[i].off); s[i].typ != shtNobits && s[i].size > 0 {
			if _, ok := starts[off]; !ok {
				at = append(at, off)
			}
			starts[off] = s[i].name
		}
	}
	sort.Slice(at, func(i, j int) bool { return at[i] < at[j] })
	var out []namedSpan
	for _, sp := range spans {
		i := sort.Search(len(at), func(i int) bool { return at[i] >= sp.from })
		from, name := sp.from, ""
		for ; i < len(at) && at[i] < sp.to; i++ {
			if at[i] > from {
				out = append(out, namedSpan{span{from, at[i]}, name})
			}
			from, name = at[i], starts[at[i]]
		}
		if sp.to > from {
			out = append(out, namedSpan{span{from, sp.to}, name})
		}
	}
	return out
}

// diffPiece compares a piece with a range of the source. Common ends are taken first:
// the positions of tables that hold nothing but zeros must not be left to chance.
func diffPiece(ctx context.Context, text, src []byte, old span, part objectPart) ([]action, error) {
	from := src[old.from:old.to]
	if part == partHead {
		actions, err := diffFile(ctx, text, from)
		return shift(actions, old.from), err
	}
	pre := commonPrefix(text, from)
	if pre < 32 {
		pre = 0
	}
	suf := 0
	for suf < len(text)-pre && suf < len(from)-pre && text[len(text)-1-suf] == from[len(from)-1-suf] {
		suf++
	}
	if suf < 32 {
		suf = 0
	}
	var actions []action
	if pre > 0 {
		actions = append(actions, action{op: op{kind: opCopy, length: int64(pre), pos: old.from}})
	}
	if mid := text[pre : len(text)-suf]; len(mid) > 0 {
		found, err := diffActions(ctx, mid, sourcesOf(from))
		if err != nil {
			return nil, err
		}
		actions = append(actions, shift(found, old.from)...)
	}
	if suf > 0 {
		actions = append(actions, action{op: op{kind: opCopy, length: int64(suf), pos: old.to - int64(suf)}})
	}
	return actions, nil
}

func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// shift moves the source positions of actions.
func shift(actions []action, by int64) []action {
	for i := range actions {
		if k := actions[i].kind; k == opCopy || k == opAdd {
			actions[i].pos += by
		}
	}
	return actions
}
