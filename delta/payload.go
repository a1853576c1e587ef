package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"github.com/btrovl/btrovl/delta/bundle"
)

// chooseBase finds the section for a base.
func chooseBase(m *bundle.Manifest, o ApplyOptions, base *os.File) (int, error) {
	if len(m.From) == 0 {
		return 0, nil
	}
	if base == nil {
		return 0, &WrongBaseError{Want: m.From}
	}
	if o.BaseDigest == "" {
		return 0, nil
	}
	for i, f := range m.From {
		if f.Digest == o.BaseDigest {
			return i, nil
		}
	}
	return 0, &WrongBaseError{Want: m.From, Have: []bundle.BaseID{{Version: o.BaseVersion, Digest: o.BaseDigest}}}
}

// listings is readListings; where the base is the wrong one it looks up where it differs.
func (p *payload) listings(ctx context.Context, r *sectionReader, base *os.File) (olds, news *listing, err error) {
	olds, news, err = readListings(ctx, r, base, p.br.Manifest(), p.which)
	var wrong *WrongBaseError
	if errors.As(err, &wrong) && olds != nil {
		r.close()
		// Should the rest of the bundle be damaged: the base is wrong all the same.
		wrong.FirstDiff, _ = p.explain(olds)
	}
	return olds, news, err
}

// readListings lists the base, proves that it is the one that the section is for, and
// decodes the new listing against it.
func readListings(ctx context.Context, r *sectionReader, base *os.File, m *bundle.Manifest, which int) (olds, news *listing, err error) {
	olds = &listing{}
	var encoded []byte
	if len(m.From) > 0 {
		if olds, err = list(ctx, base); err != nil {
			return nil, nil, err
		}
		encoded = olds.encode()
		if sha256.Sum256(encoded) != r.head.base {
			return olds, nil, &WrongBaseError{Want: m.From[which : which+1], Have: []bundle.BaseID{{Version: "one with other names or attributes"}}}
		}
	}
	var src []*view
	if len(encoded) > 0 {
		src = []*view{{ReaderAt: bytesReaderAt(encoded), size: int64(len(encoded)), path: "the list of files"}}
	}
	out := &memorySink{limit: int64(r.head.listing)}
	a := newAssembler(src, false, out)
	if err := r.actions(a, int64(r.head.listing), func(c action) error { return a.do(c) }); err != nil {
		return nil, nil, err
	}
	if err := a.finish(); err != nil {
		return nil, nil, err
	}
	news, err = decodeListing(out.b)
	if err != nil {
		return nil, nil, damaged("a list of files that is malformed")
	}
	if n := len(olds.entries) + len(news.entries); listingMemory(n, int64(len(encoded)+len(out.b))) > allowedMemory(m) {
		return nil, nil, damaged("lists of %d files, but its manifest states %d bytes of memory", n, m.Apply.Memory)
	}
	return olds, news, nil
}

// actions reads the operations that make size bytes, with their data, and hands
// them to fn. Data stays valid: each action has its own. Long ones come in pieces.
func (r *sectionReader) actions(a *assembler, size int64, fn func(action) error) error {
	ops := opReader{r: r, total: a.total(), left: size}
	for ops.more() {
		o, err := ops.next()
		if err != nil {
			return err
		}
		if err := r.pieces(o, fn); err != nil {
			return err
		}
	}
	return nil
}

const pieceSize = 128 << 10

func (r *sectionReader) pieces(o op, fn func(action) error) error {
	if o.kind == opCopy || o.length == 0 {
		return fn(action{op: o})
	}
	stream := map[opKind]int{opAdd: streamDiff, opInsert: streamExtra, opRaw: streamRaw}[o.kind]
	for o.length > 0 {
		n := min(o.length, pieceSize)
		c := action{op: op{kind: o.kind, length: n, pos: o.pos, seek: o.seek}, data: make([]byte, n)}
		if err := r.bytes(stream, c.data); err != nil {
			return err
		}
		if err := fn(c); err != nil {
			return err
		}
		o.length -= n
		o.pos += n
		o.seek = 0
	}
	return nil
}

// memorySink keeps content in memory, up to a limit.
type memorySink struct {
	b     []byte
	limit int64
}

func (m *memorySink) put(p []byte, _ int64, _ []bool) error {
	if int64(len(m.b)+len(p)) > m.limit {
		return damaged("more than it says")
	}
	m.b = append(m.b, p...)
	return nil
}

// bytesReaderAt reads from memory.
type bytesReaderAt []byte

func (b bytesReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
