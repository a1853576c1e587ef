package delta

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/btf"
	"github.com/btrovl/btrovl/delta/exe"
	"github.com/btrovl/btrovl/delta/redeflate"
)

// A compressed kernel (methodKernel) is a program inside of a compressed file: plain is made
// as a program is (program.go) from what is inside of the old file, and compressed by the recipe.
//
//	old file ─ expand ─▶ before │ program │ behind       a nameless file
//	                              │ exe.Rewrite, exe.RewriteTypes: mapped, in place
//	                              ▼
//	operations ────────▶ before │ program │ behind       plain, a pipe
//	                              │ redeflate.Restore, with what the old file's encoder decided
//	                              ▼
//	                     new file
//
// Its pieces: all up to the end of the new program's head, compared with the same of the old one;
// the moves, and what lies between them; what is behind the program, compared with the same of
// the old one.
//
// Both programs have some 66 MB in a distribution's kernel, more than an update may take. So
// the old one lies in a file, and no more of it is in memory than is
// looked at; of the new one there is a window. Operations are kept until the old file is expanded, so that
// the decoder can go on to other files meanwhile.
type kernelRecord struct {
	types    int64 // bytes of a btf.Map in the recipe stream, behind the recipe
	old, new span  // of the program, in what is inside
}

func (w *streamWriter) kernel(k *kernelRecord) {
	w.uint(streamControl, uint64(k.types))
	for _, s := range []span{k.old, k.new} {
		w.uint(streamControl, uint64(s.from))
		w.uint(streamControl, uint64(s.to-s.from))
	}
}

func (r *sectionReader) kernel(rec *record) error {
	v := [5]uint64{}
	for i, limit := range [5]uint64{maxHints, maxKernel, maxKernel, maxKernel, maxKernel} {
		var err error
		if v[i], err = r.uint(streamControl, limit); err != nil {
			return err
		}
	}
	rec.kernel.types = int64(v[0])
	rec.kernel.old = span{int64(v[1]), int64(v[1] + v[2])}
	rec.kernel.new = span{int64(v[3]), int64(v[3] + v[4])}
	return r.moves(rec, int64(v[4]))
}

// maxKernel bounds what is inside of a kernel: it is mapped as a whole.
const maxKernel = 128 << 20

// restoreLimit is what compressing again may take of the memory that a manifest states.
func restoreLimit(memory int64) int64 {
	if memory <= 0 {
		memory = DefaultMemory
	}
	return memory / 8 * 5
}

// A kernelBuilder checks the operations of a kernel, for the maker and for the device.
type kernelBuilder struct {
	pieces []piecePair
	pieceCursor
	source int64 // bytes inside of the old file
}

func newKernelBuilder(rec *record, source int64) (*kernelBuilder, error) {
	k := rec.kernel
	size := k.new.to - k.new.from
	if k.old.to > source || k.new.to > rec.plain || rec.head <= 0 || rec.head > size || rec.head > k.old.to-k.old.from {
		return nil, damaged("a kernel's program at %d to %d of %d bytes, made of %d to %d of %d", k.new.from, k.new.to, rec.plain, k.old.from, k.old.to, source)
	}
	program, err := programPieces(rec.head, size, k.old.to-k.old.from, rec.moves)
	if err != nil {
		return nil, err
	}
	b := &kernelBuilder{source: source}
	b.pieces = append(b.pieces, piecePair{span{0, k.new.from + rec.head}, span{0, k.old.from + rec.head}})
	for _, p := range program {
		p.new = span{p.new.from + k.new.from, p.new.to + k.new.from}
		if p.old.to > 0 {
			p.old = span{p.old.from + k.old.from, p.old.to + k.old.from}
		}
		b.pieces = append(b.pieces, p)
	}
	if k.new.to < rec.plain {
		b.pieces = append(b.pieces, piecePair{span{k.new.to, rec.plain}, span{k.old.to, source}})
	}
	return b, nil
}

// next takes an action into account.
func (b *kernelBuilder) next(a *action) error {
	if len(b.pieces) == 0 {
		return damaged("more operations than a kernel has pieces")
	}
	if err := b.take(a, b.pieces[0].new.to, b.source); err != nil {
		return err
	}
	if b.at == b.pieces[0].new.to {
		if b.pieces = b.pieces[1:]; len(b.pieces) > 0 && b.pieces[0].old.to > 0 {
			b.pos = b.pieces[0].old.from
		}
	}
	return nil
}

// redeflateMoves are a record's moves for package redeflate.
func (r *record) redeflateMoves() []redeflate.Move {
	m := make([]redeflate.Move, len(r.moves)) // not nil: moves are known, if only that there are none
	for i, v := range r.moves {
		m[i] = redeflate.Move(v)
	}
	return m
}

// A kernelSource is what is inside of the old file, in a nameless file.
type kernelSource struct {
	f      *os.File
	size   int64
	dirty  int64
	window int64 // bytes that may be written before the disk is waited for
	failed error
}

func newKernelSource(dir *os.File, window int64) (*kernelSource, error) {
	f, err := tempFile(dir)
	if err != nil {
		return nil, err
	}
	// Overwriting it in place neither takes new blocks nor sums; where that is refused, it does.
	unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, fsNoCow)
	return &kernelSource{f: f, window: window}, nil
}

const fsNoCow = 0x00800000 // FS_NOCOW_FL

func (k *kernelSource) Write(p []byte) (int, error) {
	if k.size+int64(len(p)) > maxKernel {
		k.failed = damaged("a kernel with more than %d bytes inside", maxKernel)
		return 0, k.failed
	}
	if _, err := k.f.WriteAt(p, k.size); err != nil {
		k.failed = err
		return 0, err
	}
	k.size += int64(len(p))
	if k.dirty += int64(len(p)); k.dirty >= k.window {
		k.dirty = 0
		if err := waitForDisk(k.f); err != nil {
			k.failed = err
			return 0, err
		}
	}
	return len(p), nil
}

// rewrite brings the program up to date. No more of it than about a megabyte is
// mapped at a time.
func (k *kernelSource) rewrite(at span, head []byte, moves []exe.Move, types *btf.Map) error {
	b, err := unix.Mmap(int(k.f.Fd()), 0, int(k.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("cannot map a temporary file: %w", err)
	}
	defer unix.Munmap(b)
	program := b[at.from:at.to:at.to]
	shed := func() { unix.Madvise(b, unix.MADV_DONTNEED) }
	return faults(func() {
		exe.RewriteMapped(program, head, moves, shed)
		exe.RewriteTypes(program, types)
	})
}

// faults runs fn and returns as an error that the disk failed or was full beneath a mapping.
func faults(fn func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if _, ok := r.(interface{ Addr() uintptr }); !ok {
			panic(r)
		}
		err = fmt.Errorf("cannot use a temporary file: %w", unix.EIO)
	}()
	fn()
	return nil
}

// An actionLog keeps the actions of a file until they can run, coded as operations are.
type actionLog struct {
	m memoryFirst
	w *bufio.Writer
	r *bufio.Reader
	n int64
	b [2 * binary.MaxVarintLen64]byte
}

func newActionLog(dir *os.File) *actionLog {
	l := &actionLog{m: memoryFirst{dir: dir}}
	l.w = bufio.NewWriterSize(&l.m, 32<<10)
	return l
}

func (l *actionLog) put(a action) error {
	b := binary.AppendUvarint(l.b[:0], uint64(a.length)<<3|uint64(a.kind))
	b = binary.AppendVarint(b, a.seek)
	l.n++
	l.w.Write(b) // a bufio.Writer keeps its error
	_, err := l.w.Write(a.data)
	return err
}

// rewind begins to read.
func (l *actionLog) rewind() error {
	if err := l.w.Flush(); err != nil {
		return err
	}
	l.r = bufio.NewReaderSize(io.NewSectionReader(&l.m, 0, l.m.size), 32<<10)
	return nil
}

// next returns an action that is good until the call after, its data in buf where that is large enough.
func (l *actionLog) next(buf []byte) (a action, err error) {
	if l.n--; l.n < 0 {
		return a, io.EOF
	}
	v, err := binary.ReadUvarint(l.r)
	if err != nil {
		return a, err
	}
	a.kind, a.length = opKind(v&3), int64(v>>3)
	if a.seek, err = binary.ReadVarint(l.r); err != nil {
		return a, err
	}
	if a.kind != opCopy && a.length > 0 {
		if a.length > int64(len(buf)) {
			buf = make([]byte, a.length)
		}
		a.data = buf[:a.length]
		_, err = io.ReadFull(l.r, a.data)
	}
	return a, err
}

// memory is what a record takes beside what is compressed again: lists, and a packed object's contents.
func (r *record) memory() int64 {
	n := int64(len(r.moves)) * int64(2*unsafe.Sizeof(exe.Move{}))
	if r.method == methodPacked {
		n += r.inside + r.plain
	}
	return n
}
