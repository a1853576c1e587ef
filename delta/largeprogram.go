package delta

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"unsafe"

	"github.com/btrovl/btrovl/delta/exe"
)

// Programs beyond the memory for objects (Go's, browsers', virtual machines') are made as the
// programs in kernels are: the source lies in a nameless file and is brought up to date
// there, the content passes through a window. The operations are the same, and no record says which way
// is taken: that depends on the sizes and on the memory that the manifest states.

// maxProgram bounds a program and its source, each.
const maxProgram = maxKernel

// inFile reports whether a record is made in a file because its source and content, size
// bytes together, are too much to be held.
func (a *applier) inFile(rec *record, size int64) bool {
	return rec.method == methodProgram && size > a.objectLimit && size <= 2*maxProgram
}

// fileHeld is what making a program in a file takes of the memory for objects: a bit for each
// byte of the source (package exe), moves and pieces, buffers.
func (r *record) fileHeld(source int64) int64 {
	return source/8 + int64(len(r.moves))*int64(2*unsafe.Sizeof(exe.Move{})+2*unsafe.Sizeof(piecePair{})) + r.head + 2<<20
}

// largeProgram makes a linked file of a source that lies in a file.
func (a *applier) largeProgram(ctx context.Context, v *view, j *job, out *checked) error {
	if _, err := v.handle(); err != nil {
		return err
	}
	src, err := newKernelSource(a.stage.root, a.window)
	if err != nil {
		return err
	}
	defer src.f.Close()
	if _, err := io.CopyBuffer(src, io.NewSectionReader(v, 0, v.size), make([]byte, pieceSize)); err != nil {
		if src.failed != nil {
			return src.failed
		}
		return &SourceError{Path: v.path, Want: "a program", Have: err.Error()}
	}
	if src.size != v.size {
		return &SourceError{Path: v.path, Want: "all of it", Have: "less"}
	}
	rec := *j.rec
	rec.plain = rec.size
	rec.kernel = kernelRecord{old: span{0, v.size}, new: span{0, rec.size}}
	b, err := newKernelBuilder(&rec, src.size)
	if err != nil {
		return err
	}
	var to sink = out
	if rec.cloned {
		to = &besideClone{out, v}
	}
	w := newSinkWriter(to, rec.size)
	p := &kernelPatch{b: b, rec: &rec, src: src, head: make([]byte, rec.head), w: bufio.NewWriterSize(w, 64<<10),
		v: &view{ReaderAt: src.f, size: src.size, path: v.path}}
	if err := a.consume(ctx, j, func(c action) error { return p.step(&c) }); err != nil {
		return err
	}
	if err := p.end(); err != nil {
		return err
	}
	err = w.finish(rec.size)
	out.sum = w.crc
	return err
}

// besideClone compares what is put with the file that the content started as: what is
// the same need not be written.
type besideClone struct {
	sink
	v *view
}

func (b *besideClone) put(p []byte, at int64, changed []bool) error {
	for i := range changed {
		q := p[i*blockSizeFS : min((i+1)*blockSizeFS, len(p))]
		pos := at + int64(i*blockSizeFS)
		if changed[i] = true; pos+int64(len(q)) <= b.v.size {
			old, err := b.v.bytes(pos, len(q))
			if err != nil {
				return err
			}
			changed[i] = !bytes.Equal(old, q)
		}
	}
	err := b.sink.put(p, at, changed)
	for i := range changed {
		changed[i] = true // they are the writer's
	}
	return err
}
