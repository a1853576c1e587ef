package delta

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/btrovl/btrovl/delta/bundle"
)

// Apply turns a stage (a writable snapshot of base, or an empty subvolume and
// base nil for a full bundle) into the bundle's tree. The caller seals the stage,
// which syncs it and compares its digest with the manifest's; until then it proves
// nothing. Where the context ends while the bundle's source blocks, Apply returns when
// that read does.
//
// Errors: *WrongBaseError (nothing was written), *SourceError, *bundle.DamageError; after
// any of them the stage is garbage.
func Apply(ctx context.Context, br *bundle.Reader, base, stage *os.File, o ApplyOptions) (*Result, error) {
	m := br.Manifest()
	which, err := chooseBase(m, o, base)
	if err != nil {
		return nil, err
	}
	p, r, err := openSection(br, which)
	if err != nil {
		return nil, err
	}
	defer r.close()
	defer boundMemory(m.Apply.Memory)()
	olds, news, err := p.listings(ctx, r, base)
	if err != nil {
		return nil, err
	}
	a := newApplier(m, base, newStage(stage, olds, news), o)
	if err := a.stage.clear(); err != nil {
		return nil, err
	}
	if err := a.all(ctx, p, r); err != nil {
		return nil, err
	}
	if err := a.stage.nodes(); err != nil {
		return nil, err
	}
	if err := a.stage.allAttributes(a.finished); err != nil {
		return nil, err
	}
	a.stage.dirs.close()
	if err := br.Verify(); err != nil {
		return nil, err
	}
	return &Result{Changed: a.changed(), Written: a.written.Load(), Shared: a.shared.Load(), Rescued: a.failed.rescued}, nil
}

// boundMemory tells the runtime what the manifest promises, and returns what undoes it. What is
// held is less; without this, garbage would double it.
func boundMemory(promised int64) (undo func()) {
	const outside = 20 << 20 // program text and what the runtime does not count
	limit := max(promised-outside, LowMemory/2)
	before := debug.SetMemoryLimit(-1)
	if promised == 0 || before <= limit {
		return func() {}
	}
	debug.SetMemoryLimit(limit)
	return func() { debug.SetMemoryLimit(before) }
}

// A target makes the sink for a record's content. Apply's writes to the stage; the
// exporter's to a spool.
type target interface {
	open(rec *record, views []*view) (sink, error)
	close(rec *record, s sink) error
	openNew(index int) (*os.File, int64, error) // content made before
}

// An applier runs the records of a section.
//
// The decoder (contents) reads records and actions in order and feeds them to jobs
// workers, a file each. Workers take files in order, so a file that is made from a
// new file waits only for workers ahead of it: no cycle. The bytes of actions in
// flight are bounded by the semaphore.
type applier struct {
	base     *os.File
	stage    *stage
	olds     *listing
	news     *listing
	target   target
	jobs     int
	progress func(done, total int64)
	total    int64
	limit    int64 // what the manifest says of new content
	sum      int64 // new content so far; the decoder's
	window   int64 // bytes of a file that may be written before the disk is waited for

	sem         *semaphore.Weighted
	objects     *semaphore.Weighted // memory for objects, objectLimit bytes
	objectLimit int64
	memory      int64           // what the manifest states
	ready       []chan struct{} // per new entry with a record that was seen: closed when complete
	finished    []bool          // new entries whose attributes are set
	recorded    []bool
	hints       *hints  // set by the decoder before the first job
	sizes       []int64 // of new files with a record, written by the decoder
	written     atomic.Int64
	shared      atomic.Int64
	done        atomic.Int64
	checkAll    bool           // of the rescue section, too: when making
	mu          sync.Mutex     // serialises progress, and guards:
	buffers     [][]byte       // for objects
	restorers   []usedRestorer // for packed ones, the smallest first
	failed      failures
}

const inFlight = 8 << 20

func newApplier(m *bundle.Manifest, base *os.File, s *stage, o ApplyOptions) *applier {
	a := &applier{base: base, stage: s, olds: s.olds, news: s.news, jobs: o.Jobs, progress: o.Progress,
		total: m.Apply.NewData, limit: m.Apply.NewData, window: max(allowedMemory(m)/32, 1<<20), sem: semaphore.NewWeighted(inFlight), objectLimit: objectLimit(m.Apply.Memory)}
	a.memory = allowedMemory(m)
	a.objects = semaphore.NewWeighted(a.objectLimit)
	if a.jobs <= 0 {
		a.jobs = runtime.GOMAXPROCS(0)
	}
	a.ready = make([]chan struct{}, len(s.news.entries))
	a.finished = make([]bool, len(s.news.entries))
	a.recorded = make([]bool, len(s.news.entries))
	a.sizes = make([]int64, len(s.news.entries))
	a.target = &stageTarget{a: a}
	return a
}

// A job is a file being made: the decoder feeds it.
type job struct {
	rec    *record
	recipe []byte
	types  []byte // of a kernel: a btf.Map
	feed   chan []action
	held   int64 // of the memory for objects
}

// all runs the records of the base's own section and of what it shares.
func (a *applier) all(ctx context.Context, p *payload, r *sectionReader) error {
	a.failed.allowed = p.has(partRescue)
	if err := a.records(ctx, r, partBase); err != nil {
		return err
	}
	for {
		r.close()
		kind, next, err := p.section()
		if err == io.EOF {
			return a.complete()
		}
		if err != nil {
			return err
		}
		r = next
		if kind == partShared {
			r.named = &namedSources{olds: a.olds}
		}
		if kind == partRescue {
			a.failed.allowed = false
		}
		if err := a.records(ctx, r, kind); err != nil {
			r.close()
			return err
		}
	}
}

// contents runs the records of a section that is alone.
func (a *applier) contents(ctx context.Context, r *sectionReader) error {
	if err := a.records(ctx, r, partBase); err != nil {
		return err
	}
	return a.complete()
}

// complete reports whether every new file has its content.
func (a *applier) complete() error {
	for _, i := range sortedKeys(a.failed.files) {
		return fmt.Errorf("cannot make %s: %w", a.news.entries[i].path, a.failed.files[i])
	}
	for i := range a.news.entries {
		e := &a.news.entries[i]
		if e.isRegular() && e.link < 0 && a.stage.keep[i] < 0 && !a.recorded[i] {
			return damaged("no content for %s", e.path)
		}
	}
	return nil
}

// records runs all records of a section.
func (a *applier) records(ctx context.Context, r *sectionReader, kind partKind) error {
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan *job, 16)
	for range a.jobs {
		g.Go(func() error {
			for j := range jobs {
				err := a.run(ctx, j)
				if err == nil && kind == partRescue {
					a.rescued(j.rec.index)
				}
				if err != nil && a.tolerate(j, err) {
					err = a.giveUp(ctx, j)
				}
				if err != nil {
					return fmt.Errorf("cannot make %s: %w", a.news.entries[j.rec.index].path, err)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(jobs)
		return a.decode(ctx, r, kind, jobs)
	})
	return g.Wait()
}

func (a *applier) decode(ctx context.Context, r *sectionReader, kind partKind, jobs chan<- *job) (err error) {
	if a.hints, err = r.hints(); err != nil {
		return err
	}
	count, err := r.uint(streamControl, uint64(len(a.news.entries)))
	if err != nil {
		return err
	}
	var c cursor
	for ; count > 0; count-- {
		rec, err := r.record(&c, len(a.news.entries), len(a.olds.entries))
		if err != nil {
			return err
		}
		skip := kind == partRescue && !a.wants(rec)
		if err := a.check(rec, kind, skip); err != nil {
			return err
		}
		if skip {
			if _, err := r.skipRecord(rec); err != nil {
				return err
			}
			a.report(rec.size)
			continue
		}
		if a.sum += rec.size; a.sum > a.limit {
			return damaged("more content than its manifest says")
		}
		j := &job{rec: rec, feed: make(chan []action, 8)}
		if err := r.recipe(j); err != nil {
			return err
		}
		if err := a.feed(ctx, r, j, jobs); err != nil {
			return err
		}
	}
	return nil
}

// check compares a record with the listings.
func (a *applier) check(rec *record, kind partKind, skip bool) error {
	e := &a.news.entries[rec.index]
	rescue := kind == partRescue
	if !e.isRegular() || e.link >= 0 || a.recorded[rec.index] && !rescue {
		return damaged("content for %s, which takes none", e.path)
	}
	if rescue && len(rec.sources) > 0 {
		return damaged("a rescue of %s that needs other files", e.path)
	}
	if skip {
		return nil
	}
	for _, s := range rec.sources {
		if s.new {
			n := &a.news.entries[s.index]
			// A kept file that gets no record now or later would do, too; makers use its old name.
			if !n.isRegular() || !a.recorded[s.index] {
				return damaged("content made of %s, which is not there yet", n.path)
			}
		} else if !a.olds.entries[s.index].isRegular() {
			return damaged("content made of %s, which is not a file", a.olds.entries[s.index].path)
		}
	}
	a.recorded[rec.index] = true
	a.sizes[rec.index] = rec.size
	a.ready[rec.index] = make(chan struct{})
	return nil
}

func (a *applier) feed(ctx context.Context, r *sectionReader, j *job, jobs chan<- *job) error {
	defer close(j.feed)
	size := j.rec.makes()
	// Sizes of sources are known to the decoder from the listing of the base; those of new or
	// expanded files only to the worker, which bounds every access again.
	total := int64(maxSize)
	if known := a.sourcesSize(j.rec); known >= 0 {
		total = known
	}
	var err error
	switch {
	case a.inFile(j.rec, total+size):
		if j.held = j.rec.fileHeld(total); j.held > a.objectLimit {
			err = damaged("a program that takes %d bytes of memory where %d are allowed", j.held, a.objectLimit)
		}
	case j.rec.inMemory():
		if j.held = total + size; total > a.objectLimit || j.held > a.objectLimit {
			err = damaged("an object of %d bytes", j.held)
		}
	case j.rec.recompressed():
		j.held, err = a.hold(j)
	}
	if err != nil {
		return err
	}
	// Here and not by the worker: the order of decoding keeps this from blocking for good.
	if err := a.objects.Acquire(ctx, j.held); err != nil {
		return err
	}
	select {
	case jobs <- j:
	case <-ctx.Done():
		return ctx.Err()
	}
	ops := opReader{r: r, total: total, left: size, object: j.rec.inPieces()}
	var batch []action
	var held int64
	send := func() error {
		if err := a.sem.Acquire(ctx, held); err != nil {
			return err
		}
		select {
		case j.feed <- batch:
			batch, held = nil, 0
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for ops.more() {
		o, err := ops.next()
		if err != nil {
			return err
		}
		err = r.pieces(o, func(c action) error {
			batch = append(batch, c)
			if held += int64(len(c.data)); held >= pieceSize || len(batch) == 512 {
				return send()
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return send()
}

// sourcesSize returns the size of a record's sources, or -1 where it is not known yet.
func (a *applier) sourcesSize(rec *record) int64 {
	var n int64
	for _, s := range rec.sources {
		if s.new || s.expanded {
			return -1
		}
		n += a.olds.entries[s.index].size
	}
	return n
}

// checked counts what passes to a sink.
type checked struct {
	sink
	a   *applier
	sum uint32
}

func (c *checked) put(p []byte, at int64, changed []bool) error {
	if err := c.sink.put(p, at, changed); err != nil {
		return err
	}
	c.a.report(int64(len(p)))
	return nil
}

type sharing struct {
	*checked
	cloner
}

// shareThrough keeps the ability to share of the sink beneath.
func shareThrough(c *checked, out sink) sink {
	if s, ok := out.(cloner); ok {
		return sharing{c, s}
	}
	return c
}

func (a *applier) report(n int64) {
	done := a.done.Add(n)
	if a.progress != nil {
		a.mu.Lock()
		a.progress(done, a.total)
		a.mu.Unlock()
	}
}

// changed lists every path that differs between the two trees.
func (a *applier) changed() []string {
	var paths []string
	for i := range a.olds.entries {
		if _, ok := a.news.byPath[a.olds.entries[i].path]; !ok {
			paths = append(paths, a.olds.entries[i].path)
		}
	}
	for i := range a.news.entries {
		e := &a.news.entries[i]
		first := i
		if e.link >= 0 {
			first = e.link
		}
		if k := a.stage.keep[i]; k < 0 || a.recorded[first] || !e.sameMeta(&a.olds.entries[k]) {
			paths = append(paths, e.path)
		}
	}
	sort.Strings(paths)
	return paths
}
