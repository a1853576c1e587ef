package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/redeflate"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// maxExpanded is how much of an old file's inside is worth having on the device: it
// must be decompressed there, and beyond memoryFirstMax it goes through the disk.
const maxExpanded = 32 << 20

// An expanded candidate.
type insideOf struct {
	candidate
	plain []byte
	large bool // too much is inside: only the recipe may refer to it
}

// unpackAfter takes a file apart. The old file that its recipe may refer to is the one whose
// inside it is compared with; none if no candidate has one.
func (m *maker) unpackAfter(data []byte, cands []candidate) (*redeflate.Unpacked, *insideOf) {
	limit := int64(maxExpanded)
	if redeflate.IsKernel(data) {
		limit = maxKernel
	}
	if !redeflate.Recognize(data[:min(len(data), 1024)]) {
		return nil, nil
	}
	var old *insideOf
	o := redeflate.Options{Memory: restoreLimit(m.o.Memory)}
	for _, c := range cands {
		w := sinkAppender{&memorySink{limit: limit}}
		err := redeflate.Expand(w, bytes.NewReader(c.data), int64(len(c.data)))
		if err == nil {
			old, o.Old = &insideOf{candidate: c, plain: w.b}, c.data
			break
		}
		if damage := (*bundle.DamageError)(nil); old == nil && errors.As(err, &damage) { // the limit
			old, o.Old = &insideOf{candidate: c, large: true}, c.data
		}
	}
	u, err := redeflate.Unpack(data, o)
	if err != nil {
		return nil, nil
	}
	if need, err := redeflate.Memory(u.Recipe, 2); err != nil || need > restoreLimit(m.o.Memory) {
		return nil, nil
	}
	if old != nil && old.large && !redeflate.NeedsOld(u.Recipe) {
		old = nil
	}
	return u, old
}

// restore patches what is inside of a compressed file: members that are files of the
// system cost nothing, the rest is compared with the inside of an old version.
func (m *maker) restore(ctx context.Context, data []byte, u *redeflate.Unpacked, from *insideOf, f *made) error {
	var sources []source
	var old []byte
	if from != nil {
		old = from.plain
		sources = append(sources, source{index: from.index, expanded: !from.large})
		f.info.Source, f.info.Why = m.olds.entries[from.index].path, from.why
	}
	// What is a member of an archive and a file of the system is copied; the rest is one text.
	type piece struct {
		member bool
		pos, n int64
	}
	var pieces []piece
	var rest []byte
	total, members := int64(len(old)), 0
	if from != nil && from.large {
		total = int64(len(from.data))
	}
	at := make(map[source]int64) // position of a source in the address space
	for _, s := range u.Segments {
		p := u.Plain[s.Offset : s.Offset+s.Length]
		if src, ok := m.member(s, p); ok && len(sources) < maxSources && (!src.expanded || len(sources) > 0) {
			pos, seen := at[src]
			if !seen {
				pos = total
				at[src] = pos
				sources = append(sources, src)
				total += max(s.Length, src.size)
			}
			pieces = append(pieces, piece{true, pos, s.Length})
			members++
			continue
		}
		rest = append(rest, p...)
		if k := len(pieces) - 1; k >= 0 && !pieces[k].member {
			pieces[k].n += s.Length
		} else {
			pieces = append(pieces, piece{n: s.Length})
		}
	}
	patch, err := diffActions(ctx, rest, sourcesOf(old))
	if err != nil {
		return err
	}
	var actions []action
	for _, p := range pieces {
		if p.member {
			actions = append(actions, action{op: op{kind: opCopy, length: p.n, pos: p.pos}})
			continue
		}
		var next []action
		next, patch = split(patch, p.n)
		actions = append(actions, next...)
	}
	f.rec.method, f.rec.sources, f.rec.cloned = methodRestore, sources, false
	f.rec.plain, f.rec.recipe = int64(len(u.Plain)), int64(len(u.Recipe))
	f.actions, f.recipe, f.written = actions, u.Recipe, f.rec.size
	f.info.Method, f.info.Bytes = methodNames[methodRestore], m.cost(actions)+int64(len(u.Recipe))
	if members > 0 {
		f.info.Why = plural(members, "member is a file", "members are files") + " of the system"
	}
	return nil
}

// An insideFile is a new file with an object inside.
type insideFile struct {
	index    int
	expanded int64 // what the file expands to begins with the object, and is so long
}

// findInside looks into packed modules for members of archives that are no files of the system: what puts an initrd
// together unpacks modules first.
func (m *maker) findInside(held map[tree.Sum]bool) {
	if len(held) == 0 || m.o.without(stepMembers) {
		return
	}
	files := make(map[tree.Sum]bool, len(m.news.sums))
	for _, s := range m.news.sums {
		files[s] = true
	}
	missing := false
	for s := range held {
		missing = missing || !files[s]
	}
	if !missing {
		return
	}
	m.insides, m.insideHeld = make(map[tree.Sum]insideFile), make(map[int]bool)
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(m.o.Jobs)
	for i := range m.news.entries {
		if e := &m.news.entries[i]; !e.isRegular() || e.link >= 0 || !isModule(e.path) || strings.HasSuffix(e.path, ".ko") {
			continue
		}
		g.Go(func() error {
			data, err := m.news.content(i)
			if err != nil {
				return nil // reading it will fail again, and be reported
			}
			object, expanded, ok := moduleInside(data)
			if !ok {
				return nil
			}
			sum := tree.Sum(sha256.Sum256(object))
			mu.Lock()
			defer mu.Unlock()
			if have, ok := m.insides[sum]; held[sum] && (!ok || i < have.index) {
				m.insides[sum] = insideFile{i, expanded}
			}
			return nil
		})
	}
	g.Wait()
	for _, f := range m.insides { // not before: the first file with an object is it, whoever looks first
		m.insideHeld[f.index] = true
	}
}

// split returns actions that make n bytes, and those behind them. It changes patch.
func split(patch []action, n int64) (head, rest []action) {
	i := 0
	for ; n > 0; i++ {
		a := &patch[i]
		if a.length > n {
			first, behind := *a, a.cut(n)
			first.length = n
			if first.data != nil {
				first.data = first.data[:n:n]
			}
			*a = behind
			return append(patch[:i:i], first), patch[i:]
		}
		n -= a.length
	}
	return patch[:i:i], patch[i:]
}

// cut returns what remains of an action behind its first n bytes.
func (a action) cut(n int64) action {
	a.length -= n
	if a.kind == opCopy || a.kind == opAdd {
		a.pos += n
	}
	if a.data != nil {
		a.data = a.data[n:]
	}
	return a
}

// member finds the file of the system that a member of an archive is.
func (m *maker) member(s redeflate.Segment, p []byte) (source, bool) {
	if s.Kind != redeflate.Member || len(p) == 0 || m.o.without(stepMembers) {
		return source{}, false
	}
	sum := tree.Sum(sha256.Sum256(p))
	if k, ok := m.match.same(sum, s.Path); ok {
		return source{index: k}, true
	}
	if k, ok := m.newBySum[sum]; ok && m.early[k] {
		return source{index: k, new: true}, true
	}
	if in, ok := m.insides[sum]; ok {
		if k, ok := m.match.same(m.news.sums[in.index], m.news.entries[in.index].path); ok {
			return source{index: k, expanded: true, size: in.expanded}, true
		}
		if m.early[in.index] {
			return source{index: in.index, new: true, expanded: true, size: in.expanded}, true
		}
	}
	return source{}, false
}
