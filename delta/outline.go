package delta

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"github.com/btrovl/btrovl/delta/bundle"
)

// An outline says where a listing differs from another without holding it: sums of groups of
// entries, in their order. A device whose base is the wrong one finds the first group
// that differs.
//
//	u32  number of entries
//	u16  entries in a group
//	u16 each  the sum of a group
//
// It takes a kilobyte at most.
const outlineGroups = 512

func (l *listing) outline() []byte {
	n := len(l.entries)
	group := max(1, (n+outlineGroups-1)/outlineGroups)
	b := binary.LittleEndian.AppendUint32(nil, uint32(n))
	b = binary.LittleEndian.AppendUint16(b, uint16(group))
	for at := 0; at < n; at += group {
		b = binary.LittleEndian.AppendUint16(b, l.sum(at, at+group))
	}
	return b
}

// sum is that of everything in the listing about entries [from, to): FNV-1a, folded.
func (l *listing) sum(from, to int) uint16 {
	h := fnv.New64a()
	le := binary.LittleEndian
	var b []byte
	for i := from; i < min(to, len(l.entries)); i++ {
		e := &l.entries[i]
		b = append(append(b[:0], e.path...), 0)
		for _, v := range []uint32{e.mode, e.uid, e.gid, uint32(e.nsec)} {
			b = le.AppendUint32(b, v)
		}
		b = le.AppendUint64(le.AppendUint64(b, uint64(e.sec)), e.rdev)
		b = append(append(b, e.target...), 0)
		if e.link >= 0 {
			b = append(append(b, l.entries[e.link].path...), 0)
		}
		for _, x := range e.xattrs {
			b = append(append(append(b, x.Name...), 0), x.Value...)
		}
		h.Write(b)
	}
	s := h.Sum64()
	return uint16(s ^ s>>16 ^ s>>32 ^ s>>48)
}

// firstDiff returns the first entry of the listing that differs from the outlined one, as
// a text: exact where groups have one entry.
func (l *listing) firstDiff(outline []byte) string {
	le := binary.LittleEndian
	if len(outline) < 6 {
		return ""
	}
	n, group := int(le.Uint32(outline)), int(le.Uint16(outline[4:]))
	sums := outline[6:]
	if group == 0 || len(sums) != (n+group-1)/group*2 {
		return ""
	}
	name := func(i int) string {
		if l.entries[i].path == "" {
			return "/"
		}
		return l.entries[i].path
	}
	for at := 0; at < n || at < len(l.entries); at += group {
		if at < n && le.Uint16(sums[at/group*2:]) == l.sum(at, at+group) && (at+group <= len(l.entries)) == (at+group <= n) {
			continue
		}
		switch {
		case at >= len(l.entries):
			return "what should follow " + name(len(l.entries)-1)
		case group == 1:
			return name(at)
		default:
			return fmt.Sprintf("%s, or up to %s", name(at), name(min(at+group, len(l.entries))-1))
		}
	}
	return ""
}

// Explain compares a tree with the base that a bundle starts from, which it is not, and
// returns the error that says where they differ first. It looks at names and attributes;
// where these are equal the content of some file differs. It reads the whole bundle.
func Explain(ctx context.Context, br *bundle.Reader, which int, have bundle.BaseID, base *os.File) error {
	p, err := openPayload(br, which)
	if err != nil {
		return err
	}
	l, err := list(ctx, base)
	if err != nil {
		return err
	}
	wrong := &WrongBaseError{Want: br.Manifest().From[which : which+1], Have: []bundle.BaseID{have}}
	if wrong.FirstDiff, err = p.explain(l); err != nil {
		return err
	}
	if wrong.FirstDiff == "" {
		wrong.FirstDiff = "in the content of a file; names and attributes are the same"
	}
	return wrong
}

// explain finds the outline among the parts that are left. "" if there is none, or no difference.
func (p *payload) explain(l *listing) (string, error) {
	for {
		kind, r, err := p.next()
		if err == io.EOF {
			return "", p.br.Verify()
		}
		if err != nil {
			return "", err
		}
		if kind != partOutline {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(r, 6+2*outlineGroups+1))
		if err != nil {
			return "", short(err)
		}
		return l.firstDiff(b), p.br.Verify()
	}
}
