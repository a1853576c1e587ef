package delta

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// What making takes: the text index of a comparison, five bytes for one of the old file and
// at most for bsdiff's window of it; masks and copies for programs and modules; the inside of
// compressed files, which are held whole. Files are worked on at once as far as the
// memory for making allows, and the garbage collector is told the same figure. Files
// themselves are mapped (mappings), a fixed share of it is theirs.

// DefaultWork is the memory that making may take, and LeastWork what it needs.
const (
	DefaultWork = 3 << 30
	LeastWork   = 512 << 20
)

// work shares the memory for making among the files that are compared at once.
type work struct {
	sem   *semaphore.Weighted
	total int64
}

func newWork(bytes int64) *work {
	n := bytes / 2 // the rest: pages of mapped files, lists, results that wait for their turn
	return &work{sem: semaphore.NewWeighted(n), total: n}
}

// perByte is what comparing takes for a byte of the new file, at most indexed of it: measured
// with programs and modules, which are masked, matched three times and made for proof.
const (
	perByte = 16
	indexed = 64 << 20
	// imageLeast is the size from which an image is worked on alone.
	imageLeast = 4 << 20
)

// bounded finds the smallest way to make a file when there is memory for it.
func (m *maker) bounded(ctx context.Context, i int) *made {
	if f := m.resumed(i); f != nil {
		return f
	}
	size := m.news.entries[i].size
	if kernelIn(m.news, i) {
		size = maxKernel // what is inside
	}
	n := min(max(perByte*min(size, indexed), 1), m.o.work.total)
	if size >= imageLeast && imageIn(m.news, i) {
		n = m.o.work.total // several times as much is inside
	}
	if err := m.o.work.sem.Acquire(ctx, n); err != nil {
		return &made{err: err}
	}
	defer m.o.work.sem.Release(n)
	began := time.Now()
	f := m.file(ctx, i)
	if m.worth(f, time.Since(began)) {
		m.o.journal.put(uint32(i), f.keep())
	}
	return f
}

// limitWork keeps the process within the memory for making until undo.
func (o *MakeOptions) limitWork(ctx context.Context, maps *mappings) (undo func(), err error) {
	if o.Work == 0 {
		o.Work = DefaultWork
	}
	if o.keepFrom == 0 {
		o.keepFrom = worthKeeping
	}
	if o.Work < LeastWork {
		return nil, fmt.Errorf("cannot make a bundle in %d MiB of memory, only in %d or more", o.Work>>20, LeastWork>>20)
	}
	o.work = newWork(o.Work)
	before := debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(before, o.Work/4*3))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		maps.watch(ctx, o.Work/5)
	}()
	return func() {
		cancel()
		wg.Wait()
		debug.SetMemoryLimit(before)
	}, nil
}
