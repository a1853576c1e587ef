package redeflate

import (
	"encoding/binary"
	"io"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// A recipe is a byte for the version of its format and then operations, in the
// order of the file that they make. Numbers are unsigned varints.
//
//	operation          bytes
//	copy               0x00 length              plain as it is
//	literal            0x01 length data         bytes that are not in plain
//	deflate            0x02 model length        plain, compressed
//	   with checksum  +0x10                     followed by CRC-32 and length, as in gzip
//	                  +0x20                     followed by Adler-32, as in zlib
//	   with fixes     +0x08                     then follow: length fixes, see fix.go
//	lzma               0x03 length              plain, compressed: an LZMA2 stream
//	   after an old one +0x08                    of the old file: offset dictionary size
//	                                            length decisions, see package relz
//	xz                 0x04 length              a whole xz file
//	   after an old one +0x08                    as of lzma
//	                                            shape, two bytes: see xzfile.go
//	                                            length decisions
//	zstd               0x05 length              plain, compressed: a Zstandard frame; as lzma, the
//	                                            dictionary being the window
//	   xz and zstd after an old one, following
//	                   +0x10                    the probabilities begin with what they were at the end of the
//	                                            one before that follows, of the same kind; at first as without priors
//
// Lengths of plain are one too large; 0 means all that is left of it.
// model is family<<4 | level (model.go). A .gz document is
//
//	01  01 0a 1f8b0800000000000203  12 09 00
//	│   │     gzip's header         │  │  └ all of plain
//	│   └ literal, 10 bytes         │  └ GNU gzip -9
//	└ version                       └ deflate, with CRC-32 and length
const recipeVersion = 1

const (
	opCopy    = 0x00
	opLiteral = 0x01
	opDeflate = 0x02
	opLzma    = 0x03
	opXz      = 0x04
	opZstd    = 0x05
	opMask    = 0x07

	opFixes   = 0x08
	opOld     = 0x08
	opGzip    = 0x10
	opZlib    = 0x20
	opFollows = 0x10
	opKnown   = opMask | opFixes | opGzip | opZlib
	restOfAll = -1
)

// A recipeWriter builds a recipe.
type recipeWriter struct{ b []byte }

func (w *recipeWriter) number(n uint64) { w.b = binary.AppendUvarint(w.b, n) }

func (w *recipeWriter) plainLength(n int64) {
	if n == restOfAll {
		w.number(0)
		return
	}
	w.number(uint64(n) + 1)
}

func (w *recipeWriter) copy(n int64) {
	w.b = append(w.b, opCopy)
	w.plainLength(n)
}

func (w *recipeWriter) literal(p []byte) {
	if len(p) == 0 {
		return
	}
	w.b = append(w.b, opLiteral)
	w.number(uint64(len(p)))
	w.b = append(w.b, p...)
}

func (w *recipeWriter) deflate(trailer byte, m modelID, n int64, fixes []byte) {
	op := opDeflate | trailer
	if fixes != nil {
		op |= opFixes
	}
	w.b = append(w.b, op, byte(m))
	w.plainLength(n)
	if fixes != nil {
		w.number(uint64(len(fixes)))
		w.b = append(w.b, fixes...)
	}
}

func (w *recipeWriter) lzma(n int64, old *oldStream, decisions []byte) {
	w.decided(opLzma, n, old, decisions)
}

// decided writes that a stream is made by decisions.
func (w *recipeWriter) decided(op byte, n int64, old *oldStream, decisions []byte) {
	w.stream(op, n, old)
	w.number(uint64(len(decisions)))
	w.b = append(w.b, decisions...)
}

func (w *recipeWriter) xz(n int64, old *oldStream, x *xzShape, decisions []byte) {
	w.stream(opXz, n, old)
	w.b = append(w.b, x.kind, x.header)
	w.number(uint64(len(decisions)))
	w.b = append(w.b, decisions...)
}

func (w *recipeWriter) stream(op byte, n int64, old *oldStream) {
	if old != nil {
		op |= opOld
		if old.follows {
			op |= opFollows
		}
	}
	w.b = append(w.b, op)
	w.plainLength(n)
	if old != nil {
		w.number(uint64(old.at))
		w.number(uint64(old.stream.Dict))
		w.number(uint64(old.stream.Size))
	}
}

// A recipeReader takes a recipe apart. Its methods return a *RecipeError for
// everything that no recipeWriter writes.
type recipeReader struct {
	b      []byte
	next   int
	origin int // offset of b in the recipe
}

func (r *recipeReader) fail(reason string) error {
	return &RecipeError{Offset: int64(r.origin + r.next), Reason: reason}
}

func (r *recipeReader) done() bool { return r.next >= len(r.b) }

func (r *recipeReader) byte() (byte, error) {
	if r.done() {
		return 0, r.fail("it ends too early")
	}
	r.next++
	return r.b[r.next-1], nil
}

// number reads a number of at most limit.
func (r *recipeReader) number(limit uint64) (uint64, error) {
	v, n := binary.Uvarint(r.b[min(r.next, len(r.b)):])
	if n <= 0 {
		return 0, r.fail("a number is cut off or too large")
	}
	if v > limit {
		return 0, r.fail("a number is too large")
	}
	r.next += n
	return v, nil
}

func (r *recipeReader) bytes() ([]byte, error) {
	n, err := r.number(uint64(max(len(r.b)-r.next, 0)))
	if err != nil {
		return nil, err
	}
	if uint64(len(r.b)-r.next) < n {
		return nil, r.fail("it ends too early")
	}
	p := r.b[r.next : r.next+int(n)]
	r.next += int(n)
	return p, nil
}

// An operation is one step of a recipe.
type operation struct {
	op     byte
	length int64 // of plain, or restOfAll
	data   []byte
	model  model
	shape  xzShape // of opXz, without the stream
	fixes  []byte  // nil if there are none; of streams that are decided the decisions
	old    *oldStream
	at     int // offset of fixes in the recipe
}

// open reads the version.
func (r *recipeReader) open() error {
	v, err := r.byte()
	if err == nil && v != recipeVersion {
		r.next--
		err = r.fail("its version is unknown")
	}
	return err
}

// decided reports whether an operation makes a stream by decisions.
func decided(kind byte) bool { return kind == opLzma || kind == opXz || kind == opZstd }

// operation reads the next step, or returns io.EOF.
func (r *recipeReader) operation() (o operation, err error) {
	if r.done() {
		return o, io.EOF
	}
	if o.op, err = r.byte(); err != nil {
		return o, err
	}
	kind := o.op & opMask
	lzma := decided(kind)
	if o.op&^opKnown != 0 || kind < opDeflate && kind != o.op || lzma && o.op != kind && o.op != kind|opOld && (kind == opLzma || o.op != kind|opOld|opFollows) || kind > opZstd || o.op&opGzip != 0 && o.op&opZlib != 0 {
		r.next--
		return o, r.fail("an operation is unknown")
	}
	if kind == opLiteral {
		o.data, err = r.bytes()
		return o, err
	}
	if kind == opDeflate {
		id, err := r.byte()
		if err != nil {
			return o, err
		}
		var ok bool
		if o.model, ok = newModel(modelID(id)); !ok {
			return o, r.fail("an encoder is unknown")
		}
	}
	n, err := r.number(1 << 62)
	if err != nil {
		return o, err
	}
	o.length = int64(n) - 1
	if lzma && o.op&opOld != 0 {
		var v [3]uint64
		dict := uint64(relz.MaxDict)
		if kind == opZstd {
			dict = maxXzPlain
		}
		for i, most := range [3]uint64{1 << 40, dict, maxXzPlain} {
			if v[i], err = r.number(most); err != nil {
				return o, err
			}
		}
		o.old = &oldStream{op: kind, follows: o.op&opFollows != 0, at: int64(v[0]), stream: relz.Stream{Dict: int(v[1]), Size: int64(v[2])}}
	}
	if kind == opXz {
		for _, b := range []*byte{&o.shape.kind, &o.shape.header} {
			if *b, err = r.byte(); err != nil {
				return o, err
			}
		}
	}
	if o.op&opFixes != 0 || lzma {
		o.fixes, err = r.bytes()
		o.at = r.origin + r.next - len(o.fixes)
	}
	return o, err
}
