package bsdiff

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
)

// A FormatError says that a patch is damaged or does not fit its sources.
type FormatError struct {
	Reason string
}

func (e *FormatError) Error() string { return "damaged patch: " + e.Reason }

func damaged(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// A Decoder reads the operations of one patch. It allocates nothing that depends
// on the patch.
type Decoder struct {
	r     Readers
	ends  []int64 // of the sources in the address space
	left  int64   // bytes of the new file not yet made by an operation returned
	err   error   // what Next returns from now on
	state int     // as in encoder; inInsert: the next number is an insert

	kind Kind  // what remains of the number read last, to be returned in pieces
	n    int64 // (an operation ends at the border of a source)
	pos  int64 // source position of the next byte

	fresh bool  // the current group has made no byte yet
	empty bool  // its last copy was empty
	data  int64 // stream bytes of the current operation that were not read
	from  ByteReader
}

// NewDecoder returns a decoder of the patch that makes a file of the given size
// out of sources of the given sizes.
func NewDecoder(r Readers, sources []int64, size int64) *Decoder {
	d := &Decoder{r: r, left: size, ends: make([]int64, len(sources)), fresh: true}
	sum := int64(0)
	for i, n := range sources {
		if n < 0 || n > math.MaxInt64-sum {
			d.err = damaged("the sizes of the sources are out of range")
			return d
		}
		sum += n
		d.ends[i] = sum
	}
	if size < 0 {
		d.err = damaged("the size of the file is negative")
	}
	return d
}

// Next returns the next operation, io.EOF after the last one (the lengths of all
// operations then add up to the size given), a *[FormatError], or the error of a
// stream. Data of the operation before that the caller has not read is skipped.
func (d *Decoder) Next() (Op, error) {
	if d.err == nil && d.data > 0 {
		_, d.err = io.Copy(io.Discard, onlyReader{d})
	}
	for d.err == nil && d.n == 0 {
		d.err = d.number()
	}
	if d.err != nil {
		return Op{}, d.err
	}
	op := Op{Kind: d.kind, Length: d.n}
	if d.kind != Insert {
		op.Source = sort.Search(len(d.ends), func(i int) bool { return d.ends[i] > d.pos })
		start := int64(0)
		if op.Source > 0 {
			start = d.ends[op.Source-1]
		}
		op.Offset = d.pos - start
		op.Length = min(op.Length, d.ends[op.Source]-d.pos)
		d.pos += op.Length
	}
	d.n -= op.Length
	d.left -= op.Length
	switch op.Kind {
	case Add:
		d.from, d.data = d.r[DiffBytes], op.Length
	case Insert:
		d.from, d.data = d.r[Extra], op.Length
	}
	return op, nil
}

// number reads the next number of Control.
func (d *Decoder) number() error {
	if d.left == 0 {
		return io.EOF
	}
	if d.state == inSeek {
		return d.seek()
	}
	u, err := d.uvarint()
	if err != nil {
		return err
	}
	if u > uint64(d.left) {
		return damaged("an operation makes %d bytes where %d are missing", u, d.left)
	}
	d.n = int64(u)
	switch d.state {
	case inInsert:
		d.kind = Insert
		d.state = inSeek
		return nil
	case inCopy:
		d.kind = Copy
		d.state = inAdd
		d.empty = u == 0 // allowed at the start of a group, and before its end
	case inAdd:
		d.kind = Add
		d.state = inCopy
		if u == 0 {
			if d.fresh && d.empty {
				return damaged("a group without bytes")
			}
			d.state = inInsert
		}
	}
	if u > 0 {
		d.fresh = false
	}
	if d.n > d.end()-d.pos {
		return damaged("an operation reads %d source bytes at %d of %d", d.n, d.pos, d.end())
	}
	return nil
}

// seek reads a seek.
func (d *Decoder) seek() error {
	u, err := d.uvarint()
	if err != nil {
		return err
	}
	s := int64(u>>1) ^ -int64(u&1) // undo zigzag
	// Neither sum can overflow: pos and end are not negative.
	if s < -d.pos || s > d.end()-d.pos {
		return damaged("a seek by %d from %d leaves the sources (%d bytes)", s, d.pos, d.end())
	}
	d.pos += s
	d.state = inCopy
	d.fresh = true
	return nil
}

// uvarint reads one number of Control.
func (d *Decoder) uvarint() (uint64, error) {
	u := uint64(0)
	for shift := 0; ; shift += 7 {
		c, err := d.r[Control].ReadByte()
		if err != nil {
			return 0, readError(err)
		}
		if shift == 63 && c > 1 {
			return 0, damaged("a number of more than 64 bits")
		}
		u |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return u, nil
		}
	}
}

// end returns the size of the address space.
func (d *Decoder) end() int64 {
	if len(d.ends) == 0 {
		return 0
	}
	return d.ends[len(d.ends)-1]
}

// Read reads the stream bytes of the current operation: of DiffBytes for Add, of
// Extra for Insert. It returns io.EOF at the operation's end.
func (d *Decoder) Read(p []byte) (int, error) {
	if d.err != nil && d.err != io.EOF {
		return 0, d.err
	}
	if d.data == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > d.data {
		p = p[:d.data]
	}
	n, err := d.from.Read(p)
	d.data -= int64(n)
	if d.data > 0 && err != nil {
		d.err = readError(err)
		return n, d.err
	}
	return n, nil
}

// onlyReader hides what else a Decoder has from io.Copy.
type onlyReader struct{ io.Reader }

// readError makes the end of a stream within a patch what it is.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("a stream ends too early")
	}
	return err
}
