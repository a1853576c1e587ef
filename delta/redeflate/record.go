package redeflate

import (
	"encoding/binary"
)

// A recorder is a fixer that knows what the stream has and notes where the
// model differs. The bytes of stored blocks have no tokens; there the model's
// own are taken, cut where the block ends.
type recorder struct {
	actual []token
	next   int
	stored int // bytes left of the storedRun at next
	fixed  []fixedToken
	most   int // give up beyond so many

	blocks []blockInfo // may be nil
	block  int         // that the next token belongs to
	taken  int         // tokens or, if stored, bytes of it
	counts []int       // tokens of each block so far
}

type fixedToken struct {
	n uint64
	t token // noMatch for a literal
}

func (r *recorder) token(n uint64, t token, ahead int) (token, uint64, error) {
	if r.next >= len(r.actual) {
		return t, 0, errTooMany
	}
	want := r.actual[r.next]
	if want&storedRun != 0 {
		if r.stored == 0 {
			r.stored = int(want &^ storedRun)
		}
		want = t
		if t.length() > r.stored {
			want = noMatch
		}
		r.stored -= want.length()
		if r.stored == 0 {
			r.next++
		}
	} else {
		r.next++
		if want.length() > ahead {
			return t, 0, errTooMany
		}
	}
	if want != t {
		note := fixedToken{n: n, t: want}
		if !want.isMatch() {
			note.t = noMatch
		}
		r.fixed = append(r.fixed, note)
		if len(r.fixed) > r.most {
			return t, 0, errTooMany
		}
	}
	r.countIn(want)
	return want, n + 1, nil
}

// countIn counts a token in its block.
func (r *recorder) countIn(t token) {
	for r.block < len(r.blocks) && r.blockFull() {
		r.block++
		r.taken = 0
	}
	if r.block >= len(r.blocks) {
		return
	}
	for len(r.counts) <= r.block {
		r.counts = append(r.counts, 0)
	}
	r.counts[r.block]++
	if r.blocks[r.block].form == storedBlock {
		r.taken += t.length()
	} else {
		r.taken++
	}
}

func (r *recorder) blockFull() bool {
	b := r.blocks[r.block]
	if b.form == storedBlock {
		return r.taken >= b.bytes
	}
	return r.taken >= b.tokens
}

// appendTo writes the list of tokens as fix.go describes it.
func (r *recorder) appendTo(b []byte) []byte {
	next := uint64(0)
	for _, f := range r.fixed {
		b = binary.AppendUvarint(b, f.n-next)
		next = f.n + 1
		if f.t == noMatch {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(f.t.length()-2))
		b = binary.AppendUvarint(b, uint64(f.t.dist()))
	}
	return b
}

// A blockRecorder is a blockFixer that knows the blocks of the stream and notes
// where the model differs.
type blockRecorder struct {
	stream  []byte
	blocks  []blockInfo
	counts  []int
	entries []blockEntry
	differs bool // in what needs the number of blocks
	ends    bool // block entries has an explicit end
	longest int
}

type blockEntry struct {
	i   int
	fix blockFix
}

func (r *blockRecorder) tokens(i int) (int, error) {
	if i >= len(r.blocks) {
		return 0, errBlock
	}
	if i >= len(r.counts) {
		return 0, nil
	}
	return r.counts[i], nil
}

func (r *blockRecorder) ended(i, guess int, full, atEnd bool) (bool, error) {
	n, err := r.tokens(i)
	if err != nil {
		return false, err
	}
	r.longest = max(r.longest, n)
	last := i == len(r.blocks)-1
	if n != guess || n == 0 && !last {
		r.note(i).tokens = n
	}
	if last != (atEnd && !full) {
		r.differs = true
	}
	return last, nil
}

// note returns the entry of block i.
func (r *blockRecorder) note(i int) *blockFix {
	r.differs = true
	if n := len(r.entries); n == 0 || r.entries[n-1].i != i {
		r.entries = append(r.entries, blockEntry{i, blockFix{tokens: -1}})
	}
	return &r.entries[len(r.entries)-1].fix
}

func (r *blockRecorder) write(i int, b *blockWriter, plan blockType, data func() []byte, last bool) (bool, error) {
	info := r.blocks[i]
	if info.form != dynamicBlock {
		if plan != info.form {
			r.note(i).form = formFixed
			if info.form == storedBlock {
				r.note(i).form = formStored
			}
		}
		return true, b.writeAs(info.form, data, last)
	}
	n := int(info.body - info.header)
	header := bitsOf(r.stream, info.header, n)
	if plan == dynamicBlock && b.headerIs(header, n) {
		return false, nil
	}
	fix := r.note(i)
	fix.form, fix.header, fix.bits = formDynamic, header, n
	return true, b.writeWith(header, n, last)
}

// bitsOf copies n bits from an offset in bits.
func bitsOf(p []byte, from int64, n int) []byte {
	out := make([]byte, (n+7)/8)
	for i := 0; i < n; i++ {
		at := from + int64(i)
		out[i/8] |= p[at/8] >> (at % 8) & 1 << (i % 8)
	}
	return out
}

// headerIs reports whether trees would write just these bits.
func (b *blockWriter) headerIs(header []byte, n int) bool {
	probe := blockWriter{lit: b.lit, dist: b.dist, code: b.code, runs: b.runs}
	var c compareWriter
	c.want = header
	probe.out.reset(&c)
	probe.trees()
	bits := len(probe.out.buf)*8 + int(probe.out.n)
	return bits == n && probe.out.flush() == nil && len(c.want) == 0
}

// appendTo writes the blocks as fix.go describes them, and returns the number of
// tokens in the longest; 0 if the model gets them all right.
func (r *blockRecorder) appendTo(b []byte) (longest int, _ []byte) {
	if !r.differs {
		return 0, b
	}
	b = binary.AppendUvarint(b, uint64(len(r.blocks)))
	next := 0
	for _, e := range r.entries {
		b = binary.AppendUvarint(b, uint64(e.i-next))
		next = e.i + 1
		flags := e.fix.form
		if e.fix.tokens >= 0 {
			flags |= fixEnd
		}
		b = append(b, flags)
		if e.fix.tokens >= 0 {
			b = binary.AppendUvarint(b, uint64(e.fix.tokens))
		}
		if e.fix.form == formDynamic {
			b = binary.AppendUvarint(b, uint64(e.fix.bits))
			b = binary.AppendUvarint(b, uint64(len(e.fix.header)))
			b = append(b, e.fix.header...)
		}
	}
	return max(r.longest, 1), b
}
