package delta

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A maker looks at whole files: those that it compares, and what it found out about them until that
// is written. Files of a few GiB do not fit into memory several times, so large ones are
// mapped: their pages are the page cache's, which the kernel takes back when it needs
// them. That leaves what the process holds at one time; watch bounds that, too.
//
// A file that is cut while it is mapped ends the process (SIGBUS): trees that bundles
// are made from are bases, which nobody writes to, or directories of the vendor.
type mappings struct {
	mu  sync.Mutex
	all [][]byte
}

// mapFrom is the least size that is mapped: a mapping costs more than reading a small
// file, and a process can have 65,530 of them.
const (
	mapFrom = 2 << 20
	maxMaps = 30_000
)

// content returns the n bytes of a file.
func (m *mappings) content(f *os.File, n int64) ([]byte, error) {
	if m != nil && n >= mapFrom {
		if b := m.mapped(f, n, unix.PROT_READ); b != nil {
			return b, nil
		}
	}
	b := make([]byte, n)
	_, err := io.ReadFull(f, b)
	return b, err
}

// mapped returns nil where a file cannot be mapped.
func (m *mappings) mapped(f *os.File, n int64, prot int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int64(int(n)) != n || len(m.all) >= maxMaps {
		return nil
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(n), prot, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	m.all = append(m.all, b)
	return b
}

// scratch returns n bytes of a nameless file in dir, or of memory where that fails.
func (m *mappings) scratch(dir string, n int64) []byte {
	if m == nil || n < spillFrom {
		return make([]byte, n)
	}
	f, err := os.CreateTemp(dir, "btrovl-*")
	if err != nil {
		return make([]byte, n)
	}
	defer f.Close()
	// Its blocks are taken now: a disk that is full later would end the process.
	if os.Remove(f.Name()) != nil || unix.Fallocate(int(f.Fd()), 0, 0, n) != nil {
		return make([]byte, n)
	}
	if b := m.mapped(f, n, unix.PROT_READ|unix.PROT_WRITE); b != nil {
		return b
	}
	return make([]byte, n)
}

// spillFrom is how many bytes of differences of one file are too many for the heap.
const spillFrom = 64 << 20

// drop gives back the pages of everything mapped. What is still in use is mapped again from the page
// cache, one fault for 16 pages.
func (m *mappings) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.all {
		// It can fail on locked pages only.
		unix.Madvise(b, unix.MADV_DONTNEED)
	}
}

// close unmaps everything: nothing that content or scratch returned may be used any more.
func (m *mappings) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.all {
		unix.Munmap(b)
	}
	m.all = nil
}

// watch drops pages whenever the process holds more than limit bytes of them, until ctx ends.
func (m *mappings) watch(ctx context.Context, limit int64) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if held, err := residentPages(); err == nil && held > limit {
				m.drop()
			}
		}
	}
}

// residentPages returns how many bytes of files the process has mapped and in memory.
func residentPages() (int64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return 0, fmt.Errorf("/proc/self/statm: %q", b)
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	return n * int64(os.Getpagesize()), err
}

// Differences are made deep inside of comparisons, which know a context and nothing
// of the maker.
type spillKey struct{}

type spill struct {
	maps *mappings
	dir  string
}

func withSpill(ctx context.Context, m *mappings, dir string) context.Context {
	return context.WithValue(ctx, spillKey{}, spill{m, dir})
}

// scratch returns n bytes that live until the maker is done.
func scratch(ctx context.Context, n int64) []byte {
	s, _ := ctx.Value(spillKey{}).(spill)
	return s.maps.scratch(s.dir, n)
}
