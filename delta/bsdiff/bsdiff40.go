package bsdiff

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"io"
	"math"
)

// BSDIFF40, the format of Colin Percival's bsdiff 4:
//
//	 0  8  "BSDIFF40"
//	 8  8  length of the control block
//	16  8  length of the diff block
//	24  8  length of the new file
//	32     control block, diff block, extra block, each a bzip2 stream
//
// The control block holds triples of integers: bytes of diff to add to the old
// file's, bytes of extra to insert, and how far to move in the old file then.
const (
	bsdiff40Magic  = "BSDIFF40"
	bsdiff40Header = 32
)

// WriteBSDIFF40 writes a patch from old to new that bspatch can apply. It holds the
// patch in memory.
func WriteBSDIFF40(ctx context.Context, w io.Writer, old, new []byte) error {
	regions, err := scan(ctx, newIndex(old), new, 0, 8) // a triple takes 24 bytes: bsdiff's own measure
	if err != nil {
		return err
	}
	var blocks [3]bytes.Buffer
	var z [3]*bzip2Writer
	for i := range z {
		z[i] = newBzip2Writer(&blocks[i])
	}
	// A triple is a region, what follows it, and the way to the next one: the first
	// region begins where both files begin, if it is empty otherwise.
	if len(regions) == 0 || regions[0].new > 0 || regions[0].old > 0 {
		regions = append([]region{{}}, regions...)
	}
	for i, r := range regions {
		next := region{new: len(new), old: r.old + r.n}
		if i+1 < len(regions) {
			next = regions[i+1]
		}
		var triple [24]byte
		putOfftout(triple[0:], int64(r.n))
		putOfftout(triple[8:], int64(next.new-r.new-r.n))
		putOfftout(triple[16:], int64(next.old-r.old-r.n))
		if len(new) > 0 {
			z[0].Write(triple[:])
		}
		if err := writeDiff(z[1], new[r.new:r.new+r.n], old[r.old:r.old+r.n]); err != nil {
			return err
		}
		z[2].Write(new[r.new+r.n : next.new])
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for i := range z {
		if err := z[i].Close(); err != nil {
			return err
		}
	}
	header := append([]byte(bsdiff40Magic), make([]byte, bsdiff40Header-len(bsdiff40Magic))...)
	putOfftout(header[8:], int64(blocks[0].Len()))
	putOfftout(header[16:], int64(blocks[1].Len()))
	putOfftout(header[24:], int64(len(new)))
	for _, b := range [][]byte{header, blocks[0].Bytes(), blocks[1].Bytes(), blocks[2].Bytes()} {
		if err := writeAll(w, b); err != nil {
			return err
		}
	}
	return nil
}

// ReadBSDIFF40 applies a patch that bsdiff (or [WriteBSDIFF40]) made: it reads old
// and writes the new file to w, at most maxSize bytes of it. The three blocks of the
// format are read side by side, hence the io.ReaderAt. Memory is bounded (bzip2's,
// about 12 MiB). Errors are *[FormatError], *[SourceError] and those of patch and w.
//
// The format has no sums: what was made is right only if the caller finds its digest
// to be right.
func ReadBSDIFF40(ctx context.Context, w io.Writer, old io.ReaderAt, oldSize int64, patch io.ReaderAt, patchSize, maxSize int64) error {
	var header [bsdiff40Header]byte
	if _, err := io.ReadFull(io.NewSectionReader(patch, 0, patchSize), header[:]); err != nil {
		return readError(err)
	}
	if string(header[:8]) != bsdiff40Magic {
		return damaged("it does not begin with %s", bsdiff40Magic)
	}
	control, diff, size := getOfftout(header[8:]), getOfftout(header[16:]), getOfftout(header[24:])
	rest := patchSize - bsdiff40Header
	if control < 0 || control > rest || diff < 0 || diff > rest-control || size < 0 {
		return damaged("the lengths in its header are out of range")
	}
	if size > maxSize {
		return damaged("it makes %d bytes; at most %d are allowed", size, maxSize)
	}
	open := func(from, n int64) io.Reader {
		return bzip2.NewReader(bufio.NewReaderSize(io.NewSectionReader(patch, from, n), 16<<10))
	}
	p := bspatch{
		ctx: ctx, w: w, old: old, oldSize: oldSize,
		control: open(bsdiff40Header, control),
		diff:    open(bsdiff40Header+control, diff),
		extra:   open(bsdiff40Header+control+diff, rest-control-diff),
		buf:     make([]byte, patchBuffer),
		add:     make([]byte, patchBuffer),
	}
	for left := size; left > 0; {
		made, err := p.triple(left)
		if err != nil {
			return bzip2Error(err)
		}
		left -= made
	}
	return nil
}

// bzip2Error makes errors of the bzip2 reader what they are.
func bzip2Error(err error) error {
	var s bzip2.StructuralError
	if errors.As(err, &s) {
		return damaged("%v", err)
	}
	return err
}

// A bspatch applies a BSDIFF40 patch.
type bspatch struct {
	ctx                  context.Context
	w                    io.Writer
	old                  io.ReaderAt
	oldSize              int64
	pos                  int64 // in old; may lie outside
	control, diff, extra io.Reader
	buf, add             []byte
	idle                 int // triples in a row that made nothing
}

// triple carries out one triple and returns how many bytes it made.
func (p *bspatch) triple(left int64) (made int64, err error) {
	var t [24]byte
	if _, err := io.ReadFull(p.control, t[:]); err != nil {
		return 0, readError(err)
	}
	add, extra, seek := getOfftout(t[0:]), getOfftout(t[8:]), getOfftout(t[16:])
	if add < 0 || add > left || extra < 0 || extra > left-add {
		return 0, damaged("a triple makes %d+%d bytes where %d are missing", add, extra, left)
	}
	if add+extra > 0 {
		p.idle = 0
	} else if p.idle++; p.idle > 1000 {
		return 0, damaged("its triples make nothing")
	}
	if err := p.copy(p.diff, add, true); err != nil {
		return 0, err
	}
	if err := p.copy(p.extra, extra, false); err != nil {
		return 0, err
	}
	const far = math.MaxInt64 / 4
	if p.pos += add; seek < -far || seek > far || p.pos+seek < -far || p.pos+seek > far {
		return 0, damaged("a seek by %d from %d", seek, p.pos)
	}
	p.pos += seek
	return add + extra, nil
}

// copy writes n bytes of r, with those of the old file added if add is set.
func (p *bspatch) copy(r io.Reader, n int64, add bool) error {
	for done := int64(0); done < n; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		b := p.buf[:min(n-done, patchBuffer)]
		if _, err := io.ReadFull(r, b); err != nil {
			return readError(err)
		}
		if add {
			// As in bspatch, what lies outside of the old file counts as zeros.
			from, to := max(p.pos+done, 0), min(p.pos+done+int64(len(b)), p.oldSize)
			if from < to {
				o := p.add[:to-from]
				if err := readSource([]io.ReaderAt{p.old}, Op{Offset: from}, 0, o); err != nil {
					return err
				}
				AddBytes(b[from-p.pos-done:][:len(o)], o)
			}
		}
		if _, err := p.w.Write(b); err != nil {
			return err
		}
		done += int64(len(b))
	}
	return nil
}
