package relz

import (
	"encoding/binary"
	"slices"
)

// Priors are the probabilities with which a guide begins: what streams like the one at hand had in the end. Most of what
// the recipe of a small stream takes is spent on learning these; with priors, those of kernel modules are
// a quarter smaller.
//
// They are of one format: a recipe that was made with priors needs the same.
type Priors struct {
	zstd   bool
	tables [][]prob // in the order of guide.tables
	kind   []prob   // groups of 8
	groups []uint16 // where in kind that of a context is, 0 if it is as at first; nil: all are there, in order
}

// group returns the probabilities of kinds in a context, nil where they are as at first.
func (p *Priors) group(context int) []prob {
	if p.groups != nil {
		if context = int(p.groups[context]); context == 0 {
			return nil
		}
	}
	return p.kind[context*8:][:8]
}

// compact keeps only groups that are not as at first: few, of a table of megabytes.
func (p *Priors) compact() {
	kept := make([]prob, 8, 8<<10) // that of 0
	groups := make([]uint16, len(p.kind)/8)
	for i := range groups {
		for _, v := range p.kind[i*8:][:8] {
			if v != probInit && len(kept)/8 < 1<<16 {
				groups[i] = uint16(len(kept) / 8)
				kept = append(kept, p.kind[i*8:][:8]...)
				break
			}
		}
	}
	p.kind, p.groups = slices.Clip(kept), groups
}

// NewPriors returns priors that know nothing, of LZMA2 or of Zstandard, for [History.Train].
func NewPriors(zstd bool) *Priors {
	var g guide
	var c coder
	g.reset(&c, &window{}, nil, 0, minHeadBits, zstd)
	p := &Priors{zstd: zstd, kind: make([]prob, kindProbs)}
	for _, t := range g.tables() {
		p.tables = append(p.tables, *t)
	}
	setup(p.kind)
	return p
}

// Set makes p what q is; both must be of [NewPriors], of one format.
func (p *Priors) Set(q *Priors) {
	for i := range p.tables {
		copy(p.tables[i], q.tables[i])
	}
	copy(p.kind, q.kind)
}

// PriorsMemory is what those of [NewPriors] take.
const PriorsMemory = 2 * int64(kindProbs+guideProbs)

// Zstd reports whether they are of Zstandard.
func (p *Priors) Zstd() bool { return p.zstd }

// SetPriors lets guides that follow h begin with p, which may be nil; priors of the other format are not used.
func (h *History) SetPriors(p *Priors) { h.h.priors, h.h.train = p, false }

// Train lets what is described after h, or rebuilt, begin with p, and change p to what it ended with. p must be of
// [NewPriors].
func (h *History) Train(p *Priors) { h.h.priors, h.h.train = p, true }

// tables returns all probabilities of a guide but those of kinds.
func (g *guide) tables() []*[]prob {
	return []*[]prob{&g.same, &g.isOld, &g.which, &g.isMost, &g.repExtra.p, &g.oldExtra.p, &g.shorter.p, &g.explicit.p, &g.slots}
}

// recall begins with the priors.
func (g *guide) recall() {
	for i, t := range g.tables() {
		copy(*t, g.priors.tables[i])
	}
}

// trained notes what the guide knows now, if that was asked for.
func (g *guide) trained() {
	p := g.priors
	if p == nil || !g.old.train {
		return
	}
	for i, t := range g.tables() {
		copy(p.tables[i], *t)
	}
	for i, use := range g.kindUse {
		if use == g.use {
			copy(p.kind[i*8:][:8], g.kind[i*8:][:8])
		}
	}
}

// priorsOf returns the priors that guides use, nil for none.
func (h *History) priorsOf() *Priors {
	if h == nil {
		return nil
	}
	return h.h.priors
}

// of reports whether there are priors, of the format in question.
func (p *Priors) of(zstd bool) bool { return p != nil && p.zstd == zstd }

const (
	priorStep  = 1 << 5 // of what is written: probabilities are 11 bits
	priorLeast = 1 << 6 // what differs less from 1/2 is not
	maxPriors  = 1 << 20
)

// Encode returns p in compact form: the format, then for each probability that differs from 1/2 its distance from the one before
// (uvarint) and a byte.
func (p *Priors) Encode() []byte {
	b := []byte{byte(b2u(p.zstd))}
	last, at := 0, 0
	add := func(t []prob) {
		for i, v := range t {
			if v > probInit+priorLeast || v < probInit-priorLeast {
				b = binary.AppendUvarint(b, uint64(at+i-last))
				b = append(b, byte(v/priorStep))
				last = at + i
			}
		}
	}
	for _, t := range p.tables {
		add(t)
		at += len(t)
	}
	for i := range kindProbs / 8 {
		add(p.group(i))
		at += 8
	}
	return b
}

// DecodePriors is the inverse of Encode, but for the lowest bits: what it returns and all that encoding and decoding that
// again returns are the same. Whatever b is, guides can begin with what comes out.
func DecodePriors(b []byte) (*Priors, error) {
	if len(b) == 0 || len(b) > maxPriors || b[0] > 1 {
		return nil, ErrRecipe
	}
	p := NewPriors(b[0] == 1)
	all := append(p.tables[:len(p.tables):len(p.tables)], p.kind)
	at := uint64(0)
	for b = b[1:]; len(b) > 0; {
		d, n := binary.Uvarint(b)
		if n <= 0 || n >= len(b) || d > 1<<32 {
			return nil, ErrRecipe
		}
		v := prob(min(max(b[n], 1), 1<<probBits/priorStep-2))*priorStep + priorStep/2
		b = b[n+1:]
		at += d
		for len(all) > 0 && at >= uint64(len(all[0])) {
			at -= uint64(len(all[0]))
			all = all[1:]
		}
		if len(all) == 0 {
			return nil, ErrRecipe
		}
		all[0][at] = v
	}
	p.compact()
	return p, nil
}
