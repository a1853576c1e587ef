package delta

import (
	"bytes"
	"context"

	"github.com/btrovl/btrovl/delta/exe"
	"github.com/btrovl/btrovl/delta/redeflate"
)

// kernelIn looks whether a file is a compressed kernel.
func kernelIn(inv *inventory, i int) bool {
	e := &inv.entries[i]
	if e.size < 4<<10 || e.size > maxKernel {
		return false
	}
	f, _, err := openRegular(inv.root, e.path)
	if err != nil {
		return false // reading it will fail again, and be reported
	}
	defer f.Close()
	head := make([]byte, 1024)
	if _, err := f.ReadAt(head, 0); err != nil {
		return false
	}
	return redeflate.IsKernel(head)
}

// A kernelInside is what is inside of a compressed kernel.
type kernelInside struct {
	plain   []byte
	program span
}

// kernelInsideOf expands a kernel; ok is false where there is no program in it.
func kernelInsideOf(file []byte) (k kernelInside, ok bool) {
	w := &memorySink{limit: maxKernel}
	parts, err := redeflate.Contents(sinkAppender{w}, bytes.NewReader(file), int64(len(file)))
	if err != nil || len(parts) == 0 {
		return k, false
	}
	k.plain = w.b
	k.program = span{parts[0].Offset, parts[0].Offset + parts[0].Length}
	return k, exe.HeadSize(k.text()) > 0
}

func (k *kernelInside) text() []byte {
	return k.plain[k.program.from:k.program.to:k.program.to]
}

// sinkAppender is a memorySink as a writer.
type sinkAppender struct{ *memorySink }

func (s sinkAppender) Write(p []byte) (int, error) { return len(p), s.put(p, 0, nil) }

// kernel looks whether a compressed kernel is best made of the program in an old one.
func (m *maker) kernel(ctx context.Context, data []byte, cands []candidate, f *made) error {
	if m.o.without(stepKernels) || !redeflate.IsKernel(data) {
		return nil
	}
	new, ok := kernelInsideOf(data)
	if !ok {
		return nil
	}
	for _, c := range cands {
		old, ok := kernelInsideOf(c.data)
		if !ok {
			continue
		}
		k, err := m.kernelAfter(ctx, data, c, &new, &old)
		if err != nil || k == nil {
			return err
		}
		m.became(f, k, c)
		return nil
	}
	return nil
}

// kernelAfter makes a kernel of one old kernel; nil where that cannot be done in the memory that
// applying may take.
func (m *maker) kernelAfter(ctx context.Context, data []byte, c candidate, new, old *kernelInside) (*made, error) {
	moves, err := exe.Match(ctx, old.text(), new.text())
	if err != nil || len(moves) == 0 || len(moves) > maxMoves {
		return nil, err
	}
	k := &made{rec: record{method: methodKernel, sources: []source{{index: c.index, expanded: true}}, plain: int64(len(new.plain)),
		head: int64(exe.HeadSize(new.text())), moves: moves, kernel: kernelRecord{old: old.program, new: new.program}}}
	u, err := redeflate.Unpack(data, redeflate.Options{Old: c.data, Moves: k.rec.redeflateMoves(), MaxPlain: maxKernel, Memory: restoreLimit(m.o.Memory) - k.rec.memory()})
	if err != nil || !bytes.Equal(u.Plain, new.plain) {
		return nil, nil // what cannot be made again is shipped in another way
	}
	if need, err := redeflate.Memory(u.Recipe, 2); err != nil || need+k.rec.memory() > restoreLimit(m.o.Memory) {
		return nil, nil
	}
	k.recipe, k.rec.recipe = u.Recipe, int64(len(u.Recipe))
	types := exe.Types(old.text(), new.text())
	if types != nil {
		k.types = types.Encode()
		k.rec.kernel.types = int64(len(k.types))
	}
	b, err := newKernelBuilder(&k.rec, int64(len(old.plain)))
	if err != nil {
		return nil, nil // e.g. a head that is longer than the old program
	}
	src := bytes.Clone(old.plain)
	for first := true; len(b.pieces) > 0; first = false {
		p := b.pieces[0]
		text, from := new.plain[p.new.from:p.new.to], src[p.old.from:p.old.to]
		around := first || p.new.from >= new.program.to
		var actions []action
		if !around {
			actions = pieceActions(text, from)
		} else if actions, err = diffActions(ctx, text, sourcesOf(from)); err != nil {
			return nil, err
		}
		for _, a := range actions {
			if around && (a.kind == opCopy || a.kind == opAdd) {
				a.seek = a.pos + p.old.from - b.pos
			}
			k.actions = append(k.actions, a)
			if err := b.next(&a); err != nil {
				return nil, err
			}
		}
		if first {
			program := src[old.program.from:old.program.to:old.program.to]
			exe.Rewrite(program, new.text()[:k.rec.head], append([]exe.Move(nil), moves...))
			exe.RewriteTypes(program, types)
		}
	}
	k.actions = append(k.actions, action{op: op{kind: opRaw}})
	k.info.Bytes = m.cost(k.actions) + k.rec.recipe + int64(len(k.types)) + int64(4*len(moves))
	return k, nil
}
