package delta

import (
	"bytes"
	"context"
	"hash/crc32"
	"math"

	"github.com/btrovl/btrovl/delta/exe"
)

// file finds the smallest way to make a new file.
func (m *maker) file(ctx context.Context, i int) *made {
	f := &made{}
	f.err = m.best(ctx, i, f)
	return f
}

func (m *maker) best(ctx context.Context, i int, f *made) error {
	e := &m.news.entries[i]
	data, err := m.news.content(i)
	if err != nil {
		return err
	}
	f.rec = record{index: i, size: e.size, crc: crc32.Checksum(data, castagnoli)}
	f.info = FileInfo{Path: e.path, Size: e.size}
	if m.copyOf(i, f) {
		return nil
	}
	cands, err := m.candidates(ctx, i, data)
	if err != nil {
		return err
	}
	if err := m.kernel(ctx, data, cands, f); err != nil {
		return err
	}
	if err := m.packed(ctx, data, cands, f); err != nil {
		return err
	}
	if err := m.image(ctx, data, cands, f); err != nil {
		return err
	}
	if f.info.Method == "" {
		if u, old := m.unpackAfter(data, cands); u != nil {
			if err := m.restore(ctx, data, u, old, f); err != nil {
				return err
			}
		}
	}
	return m.patch(ctx, data, cands, f)
}

// copyOf uses a file with the same content, in the old tree or written before.
func (m *maker) copyOf(i int, f *made) bool {
	if f.rec.size == 0 {
		f.rec.method = methodPatch
		f.info.Method = "empty"
		return true
	}
	if m.o.without(stepCopies) {
		return false
	}
	if k, ok := m.match.same(m.news.sums[i], f.info.Path); ok {
		f.rec.method, f.rec.sources = methodCopy, []source{{index: k}}
		f.info.Method, f.info.Source, f.info.Why = "copy", m.olds.entries[k].path, "same content"
		return true
	}
	if k, ok := m.newBySum[m.news.sums[i]]; ok && k != i {
		f.rec.method, f.rec.sources = methodCopy, []source{{index: k, new: true}}
		f.info.Method, f.info.Source, f.info.Why = "copy", m.news.entries[k].path, "same content, new too"
		return true
	}
	return false
}

// candidate is an old file to compare with.
type candidate struct {
	index int
	why   string
	data  []byte
}

func (m *maker) candidates(ctx context.Context, i int, data []byte) ([]candidate, error) {
	var c []candidate
	add := func(k int, why string) error {
		for _, have := range c {
			if have.index == k {
				return nil
			}
		}
		b, err := m.olds.content(k)
		if err == nil {
			c = append(c, candidate{k, why, b})
		}
		return err
	}
	for _, k := range m.match.byPath(m.news.entries[i].path, 2) {
		why := "path with other numbers"
		if m.olds.entries[k].path == m.news.entries[i].path {
			why = "same path"
		}
		if err := add(k, why); err != nil {
			return nil, err
		}
	}
	if len(c) > 0 || len(data) < 1<<10 || m.o.without(stepSimilar) {
		return c, nil
	}
	alike, err := m.match.sketches.alike(ctx, m.olds, data, 2)
	if err != nil {
		return nil, err
	}
	for _, k := range alike {
		if err := add(k, "similar content"); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// patch tries each candidate and none, and keeps the smallest.
func (m *maker) patch(ctx context.Context, data []byte, cands []candidate, f *made) error {
	best := f.info.Bytes
	if f.info.Method == "" {
		best = math.MaxInt64
	}
	for _, c := range cands {
		small := int64(len(data)+len(c.data)) <= objectLimit(m.o.Memory)
		var actions []action
		var head int64
		var object *objectDiff
		var err error
		if small && !m.o.without(stepModules) {
			object, err = diffObject(ctx, m.hints, data, c.data)
		}
		way := methodPatch
		if object != nil {
			way, actions, head = methodObject, object.actions, object.head
		} else if err == nil {
			actions, err = diffFile(ctx, data, c.data)
		}
		if err != nil {
			return err
		}
		n := m.cost(actions)
		var moves []exe.Move
		if object == nil && !m.o.without(stepPrograms) {
			moved, movedHead, along, ok, err := diffProgram(ctx, data, c.data)
			if err != nil {
				return err
			}
			if r := (record{head: movedHead, moves: along}); !small && r.fileHeld(int64(len(c.data))) > objectLimit(m.o.Memory) {
				ok = false
			}
			if k := m.cost(moved) + int64(4*len(along)); ok && k < n {
				n, way, actions, head, moves = k, methodProgram, moved, movedHead, along
			}
		}
		if n >= best {
			continue
		}
		best = n
		f.rec.method, f.rec.head, f.rec.moves, f.rec.sources = way, head, moves, []source{{index: c.index}}
		f.actions, f.recipe = actions, nil
		if f.rec.inMemory() {
			m.placeObject(f, data, c.data)
		} else {
			m.place(f)
		}
		f.info.Method, f.info.Source, f.info.Bytes, f.info.Why = methodNames[f.rec.method], m.olds.entries[c.index].path, n, c.why
	}
	if best > f.rec.size/8 {
		whole := []action{{op: op{kind: opInsert, length: f.rec.size}, data: data}}
		n := m.cost(whole)
		if n < best {
			if n > f.rec.size*31/32 {
				whole[0].kind = opRaw
			}
			f.rec.method, f.rec.sources, f.rec.cloned = methodPatch, nil, false
			f.actions, f.recipe, f.written = whole, nil, f.rec.size
			f.info.Method, f.info.Source, f.info.Bytes, f.info.Why = "whole", "", n, "nothing smaller was found"
		}
	}
	return nil
}

// place decides whether the file starts as a clone of its first source: if that
// spares blocks. It counts what must be written.
func (m *maker) place(f *made) {
	blocks := (f.rec.size + blockSizeFS - 1) / blockSizeFS
	dirty := make([]bool, blocks)
	at := int64(0)
	for i := range f.actions {
		a := &f.actions[i]
		same := a.pos == at && (a.kind == opCopy || a.kind == opAdd)
		switch {
		case same && a.kind == opAdd:
			for k, d := range a.data {
				if d != 0 {
					dirty[(at+int64(k))/blockSizeFS] = true
				}
			}
		case !same && a.length > 0:
			for b := at / blockSizeFS; b <= (at+a.length-1)/blockSizeFS; b++ {
				dirty[b] = true
			}
		}
		at += a.length
	}
	var n int64
	for _, d := range dirty {
		if d {
			n++
		}
	}
	f.rec.cloned = n*8 < blocks*7
	f.written = f.rec.size
	if f.rec.cloned {
		f.written = n * blockSizeFS
	}
}

// placeObject is place for objects, whose operations do not show what stays.
func (m *maker) placeObject(f *made, data, old []byte) {
	var n int64
	blocks := (f.rec.size + blockSizeFS - 1) / blockSizeFS
	for at := 0; at < len(data); at += blockSizeFS {
		end := min(at+blockSizeFS, len(data))
		if end > len(old) || !bytes.Equal(data[at:end], old[at:end]) {
			n++
		}
	}
	f.rec.cloned = n*8 < blocks*7
	f.written = f.rec.size
	if f.rec.cloned {
		f.written = n * blockSizeFS
	}
}
