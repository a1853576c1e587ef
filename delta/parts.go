package delta

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/btrovl/btrovl/delta/bundle"
)

// A payload is a table and its parts, one behind the other:
//
//	u8   payload version, 2
//	u8   number of parts
//	for each part:
//	  u8   kind
//	  u64  bases that it is for: bit i is the i-th of the manifest; a full bundle has one, "nothing"
//	  u64  size
//
// First the sections of the bases, one for each in their order, then what several
// share. A device reads its own section and, behind it, those shared parts that are for
// its base. It skips the others: all of them are read once, from front to back.
//
// Version 1 has sections of bases only: u64 size of each in place of the three fields.
const (
	payloadSections = 1
	payloadParts    = 2
)

type partKind uint8

const (
	partBase    partKind = iota // section of one base, with the listing
	partShared                  // section of content that several bases lack, see shared.go
	partRescue                  // section of whole files, for sources that rotted, see rescue.go
	partOutline                 // what the base's listing looks like, see outline.go
	numPartKinds
)

type part struct {
	kind  partKind
	bases uint64
	size  int64
}

const partSize = 1 + 8 + 8

func payloadHead(parts []part) []byte {
	b := []byte{payloadParts, byte(len(parts))}
	for _, p := range parts {
		b = append(b, byte(p.kind))
		b = binary.LittleEndian.AppendUint64(b, p.bases)
		b = binary.LittleEndian.AppendUint64(b, uint64(p.size))
	}
	return b
}

// maxParts is what the number of parts can say.
const maxParts = 255

// A payload is a bundle's, as one base sees it.
type payload struct {
	br    *bundle.Reader
	which int
	parts []part
	at    int               // of parts: the next one
	cur   *io.LimitedReader // the part that was opened last
}

// openPayload reads the table. which is the place of the base in the manifest.
func openPayload(br *bundle.Reader, which int) (*payload, error) {
	p := &payload{br: br, which: which}
	bases := max(1, len(br.Manifest().From))
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return nil, short(err)
	}
	n := int(head[1])
	switch {
	case head[0] != payloadSections && head[0] != payloadParts:
		return nil, &bundle.FormatError{Have: int(head[0]), Know: payloadParts}
	case which >= bases || n < bases || head[0] == payloadSections && n != bases:
		return nil, damaged("%d sections for %d bases", n, bases)
	}
	each := partSize
	if head[0] == payloadSections {
		each = 8
	}
	table := make([]byte, n*each)
	if _, err := io.ReadFull(br, table); err != nil {
		return nil, short(err)
	}
	left := br.Manifest().Payload.Size - int64(len(head)+len(table))
	for i := range n {
		b := table[i*each:]
		t := part{kind: partBase, bases: 1 << i}
		if head[0] == payloadParts {
			t.kind, t.bases = partKind(b[0]), binary.LittleEndian.Uint64(b[1:])
			b = b[9:]
		}
		size := binary.LittleEndian.Uint64(b)
		if left < 0 || size > uint64(left) {
			return nil, damaged("a section of %d bytes where %d are left", size, left)
		}
		t.size = int64(size)
		left -= t.size
		if (t.kind == partBase) != (i < bases) || i < bases && t.bases != 1<<i || t.kind >= numPartKinds {
			return nil, damaged("a part of kind %d for bases %x in the place %d", t.kind, t.bases, i)
		}
		p.parts = append(p.parts, t)
	}
	if left != 0 {
		return nil, damaged("%d bytes that belong to no section", left)
	}
	return p, nil
}

// has reports whether there is a part of a kind for this base.
func (p *payload) has(kind partKind) bool {
	for _, t := range p.parts {
		if t.kind == kind && t.bases>>p.which&1 != 0 {
			return true
		}
	}
	return false
}

// next opens the next part that is for this base; io.EOF where there is none. What was
// opened before must not be read any more.
func (p *payload) next() (partKind, io.Reader, error) {
	skip := int64(0)
	if p.cur != nil {
		skip = p.cur.N
		p.cur = nil
	}
	for p.at < len(p.parts) && p.parts[p.at].bases>>p.which&1 == 0 {
		skip += p.parts[p.at].size
		p.at++
	}
	if p.at == len(p.parts) {
		return 0, nil, io.EOF // what is left is read by Verify
	}
	if _, err := io.CopyN(io.Discard, p.br, skip); err != nil {
		return 0, nil, short(err)
	}
	t := p.parts[p.at]
	p.at++
	p.cur = &io.LimitedReader{R: p.br, N: t.size}
	return t.kind, p.cur, nil
}

// section opens the next part, which must be a section.
func (p *payload) section() (partKind, *sectionReader, error) {
	kind, src, err := p.next()
	for err == nil && kind == partOutline {
		kind, src, err = p.next()
	}
	if err != nil {
		return kind, nil, err
	}
	r, err := newSectionReader(src)
	if err != nil {
		return kind, nil, err
	}
	if err := r.head.checkHead(p.br.Manifest()); err != nil {
		r.close()
		return kind, nil, err
	}
	return kind, r, nil
}

// openSection goes to the section of the i-th base.
func openSection(br *bundle.Reader, i int) (*payload, *sectionReader, error) {
	p, err := openPayload(br, i)
	if err != nil {
		return nil, nil, err
	}
	_, r, err := p.section()
	if err == io.EOF {
		err = fmt.Errorf("section %d is not there", i)
	}
	return p, r, err
}
