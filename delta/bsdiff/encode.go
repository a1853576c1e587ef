package bsdiff

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The Control stream is a row of groups:
//
//	insert   uvarint   bytes of Extra
//	seek     varint    (zigzag) source position minus the end of the last region
//	copy     uvarint   bytes as they are        ┐ again and again,
//	add      uvarint   bytes plus Diff          ┘ until add is 0
//
// A source position is one in the address space of all sources. The patch ends
// where the new file is complete: what would follow then is left out. The
// numbers are those of encoding/binary.

// Encode writes the patch that ops (from [Diff]) describe. Operations must make
// new from its first byte to its last.
func Encode(w *Writers, ops []Op, new []byte, sources [][]byte) error {
	starts := make([]int64, len(sources))
	sum := int64(0)
	for i, s := range sources {
		starts[i] = sum
		sum += int64(len(s))
	}
	e := encoder{w: w}
	at := int64(0)
	for i, op := range ops {
		if op.Length <= 0 || op.Length > int64(len(new))-at {
			return fmt.Errorf("operation %d does not fit the new file", i)
		}
		bytes := new[at : at+op.Length]
		at += op.Length
		if op.Kind == Insert {
			e.insert(op.Length)
			if err := writeAll(w[Extra], bytes); err != nil {
				return err
			}
			continue
		}
		src := sources[op.Source][op.Offset : op.Offset+op.Length]
		e.source(op.Kind, starts[op.Source]+op.Offset, op.Length)
		if op.Kind == Add {
			if err := writeDiff(w[DiffBytes], bytes, src); err != nil {
				return err
			}
		}
	}
	if at != int64(len(new)) {
		return fmt.Errorf("operations make %d of %d bytes", at, len(new))
	}
	return e.finish()
}

// An encoder writes the Control stream. It collects a number until the next
// operation shows that it is complete.
type encoder struct {
	w       *Writers
	state   int
	insertN int64
	copyN   int64
	addN    int64
	pos     int64 // source position behind the last operation
	seek    int64
	buf     []byte
}

// Where in a group the encoder is.
const (
	inInsert = iota // collecting insertN
	inSeek          // (decoder only) a seek is next
	inCopy          // collecting copyN
	inAdd           // collecting addN
)

func (e *encoder) insert(n int64) {
	if e.state != inInsert {
		e.endRuns()
	}
	e.insertN += n
}

func (e *encoder) source(k Kind, pos, n int64) {
	if e.state != inInsert && pos != e.pos {
		e.endRuns()
	}
	if e.state == inInsert {
		e.number(uint64(e.insertN))
		e.insertN = 0
		e.buf = binary.AppendVarint(e.buf, pos-e.pos)
		e.state = inCopy
	}
	e.pos = pos + n
	if k == Copy {
		if e.state == inAdd {
			e.endAdd()
		}
		e.copyN += n
		return
	}
	if e.state == inCopy {
		e.endCopy()
	}
	e.addN += n
}

func (e *encoder) endCopy() {
	e.number(uint64(e.copyN))
	e.copyN = 0
	e.state = inAdd
}

func (e *encoder) endAdd() {
	e.number(uint64(e.addN))
	e.addN = 0
	e.state = inCopy
}

// endRuns ends a group.
func (e *encoder) endRuns() {
	if e.state == inAdd {
		e.endAdd()
	}
	e.endCopy()
	e.endAdd() // 0
	e.state = inInsert
}

func (e *encoder) number(n uint64) {
	e.buf = binary.AppendUvarint(e.buf, n)
}

// finish writes what is pending, but not the numbers behind the last byte.
func (e *encoder) finish() error {
	switch {
	case e.state == inInsert && e.insertN > 0:
		e.number(uint64(e.insertN))
	case e.state == inCopy && e.copyN > 0:
		e.number(uint64(e.copyN))
	case e.state == inAdd && e.addN > 0:
		e.number(uint64(e.addN))
	}
	return writeAll(e.w[Control], e.buf)
}

// writeDiff writes new minus src, byte by byte.
func writeDiff(w io.Writer, new, src []byte) error {
	var buf [4096]byte
	for len(new) > 0 {
		n := min(len(new), len(buf))
		for i := range n {
			buf[i] = new[i] - src[i]
		}
		if err := writeAll(w, buf[:n]); err != nil {
			return err
		}
		new, src = new[n:], src[n:]
	}
	return nil
}

func writeAll(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}
