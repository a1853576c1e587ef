package delta

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sort"

	"github.com/btrovl/btrovl/delta/redeflate"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockSizeFS is the unit in which a file system shares and writes.
const blockSizeFS = 4096

// An action is an operation with the bytes that it brings along.
type action struct {
	op
	data []byte // add, insert, raw
}

// A sink takes the content of a file piece by piece, in order.
type sink interface {
	// put takes the next len(p) bytes. changed tells for each block of blockSizeFS
	// bytes (p starts at a multiple of it) whether it may differ from what a clone of
	// the first source holds at the same place.
	put(p []byte, at int64, changed []bool) error
}

// cloner is a sink that can share long aligned runs with a source.
type cloner interface {
	// share makes n bytes at `at` of source i, and reports whether it did.
	share(at int64, source int, pos, n int64) bool
}

// A view is a source to read from: a file, opened when it is first needed, or what
// is inside of one. Not for several goroutines.
type view struct {
	io.ReaderAt // nil: not open
	size        int64
	path        string
	open        func() (*os.File, int64, error)
	dir         *os.File     // of an expanded source that is expanded when it is first needed: for temporary files
	inside      *memoryFirst // what that gave
	win         []byte
	at          int64 // where the window starts
}

const viewWindow = 256 << 10

// handle returns the file, nil for a view without one.
func (v *view) handle() (*os.File, error) {
	if v.ReaderAt == nil {
		if v.dir != nil {
			return nil, nil
		}
		f, size, err := v.open()
		if err != nil {
			return nil, err
		}
		if size != v.size {
			f.Close()
			return nil, &SourceError{Path: v.path, Want: fmt.Sprintf("of %d bytes", v.size), Have: fmt.Sprintf("of %d bytes", size)}
		}
		v.ReaderAt = f
	}
	f, _ := v.ReaderAt.(*os.File)
	return f, nil
}

// ready opens what there is to be read.
func (v *view) ready() error {
	if v.dir == nil || v.ReaderAt != nil {
		_, err := v.handle()
		return err
	}
	f, size, err := v.open()
	if err != nil {
		return err
	}
	defer f.Close()
	m := &memoryFirst{dir: v.dir}
	if err := redeflate.Expand(m, f, size); err != nil || m.size != v.size {
		m.Close()
		e := &SourceError{Path: v.path, Want: fmt.Sprintf("compressed data of %d bytes", v.size), Have: fmt.Sprintf("%d bytes", m.size)}
		if err != nil {
			e.Have = err.Error()
		}
		return e
	}
	v.ReaderAt, v.inside = m, m
	return nil
}

// Close gives back the file and the window; what opens lazily can be used again.
func (v *view) Close() error {
	v.win, v.at = nil, 0
	if v.open == nil {
		return nil
	}
	if v.inside != nil {
		v.inside.Close()
		v.ReaderAt, v.inside = nil, nil
		return nil
	}
	f, ok := v.ReaderAt.(*os.File)
	if !ok {
		return nil
	}
	v.ReaderAt = nil
	return f.Close()
}

// bytes returns n ≤ viewWindow/2 bytes at pos; they stay valid until the next call.
func (v *view) bytes(pos int64, n int) ([]byte, error) {
	if pos >= v.at && pos+int64(n) <= v.at+int64(len(v.win)) {
		return v.win[pos-v.at:][:n], nil
	}
	if err := v.ready(); err != nil {
		return nil, err
	}
	if v.win == nil {
		v.win = make([]byte, 0, min(viewWindow, v.size))
	}
	// Small steps back are as common as steps ahead.
	start := max(0, pos-int64(cap(v.win)-n)/8)
	v.win = v.win[:min(int64(cap(v.win)), v.size-start)]
	if _, ok := v.ReaderAt.(*redeflate.Image); ok { // it keeps blocks; others should not be expanded
		start, v.win = pos, v.win[:n]
	}
	v.at = start
	m, err := v.ReadAt(v.win, start)
	if m < len(v.win) && (n < len(v.win) || pos > start) { // what is around it need not be sound
		v.win, v.at = v.win[:n], pos
		m, err = v.ReadAt(v.win, pos)
	}
	if m < len(v.win) {
		v.win = v.win[:0]
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, redeflate.ErrDamaged) {
			return nil, &SourceError{Path: v.path, Want: "an image with sound blocks", Have: err.Error()}
		}
		return nil, fmt.Errorf("cannot read %s: %w", v.path, err)
	}
	return v.win[pos-v.at:][:n], nil
}

// An assembler runs actions and hands the content on in large pieces.
type assembler struct {
	views  []*view
	starts []int64 // of each view in the address space
	cloned bool    // the sink starts as a clone of the first view
	out    sink
	buf    []byte
	flags  []bool
	at     int64 // of buf in the file
	last   int   // view that was used last
	crc    uint32
}

const assembleSize = 256 << 10

func newAssembler(views []*view, cloned bool, out sink) *assembler {
	a := &assembler{views: views, cloned: cloned, out: out, buf: make([]byte, 0, assembleSize), flags: make([]bool, assembleSize/blockSizeFS)}
	var n int64
	for _, v := range views {
		a.starts = append(a.starts, n)
		n += v.size
	}
	return a
}

// total is the size of the address space.
func (a *assembler) total() int64 {
	var n int64
	for _, v := range a.views {
		n += v.size
	}
	return n
}

// mark says that n bytes from the end of buf on may differ from the clone.
func (a *assembler) mark(n int) {
	from := len(a.buf) / blockSizeFS
	to := (len(a.buf) + n + blockSizeFS - 1) / blockSizeFS
	for i := from; i < to; i++ {
		a.flags[i] = true
	}
}

func (a *assembler) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	a.crc = crc32.Update(a.crc, castagnoli, a.buf)
	err := a.out.put(a.buf, a.at, a.flags[:(len(a.buf)+blockSizeFS-1)/blockSizeFS])
	a.at += int64(len(a.buf))
	a.buf = a.buf[:0]
	clear(a.flags)
	return err
}

// do runs one action.
func (a *assembler) do(c action) error {
	if c.kind == opInsert || c.kind == opRaw {
		for p := c.data; len(p) > 0; {
			n := min(len(p), cap(a.buf)-len(a.buf))
			a.mark(n)
			a.buf = append(a.buf, p[:n]...)
			p = p[n:]
			if len(a.buf) == cap(a.buf) {
				if err := a.flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	pos, left, diff := c.pos, c.length, c.data
	for left > 0 {
		i := a.locate(pos)
		v, off := a.views[i], pos-a.starts[i]
		run := min(left, v.size-off)
		if run <= 0 {
			return damaged("an operation beyond its sources")
		}
		if c.kind == opCopy && run >= shareMin {
			if n, err := a.tryShare(i, off, run); err != nil {
				return err
			} else if n > 0 {
				pos, left = pos+n, left-n
				continue
			}
		}
		n := int(min(run, int64(cap(a.buf)-len(a.buf)), viewWindow/2))
		src, err := v.bytes(off, n)
		if err != nil {
			return err
		}
		here := a.at + int64(len(a.buf))
		switch {
		case !a.cloned || i != 0 || off != here:
			a.mark(n)
		case diff != nil:
			a.markDiff(diff[:n])
		}
		at := len(a.buf)
		a.buf = a.buf[:at+n]
		if diff == nil {
			copy(a.buf[at:], src)
		} else {
			addBytes(a.buf[at:], src, diff)
			diff = diff[n:]
		}
		if len(a.buf) == cap(a.buf) {
			if err := a.flush(); err != nil {
				return err
			}
		}
		pos, left = pos+int64(n), left-int64(n)
	}
	return nil
}

// locate returns the view that holds a position, and closes the one before where
// there are many: an initrd is made of a thousand files.
func (a *assembler) locate(pos int64) int {
	if i := a.last; pos >= a.starts[i] && pos < a.starts[i]+a.views[i].size {
		return i
	}
	i := sort.Search(len(a.starts), func(i int) bool { return a.starts[i] > pos }) - 1
	if (len(a.views) > manyViews || a.views[a.last].dir != nil) && a.last != 0 {
		a.views[a.last].Close()
	}
	a.last = i
	return i
}

const manyViews = 8

// markDiff marks the blocks in which a difference is not zero.
func (a *assembler) markDiff(diff []byte) {
	for i, d := range diff {
		if d != 0 {
			a.flags[(len(a.buf)+i)/blockSizeFS] = true
		}
	}
}

func addBytes(dst, src, diff []byte) {
	diff = diff[:len(dst)]
	src = src[:len(dst)]
	for i := range dst {
		dst[i] = src[i] + diff[i]
	}
}

// shareMin is the least run of equal bytes for which a reflink is cheaper than writing.
const shareMin = 128 << 10

// tryShare lets the sink share the aligned middle of a run. It returns how many
// bytes were made: 0 if it cannot.
func (a *assembler) tryShare(source int, off, run int64) (int64, error) {
	s, ok := a.out.(cloner)
	here := a.at + int64(len(a.buf))
	if !ok || off == here && a.cloned && source == 0 || (off-here)%blockSizeFS != 0 || here%blockSizeFS != 0 {
		return 0, nil
	}
	n := run &^ (blockSizeFS - 1)
	if err := a.flush(); err != nil {
		return 0, err
	}
	if !s.share(a.at, source, off, n) {
		return 0, nil
	}
	// The checksum covers what was shared, too: a damaged source must be found.
	v := a.views[source]
	for done := int64(0); done < n; {
		p, err := v.bytes(off+done, int(min(n-done, viewWindow/2)))
		if err != nil {
			return 0, err
		}
		a.crc = crc32.Update(a.crc, castagnoli, p)
		done += int64(len(p))
	}
	a.at += n
	return n, nil
}

// finish flushes and compares the checksum.
func (a *assembler) finish() error { return a.flush() }
