package delta

import (
	"bufio"
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/btrovl/btrovl/delta/btf"
	"github.com/btrovl/btrovl/delta/redeflate"
)

// kernel makes a compressed kernel.
func (a *applier) kernel(ctx context.Context, v *view, j *job, out *checked) error {
	a.forgetBuffers()
	log := newActionLog(a.stage.root)
	defer log.m.Close()
	if err := a.consume(ctx, j, log.put); err != nil {
		return err
	}
	if err := log.rewind(); err != nil {
		return err
	}
	types, err := decodeTypes(j.types)
	if err != nil {
		return err
	}
	f, err := v.handle()
	if err != nil {
		return err
	}
	src, err := newKernelSource(a.stage.root, a.window)
	if err != nil {
		return err
	}
	defer src.f.Close()
	r := &redeflate.Restorer{Workers: 2, Old: f, Moves: j.rec.redeflateMoves()}
	if _, err := r.Learn(src, v.size, j.recipe); err != nil {
		if src.failed != nil {
			return src.failed
		}
		if bad, ok := errors.AsType[*redeflate.RecipeError](err); ok {
			return damaged("a wrong recipe: %v", bad)
		}
		return &SourceError{Path: v.path, Want: "a compressed kernel", Have: err.Error()}
	}
	b, err := newKernelBuilder(j.rec, src.size)
	if err != nil {
		return err
	}
	return a.recompress(r, j, out, func(w io.Writer) error {
		p := &kernelPatch{b: b, rec: j.rec, types: types, src: src, head: make([]byte, j.rec.head), w: bufio.NewWriterSize(w, 64<<10),
			v: &view{ReaderAt: src.f, size: src.size, path: v.path}}
		return p.run(log)
	}, func() {})
}

func decodeTypes(b []byte) (*btf.Map, error) {
	if len(b) == 0 {
		return nil, nil
	}
	m, err := btf.Decode(b)
	if err != nil {
		return nil, damaged("types of a kernel that are malformed")
	}
	return m, nil
}

// A kernelPatch makes plain.
type kernelPatch struct {
	b     *kernelBuilder
	rec   *record
	types *btf.Map
	src   *kernelSource
	v     *view  // of src
	head  []byte // of the new program
	w     *bufio.Writer
	at    int64 // in plain
	buf   [64 << 10]byte
}

func (p *kernelPatch) run(log *actionLog) error {
	data := make([]byte, pieceSize)
	for {
		a, err := log.next(data)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := p.step(&a); err != nil {
			return err
		}
	}
	return p.end()
}

// step runs one action.
func (p *kernelPatch) step(a *action) error {
	if a.ends() {
		return nil
	}
	before := len(p.b.pieces)
	if err := p.b.next(a); err != nil {
		return err
	}
	if err := p.write(a); err != nil {
		return err
	}
	if first := len(p.b.pieces) < before && p.at == p.rec.kernel.new.from+p.rec.head; first {
		if err := p.src.rewrite(p.rec.kernel.old, p.head, p.rec.moves, p.types); err != nil {
			return err
		}
		p.v.win = nil // it was read before
	}
	return nil
}

// end hands on what is left.
func (p *kernelPatch) end() error {
	if len(p.b.pieces) > 0 {
		return damaged("a kernel that is not complete")
	}
	return p.w.Flush()
}

// write makes the bytes of an action.
func (p *kernelPatch) write(a *action) error {
	for done := int64(0); done < a.length; {
		out := p.buf[:min(int64(len(p.buf)), a.length-done)]
		if a.kind == opCopy || a.kind == opAdd {
			src, err := p.v.bytes(a.pos+done, len(out))
			if err != nil {
				return err
			}
			if a.kind == opAdd {
				addBytes(out, src, a.data[done:])
			} else {
				out = src
			}
		} else {
			out = a.data[done : done+int64(len(out))]
		}
		if at := p.at - p.rec.kernel.new.from; at < p.rec.head && at+int64(len(out)) > 0 {
			copy(p.head[max(at, 0):], out[max(-at, 0):])
		}
		if _, err := p.w.Write(out); err != nil {
			return err
		}
		done += int64(len(out))
		p.at += int64(len(out))
	}
	return nil
}

// recompress makes the file of the plain that fn writes. stop ends an fn that waits for
// something else than to write.
func (a *applier) recompress(r *redeflate.Restorer, j *job, out *checked, fn func(io.Writer) error, stop func()) error {
	pr, pw := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		err := fn(pw)
		pw.CloseWithError(err)
		return err
	})
	err := a.recompressFrom(r, j, out, pr)
	if err != nil {
		pr.CloseWithError(err)
		stop()
	}
	if failed := g.Wait(); failed != nil && (err == nil || errors.Is(err, failed)) {
		err = failed
	}
	return err
}

// recompressFrom makes the file of plain.
func (a *applier) recompressFrom(r *redeflate.Restorer, j *job, out *checked, plain io.Reader) error {
	w := newSinkWriter(out, j.rec.size)
	err := r.Restore(w, plain, j.recipe)
	if bad, ok := errors.AsType[*redeflate.RecipeError](err); ok {
		err = damaged("a wrong recipe: %v", bad)
	}
	if errors.Is(err, redeflate.ErrOld) {
		if len(j.rec.sources) == 0 || j.rec.sources[0].new {
			return damaged("a recipe that wants an old file, of a record that has none")
		}
		err = &SourceError{Path: a.olds.entries[j.rec.sources[0].index].path, Want: "what the recipe was made with", Have: err.Error()}
	}
	if err == nil {
		err = w.finish(j.rec.size)
	}
	out.sum = w.crc
	return err
}

// restoreFree is what compressing again takes of no other's memory; beyond it, less is left for objects. Packed
// objects are many: they hold all that they take, and so none is at work beside a kernel that takes what it may.
const restoreFree = 16 << 20

// hold returns how much of the memory for objects a record takes that is compressed again, and
// refuses what takes more than a manifest allows.
func (a *applier) hold(j *job) (int64, error) {
	need, err := redeflate.Memory(j.recipe, 2)
	if err != nil {
		return 0, damaged("a wrong recipe: %v", err)
	}
	need += j.rec.memory()
	if limit := restoreLimit(a.memory); need > limit {
		return 0, damaged("a file that takes %d bytes of memory where %d are allowed", need, limit)
	}
	if j.rec.method != methodPacked {
		need -= restoreFree
	}
	if j.rec.image() {
		need = max(need, 0) + redeflate.ImageMemory
	}
	return min(max(need, 0), a.objectLimit), nil
}

// recipe reads what a record has in the recipe stream.
func (r *sectionReader) recipe(j *job) error {
	if !j.rec.recompressed() {
		return nil
	}
	j.recipe, j.types = make([]byte, j.rec.recipe), make([]byte, j.rec.kernel.types)
	if err := r.bytes(streamRecipe, j.recipe); err != nil {
		return err
	}
	return r.bytes(streamRecipe, j.types)
}
