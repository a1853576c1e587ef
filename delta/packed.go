package delta

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sort"

	"github.com/btrovl/btrovl/delta/redeflate"
)

// A packed object (methodPacked) is a relocatable ELF file inside of a compressed one, as
// distributions ship kernel modules (.ko.xz, .ko.gz, .ko.zst): plain is made as an object is (object.go) from what
// is inside of the old file, and compressed by the recipe. Which source bytes were used for
// which of the new ones is what the recipe takes for moves.
//
//	old file ─ expand ─▶ object ─┐
//	operations ──────────────────┴▶ new object ─ redeflate.Restore, with what the old file's ─▶ new file
//	                                              encoder decided
//
// All of it is held in memory: some 20 MB for a module of 1 MB, most of that the window and the tables
// of package relz.

// moduleInside returns what is inside of a compressed module, and how long what it expands to is, which begins with that.
func moduleInside(file []byte) (object []byte, expanded int64, ok bool) {
	if !redeflate.Recognize(file[:min(len(file), 1024)]) || redeflate.IsKernel(file) {
		return nil, 0, false
	}
	w := &memorySink{limit: maxObject}
	parts, err := redeflate.Contents(sinkAppender{w}, bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil, 0, false
	}
	object = w.b[:contentOf(parts)]
	_, ok = objectHead(object)
	return object, int64(len(w.b)), ok
}

// contentOf returns how much of what a file expands to is, from its start on, the content of its streams.
func contentOf(parts []redeflate.Segment) (n int64) {
	for _, s := range parts {
		if s.Offset != n {
			break
		}
		n += s.Length
	}
	return n
}

// packed looks whether a compressed module is best made of the object in an old one.
func (m *maker) packed(ctx context.Context, data []byte, cands []candidate, f *made) error {
	if f.info.Method != "" || m.o.without(stepModules) || m.o.without(stepUnpack) || len(cands) == 0 {
		return nil
	}
	new, _, ok := moduleInside(data)
	if !ok {
		return nil
	}
	for _, c := range cands {
		old, _, ok := moduleInside(c.data)
		if !ok {
			continue
		}
		k, err := m.packedAfter(ctx, data, c, new, old)
		if err != nil || k == nil {
			return err
		}
		m.became(f, k, c)
		return nil
	}
	return nil
}

// became replaces what is known of how a file is made; k is made of a candidate.
func (m *maker) became(f, k *made, c candidate) {
	k.info.Path, k.info.Size = f.info.Path, f.info.Size
	k.info.Method, k.info.Source, k.info.Why = methodNames[k.rec.method], m.olds.entries[c.index].path, c.why
	k.rec.index, k.rec.size, k.rec.crc = f.rec.index, f.rec.size, f.rec.crc
	k.written = f.rec.size
	*f = *k
}

// packedAfter makes a module of one old module; nil where that cannot be done in the memory that
// applying may take.
func (m *maker) packedAfter(ctx context.Context, data []byte, c candidate, new, old []byte) (*made, error) {
	d, err := diffObject(ctx, m.hints, new, old)
	if err != nil || d == nil {
		return nil, err
	}
	k := &made{rec: record{method: methodPacked, sources: []source{{index: c.index, expanded: true}},
		plain: int64(len(new)), inside: int64(len(old)), head: d.head}, actions: d.actions}
	u, err := redeflate.Unpack(data, redeflate.Options{Old: c.data, Moves: d.moves, MaxPlain: maxObject, Priors: m.hints.priors, Memory: restoreLimit(m.o.Memory) - k.rec.memory()})
	if err != nil || !bytes.Equal(u.Plain, new) {
		return nil, nil // what cannot be made again is shipped in another way
	}
	k.recipe, k.rec.recipe = u.Recipe, int64(len(u.Recipe))
	if need, err := redeflate.Memory(u.Recipe, 2); err != nil || need+k.rec.memory() > restoreLimit(m.o.Memory) {
		return nil, nil
	}
	k.info.Bytes = m.cost(d.actions) + k.rec.recipe
	return k, nil
}

// packed makes a compressed module.
func (a *applier) packed(ctx context.Context, v *view, j *job, out *checked) error {
	f, err := v.handle()
	if err != nil {
		return err
	}
	r := a.takeRestorer(j)
	defer func() { a.giveRestorer(r, j) }()
	r.Old, r.Moves, r.Priors = f, []redeflate.Move{}, a.hints.priors
	src, dst := a.take(j.rec.inside), a.take(j.rec.plain)
	defer a.give(src)
	defer a.give(dst)
	first := &firstBytes{b: src}
	parts, err := r.Learn(first, v.size, j.recipe)
	if bad, ok := errors.AsType[*redeflate.RecipeError](err); ok {
		return damaged("a wrong recipe: %v", bad)
	}
	if err != nil {
		return &SourceError{Path: v.path, Want: "a compressed object", Have: err.Error()}
	}
	if n := contentOf(parts); n != int64(len(src)) || first.n != len(src) {
		return &SourceError{Path: v.path, Want: plural(len(src), "byte", "bytes") + " inside", Have: plural(int(n), "byte", "bytes")}
	}
	b, err := newObjectBuilder(a.hints, src, dst, j.rec.head)
	if err != nil {
		return err
	}
	b.record = true
	if err := a.consume(ctx, j, b.do); err != nil {
		return err
	}
	if _, complete := b.content(); !complete {
		return damaged("an object that is not complete")
	}
	r.SetMoves(b.sortedMoves())
	return a.recompressFrom(r.Restorer, j, out, bytes.NewReader(dst))
}

// firstBytes is a writer that keeps as much as there is room for.
type firstBytes struct {
	b []byte
	n int // of b
}

func (f *firstBytes) Write(p []byte) (int, error) {
	f.n += copy(f.b[f.n:], p)
	return len(p), nil
}

// A usedRestorer has memory that is used again: without that, thousands of modules would be made in fresh
// pages, each of which the kernel has to clear.
type usedRestorer struct {
	*redeflate.Restorer
	size int64 // the most that a job with it held
}

// maxIdle is how much Restorers hold that nobody uses; nothing, where archives and kernels are made (forgetBuffers).
const maxIdle = 40 << 20

// takeRestorer returns one that served for as much before, or the one that served for most.
func (a *applier) takeRestorer(j *job) usedRestorer {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := sort.Search(len(a.restorers), func(k int) bool { return a.restorers[k].size >= j.held })
	if k = min(k, len(a.restorers)-1); k < 0 {
		return usedRestorer{Restorer: &redeflate.Restorer{Workers: 2}}
	}
	r := a.restorers[k]
	a.restorers = slices.Delete(a.restorers, k, k+1)
	return r
}

// giveRestorer puts it back. Of those that are too many the smallest goes: it is the cheapest to make.
func (a *applier) giveRestorer(r usedRestorer, j *job) {
	r.Old, r.size = nil, max(r.size, j.held)
	a.mu.Lock()
	defer a.mu.Unlock()
	idle := r.size
	for _, o := range a.restorers {
		idle += o.size
	}
	k := sort.Search(len(a.restorers), func(k int) bool { return a.restorers[k].size >= r.size })
	a.restorers = slices.Insert(a.restorers, k, r)
	for idle > maxIdle || len(a.restorers) > a.jobs {
		idle -= a.restorers[0].size
		a.restorers = slices.Delete(a.restorers, 0, 1)
	}
}

// forgetBuffers lets go of what is kept for modules: a kernel takes all the memory that there is, an archive much of it.
func (a *applier) forgetBuffers() {
	a.mu.Lock()
	a.buffers, a.restorers = nil, nil
	a.mu.Unlock()
}

// sortedMoves says in the order of the new object which source bytes were used. The parts of
// an object, and so the moves, do not follow one another in the file.
func (b *objectBuilder) sortedMoves() []redeflate.Move {
	if b.moves == nil {
		b.moves = []redeflate.Move{} // moves of which there are none, not no moves
	}
	slices.SortFunc(b.moves, func(x, y redeflate.Move) int { return int(x.New - y.New) })
	return b.moves
}

// moved notes that source bytes were used.
func (b *objectBuilder) moved(old, new, n int64) {
	if k := len(b.moves) - 1; k >= 0 && b.moves[k].Old+b.moves[k].Length == old && b.moves[k].New+b.moves[k].Length == new {
		b.moves[k].Length += n
		return
	}
	b.moves = append(b.moves, redeflate.Move{Old: old, New: new, Length: n})
}
