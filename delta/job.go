package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/redeflate"
)

// run makes one file.
func (a *applier) run(ctx context.Context, j *job) (err error) {
	defer a.objects.Release(j.held)
	views, closeViews, err := a.views(ctx, j.rec)
	defer closeViews()
	if err != nil {
		return err
	}
	out, err := a.target.open(j.rec, views)
	if err != nil {
		return err
	}
	crc := &checked{sink: out, a: a}
	switch j.rec.method {
	case methodCopy:
		if first := views[0]; first.size != j.rec.size {
			err = &SourceError{Path: first.path, Want: fmt.Sprintf("of %d bytes", j.rec.size), Have: fmt.Sprintf("of %d bytes", first.size)}
			break
		}
		asm := newAssembler(views, true, crc)
		if err = asm.do(action{op: op{kind: opCopy, length: j.rec.size}}); err == nil {
			err = asm.finish()
			crc.sum = asm.crc
		}
	case methodPatch:
		asm := newAssembler(views, j.rec.cloned, shareThrough(crc, out))
		if err = a.consume(ctx, j, asm.do); err == nil {
			err = asm.finish()
			crc.sum = asm.crc
		}
	case methodObject, methodProgram:
		if a.inFile(j.rec, views[0].size+j.rec.size) {
			err = a.largeProgram(ctx, views[0], j, crc)
		} else {
			err = a.object(ctx, views[0], j, crc)
		}
	case methodRestore:
		err = a.restore(ctx, views, j, crc)
		if damage := (*bundle.DamageError)(nil); j.rec.image() && errors.As(err, &damage) {
			// Rotten tables make another image of it, which the operations do not fit.
			err = &SourceError{Path: views[0].path, Want: "the image that the bundle was made with", Have: err.Error()}
		}
	case methodKernel:
		err = a.kernel(ctx, views[0], j, crc)
	case methodPacked:
		err = a.packed(ctx, views[0], j, crc)
	}
	if err == nil && crc.sum != j.rec.crc {
		err = badSource(views, j.rec.crc, crc.sum)
	}
	if err != nil {
		if c, ok := out.(io.Closer); ok {
			c.Close()
		}
		return err
	}
	if err := a.target.close(j.rec, out); err != nil {
		return err
	}
	close(a.ready[j.rec.index])
	return nil
}

// badSource blames the source: what the bundle brought was checked.
func badSource(views []*view, want, have uint32) error {
	e := &SourceError{Path: "its content", Want: fmt.Sprintf("content that makes checksum %08x", want), Have: fmt.Sprintf("%08x", have)}
	for i, v := range views {
		if i == 0 {
			e.Path = v.path
		} else {
			e.Path += " or " + v.path
		}
	}
	return e
}

func (a *applier) consume(ctx context.Context, j *job, do func(action) error) error {
	for {
		select {
		case batch, ok := <-j.feed:
			if !ok {
				return ctx.Err()
			}
			var held int64
			for i := range batch {
				held += int64(len(batch[i].data))
			}
			var err error
			for i := range batch {
				if err = do(batch[i]); err != nil {
					break
				}
			}
			a.sem.Release(held)
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// restore compresses what the actions make.
func (a *applier) restore(ctx context.Context, views []*view, j *job, out *checked) error {
	if j.held > 0 { // more than restoreFree
		a.forgetBuffers()
	}
	r := &redeflate.Restorer{Workers: 2}
	if s := j.rec.sources; len(s) > 0 && !s[0].new {
		// The view may be of what is inside.
		f, _, err := openRegular(a.base, views[0].path)
		if err != nil {
			return err
		}
		defer f.Close()
		r.Old = f
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return a.recompress(r, j, out, func(w io.Writer) error {
		asm := newAssembler(views, false, writerSink{w})
		err := a.consume(ctx, j, asm.do)
		if err == nil {
			err = asm.finish()
		}
		return err
	}, cancel)
}

// object makes a relocatable or linked file in memory.
func (a *applier) object(ctx context.Context, v *view, j *job, out *checked) error {
	src, dst := a.take(v.size), a.take(j.rec.size)
	defer a.give(src)
	defer a.give(dst)
	if _, err := v.handle(); err != nil {
		return err
	}
	if n, err := v.ReadAt(src, 0); n < len(src) {
		return fmt.Errorf("cannot read %s: %w", v.path, err)
	}
	var b interface {
		do(action) error
		content() (content []byte, complete bool)
	}
	var err error
	if j.rec.method == methodObject {
		b, err = newObjectBuilder(a.hints, src, dst, j.rec.head)
	} else {
		b, err = newProgramBuilder(src, dst, j.rec.head, j.rec.moves)
	}
	if err != nil {
		return err
	}
	if err := a.consume(ctx, j, b.do); err != nil {
		return err
	}
	if _, complete := b.content(); !complete {
		return damaged("an object that is not complete")
	}
	out.sum = crc32.Checksum(dst, castagnoli)
	flags := make([]bool, assembleSize/blockSizeFS)
	for at := 0; at < len(dst); at += assembleSize {
		p := dst[at:min(at+assembleSize, len(dst))]
		changed := flags[:(len(p)+blockSizeFS-1)/blockSizeFS]
		for i := range changed {
			changed[i] = true
			if q := p[i*blockSizeFS : min((i+1)*blockSizeFS, len(p))]; j.rec.cloned && int64(at+i*blockSizeFS+len(q)) <= v.size {
				old, err := v.bytes(int64(at+i*blockSizeFS), len(q))
				if err != nil {
					return err
				}
				changed[i] = !bytes.Equal(old, q)
			}
		}
		if err := out.put(p, int64(at), changed); err != nil {
			return err
		}
	}
	return nil
}

// take returns a buffer for an object, give puts it back: without that the garbage of a few thousand
// kernel modules would be the greater part of the memory.
func (a *applier) take(n int64) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, b := range a.buffers {
		if int64(cap(b)) >= n {
			a.buffers = append(a.buffers[:i], a.buffers[i+1:]...)
			return b[:n]
		}
	}
	if len(a.buffers) > 0 { // all too small: let one go
		a.buffers = a.buffers[1:]
	}
	return make([]byte, n, max(n, 1<<20))
}

func (a *applier) give(b []byte) {
	a.mu.Lock()
	if len(a.buffers) < 2*a.jobs && cap(b) <= 4<<20 {
		a.buffers = append(a.buffers, b)
	}
	a.mu.Unlock()
}

// views opens the sources of a record.
func (a *applier) views(ctx context.Context, rec *record) (views []*view, closeAll func(), err error) {
	var closers []io.Closer
	closeAll = func() {
		for _, c := range closers {
			c.Close()
		}
	}
	for i, src := range rec.sources {
		v := &view{}
		if src.new {
			v.path, v.size = a.news.entries[src.index].path, a.sizes[src.index]
			select {
			case <-a.ready[src.index]:
			case <-ctx.Done():
				return nil, closeAll, ctx.Err()
			}
			v.open = func() (*os.File, int64, error) { return a.target.openNew(src.index) }
		} else {
			e := &a.olds.entries[src.index]
			v.path, v.size = e.path, e.size
			v.open = func() (*os.File, int64, error) { return openRegular(a.base, e.path) }
		}
		closers = append(closers, v)
		switch {
		case !src.expanded || rec.inPieces():
		case i > 0:
			v.size, v.dir = src.size, a.stage.root
		default:
			if err := a.expand(v, &closers); err != nil {
				return nil, closeAll, err
			}
		}
		views = append(views, v)
	}
	return views, closeAll, nil
}

// expand replaces a view of a compressed file by one of what is inside.
func (a *applier) expand(v *view, closers *[]io.Closer) error {
	f, err := v.handle()
	if err != nil {
		return err
	}
	im, err := redeflate.OpenImage(f, v.size)
	switch {
	case err == nil: // what is read of it is expanded then
		*closers = append(*closers, f)
		v.ReaderAt, v.size = im, im.Size()
		return nil
	case errors.Is(err, redeflate.ErrDamaged):
		return &SourceError{Path: v.path, Want: "a squashfs image", Have: err.Error()}
	case !errors.Is(err, redeflate.ErrUnsupported):
		return fmt.Errorf("cannot read %s: %w", v.path, err)
	}
	m := &memoryFirst{dir: a.stage.root}
	*closers = append(*closers, m)
	if err := redeflate.Expand(m, f, v.size); err != nil {
		return &SourceError{Path: v.path, Want: "compressed data", Have: err.Error()}
	}
	v.Close()
	v.ReaderAt, v.size = m, m.size
	return nil
}
