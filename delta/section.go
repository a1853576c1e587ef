package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/btrovl/btrovl/delta/bsdiff"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// section is the compressed data for one base, and what applying it needs.
type section struct {
	part
	out   *spool
	needs bundle.Needs
}

// A maker makes one section.
type maker struct {
	o        *MakeOptions
	plan     partPlan
	olds     *inventory
	news     *inventory
	keep     []int
	match    *matcher
	newBySum map[tree.Sum]int // first new file with that content that has a record
	early    map[int]bool     // new files with a record that are made before all archives

	insides    map[tree.Sum]insideFile // objects inside of new files that archives hold
	insideHeld map[int]bool            // the new files
	w          *streamWriter
	c          cursor
	report     *Report
	hints      *hints
	needs      bundle.Needs
	estimate   chan *zstd.Encoder // one for each worker

	oldListing int64 // bytes of the old listing, encoded
}

// made is what a worker found out about one file.
type made struct {
	rec     record
	actions []action
	recipe  []byte
	types   []byte // of a kernel
	info    FileInfo
	written int64
	err     error
}

// A partPlan says which new files a section is for.
type partPlan struct {
	kind  partKind
	bases uint64
	only  func(i int) bool // shared and rescue: these
	skip  func(i int) bool // of a base, nil or: not these, they are shared
}

func makeSection(ctx context.Context, o *MakeOptions, olds, news *inventory, report *Report, plan partPlan) (*section, error) {
	o.journal.section()
	w, err := newStreamWriter(o.Spool)
	if err != nil {
		return nil, err
	}
	defer w.close()
	m := &maker{o: o, plan: plan, olds: olds, news: news, keep: kept(olds.listing, news.listing), match: newMatcher(olds, o.without(stepNumbers)), w: w, report: report,
		newBySum: make(map[tree.Sum]int), estimate: make(chan *zstd.Encoder, o.Jobs)}
	for range o.Jobs {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, err
		}
		m.estimate <- z
	}
	var h sectionHead
	if plan.kind == partShared {
		w.named = &namedSources{numbers: make(map[int]int), paths: func(i int) string { return olds.entries[i].path }}
	}
	if plan.kind == partBase {
		if err := m.listings(ctx, &h); err != nil {
			return nil, err
		}
	}
	if err := m.contents(ctx); err != nil {
		return nil, err
	}
	s := &section{part: part{kind: plan.kind, bases: plan.bases}, needs: m.needs}
	if s.out, err = newSpool(o.Spool); err != nil {
		return nil, err
	}
	for i := range h.codecs {
		h.codecs[i], h.dicts[i] = m.codec(i)
	}
	streams, err := w.pack(ctx, o.Spool, &h, s.out)
	if err != nil {
		s.out.close()
		return nil, err
	}
	report.Streams = append(report.Streams, streams...)
	s.needs.Memory = statedMemory(o.Memory, listingMemory(len(olds.entries)+len(news.entries), int64(h.listing)+m.oldListing))
	return s, nil
}

// codec chooses how a stream is compressed: windows are as large as the memory allows.
func (m *maker) codec(stream int) (codec, uint32) {
	if stream == streamRaw {
		return codecStore, 0
	}
	window := uint32(8 << 20)
	if m.o.Memory < DefaultMemory {
		window = 4 << 20
	}
	if stream == streamExtra {
		window *= 2
	}
	size := m.w.s[stream].n
	for window > 1<<16 && int64(window/2) >= size {
		window /= 2
	}
	if m.o.Compression == Fast {
		return codecZstd, window
	}
	return codecLZMA2, window
}

// listings writes the new listing as a patch of the old one.
func (m *maker) listings(ctx context.Context, h *sectionHead) error {
	old, new := []byte(nil), m.news.encode()
	if len(m.olds.entries) > 0 {
		old = m.olds.encode()
		h.base = sha256.Sum256(old)
		m.oldListing = int64(len(old))
	}
	if uint64(len(new)) > math.MaxUint32 {
		return fmt.Errorf("the list of files is too long")
	}
	h.listing = uint32(len(new))
	if m.o.without(stepListing) {
		old = nil
	}
	actions, err := diffActions(ctx, new, sourcesOf(old))
	if err != nil {
		return err
	}
	m.write(actions, false)
	return m.w.err
}

func sourcesOf(old []byte) [][]byte {
	if len(old) == 0 {
		return nil
	}
	return [][]byte{old}
}

// diffActions runs the matcher and attaches data.
func diffActions(ctx context.Context, new []byte, sources [][]byte) ([]action, error) {
	ops, err := bsdiff.Diff(ctx, new, sources, bsdiff.Options{})
	if err != nil {
		return nil, err
	}
	starts := make([]int64, len(sources))
	for i := 1; i < len(sources); i++ {
		starts[i] = starts[i-1] + int64(len(sources[i-1]))
	}
	actions := make([]action, 0, len(ops))
	var adds int64
	for _, o := range ops {
		if o.Kind == bsdiff.Add {
			adds += o.Length
		}
	}
	diffs := scratch(ctx, adds)
	at := int64(0)
	for _, o := range ops {
		n := new[at : at+o.Length]
		a := action{op: op{length: o.Length}}
		switch o.Kind {
		case bsdiff.Copy:
			a.kind, a.pos = opCopy, starts[o.Source]+o.Offset
		case bsdiff.Add:
			a.kind, a.pos = opAdd, starts[o.Source]+o.Offset
			src := sources[o.Source][o.Offset : o.Offset+o.Length]
			a.data, diffs = diffs[:o.Length:o.Length], diffs[o.Length:]
			for i := range a.data {
				a.data[i] = n[i] - src[i]
			}
		case bsdiff.Insert:
			a.kind, a.data = opInsert, n
		}
		actions = append(actions, a)
		at += o.Length
	}
	return actions, nil
}

// write codes actions.
func (m *maker) write(actions []action, object bool) {
	o := opWriter{w: m.w, object: object}
	for i := range actions {
		a := &actions[i]
		o.op(a.op)
		switch a.kind {
		case opAdd:
			m.w.bytes(streamDiff, a.data)
		case opInsert:
			m.w.bytes(streamExtra, a.data)
		case opRaw:
			m.w.bytes(streamRaw, a.data)
		}
		m.w.mark()
	}
}

// contents makes all records: workers look for the best way of each file, the writer
// takes their results in order.
func (m *maker) contents(ctx context.Context) error {
	order := m.order()
	var err error
	if m.hints, err = m.learnOnce(ctx, order); err != nil {
		return err
	}
	encoded := m.hints.encode()
	m.w.uint(streamControl, uint64(len(encoded)))
	m.w.bytes(streamRecipe, encoded)
	m.w.uint(streamControl, uint64(len(order)))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// window bounds the results that wait for their turn.
	window := 4 * m.o.Jobs
	results := make([]chan *made, len(order))
	next := make(chan int)
	tokens := make(chan struct{}, window)
	for i := range results {
		results[i] = make(chan *made, 1)
	}
	for range m.o.Jobs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				results[i] <- m.bounded(ctx, order[i])
			}
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer close(next)
		for i := range order {
			select {
			case tokens <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	var total, done int64
	for _, i := range order {
		total += m.news.entries[i].size
	}
	for k, i := range order {
		var f *made
		select {
		case f = <-results[k]:
		case <-ctx.Done():
			return ctx.Err()
		}
		if f.err != nil {
			return fmt.Errorf("cannot find a patch for %s: %w", m.news.entries[i].path, f.err)
		}
		m.w.record(&m.c, &f.rec)
		if f.rec.recompressed() {
			m.w.bytes(streamRecipe, f.recipe)
			m.w.bytes(streamRecipe, f.types)
		}
		m.write(f.actions, f.rec.inPieces())
		if m.w.err != nil {
			return m.w.err
		}
		m.report.Files = append(m.report.Files, f.info)
		m.needs.Files++
		m.needs.NewData += f.rec.size
		m.needs.Written += f.written
		done += f.rec.size
		if m.o.Progress != nil {
			m.o.Progress(done, total)
		}
		<-tokens
	}
	return nil
}

// order returns the new files that need a record: by path, so that alike files are
// neighbours; but first those that are members of archives, then the archives, then kernels.
func (m *maker) order() []int {
	var kernels, first, last []int
	for i := range m.news.entries {
		e := &m.news.entries[i]
		if !e.isRegular() || e.link >= 0 {
			continue
		}
		if m.plan.only != nil && !m.plan.only(i) || m.plan.skip != nil && m.plan.skip(i) {
			continue
		}
		if k := m.keep[i]; k >= 0 && m.olds.sums[k] == m.news.sums[i] && m.olds.entries[k].size == e.size {
			continue
		}
		if m.archive(i) {
			last = append(last, i)
		} else if kernelIn(m.news, i) {
			kernels = append(kernels, i)
		} else {
			first = append(first, i)
		}
	}
	if m.plan.kind == partRescue {
		return append(append(first, last...), kernels...) // each for itself
	}
	// What archives hold comes first, so that a device can compress them while it makes the rest.
	held := m.heldBy(last)
	m.findInside(held)
	var inside, others []int
	m.early = make(map[int]bool)
	for _, i := range first {
		if held[m.news.sums[i]] || m.insideHeld[i] {
			inside = append(inside, i)
			m.early[i] = true
		} else {
			others = append(others, i)
		}
	}
	order := append(append(append(inside, last...), kernels...), others...)
	for _, i := range order {
		if _, ok := m.newBySum[m.news.sums[i]]; !ok {
			m.newBySum[m.news.sums[i]] = i
		}
	}
	return order
}

// heldBy returns the digests of all members of archives.
func (m *maker) heldBy(archives []int) map[tree.Sum]bool {
	held := make(map[tree.Sum]bool)
	if m.o.without(stepUnpack) {
		return held
	}
	for _, i := range archives {
		memberSums(held, m.news, i)
	}
	return held
}

func (m *maker) archive(i int) bool { return archiveIn(m.news, i) }

// archiveIn guesses from its first bytes whether a file is large and holds others.
func archiveIn(inv *inventory, i int) bool {
	e := &inv.entries[i]
	if e.size < 1<<20 || isModule(e.path) {
		return false
	}
	f, _, err := openRegular(inv.root, e.path)
	if err != nil {
		return false // reading it will fail again, and be reported
	}
	defer f.Close()
	var head [6]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return false
	}
	for _, magic := range []string{"\x1f\x8b", "070701", "070702", "PK\x03\x04", "\x28\xb5\x2f\xfd", "\xfd7zXZ"} {
		if bytes.HasPrefix(head[:], []byte(magic)) {
			return true
		}
	}
	return false
}
