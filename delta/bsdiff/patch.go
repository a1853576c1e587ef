package bsdiff

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// patchBuffer is how much [Patch] moves at a time.
const patchBuffer = 64 << 10

// A SourceError says that a source could not be read where the patch needs it:
// an I/O error, or a file that is shorter than it was said to be.
type SourceError struct {
	Source int // index
	Offset int64
	Err    error
}

func (e *SourceError) Error() string {
	return fmt.Sprintf("cannot read source %d at byte %d: %v", e.Source, e.Offset, e.Err)
}

func (e *SourceError) Unwrap() error { return e.Err }

// Patch runs all operations of d, reading from sources and writing the new file
// to w in order. It uses a fixed amount of memory (128 KiB). The caller compares
// the sum of what was written with what it should be.
func Patch(ctx context.Context, w io.Writer, sources []io.ReaderAt, d *Decoder) error {
	buf := make([]byte, patchBuffer)
	diff := make([]byte, patchBuffer)
	for {
		op, err := d.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for done := int64(0); done < op.Length; {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(op.Length-done, patchBuffer)]
			if op.Kind == Insert {
				_, err = io.ReadFull(d, b)
			} else {
				err = readSource(sources, op, done, b)
			}
			if err != nil {
				return err
			}
			if op.Kind == Add {
				if _, err := io.ReadFull(d, diff[:len(b)]); err != nil {
					return err
				}
				AddBytes(b, diff)
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			done += int64(len(b))
		}
	}
}

// readSource fills b with source bytes of op.
func readSource(sources []io.ReaderAt, op Op, done int64, b []byte) error {
	at := op.Offset + done
	n, err := sources[op.Source].ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &SourceError{op.Source, at + int64(n), err}
}

// AddBytes adds diff to b, byte by byte. diff may be longer than b.
func AddBytes(b, diff []byte) {
	diff = diff[:len(b)]
	for i, c := range diff {
		b[i] += c
	}
}
