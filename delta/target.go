package delta

import (
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// stageTarget writes into the stage.
type stageTarget struct{ a *applier }

// stageFile is the file that a record makes.
type stageFile struct {
	t      *stageTarget
	f      *os.File
	views  []*view
	cloned bool
	dirty  int64 // bytes written since writing to the disk was begun last
}

func (t *stageTarget) open(rec *record, views []*view) (sink, error) {
	s := t.a.stage
	e := &s.news.entries[rec.index]
	flags := unix.O_RDWR
	kept := s.keep[rec.index] >= 0
	if !kept {
		flags |= unix.O_CREAT | unix.O_EXCL
		if t.a.again(rec.index) {
			flags ^= unix.O_EXCL | unix.O_TRUNC
		}
	}
	f, err := openBeneath(s.root, e.path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	sf := &stageFile{t: t, f: f, views: views}
	clone := rec.cloned || rec.method == methodCopy
	// A kept file is already a clone of the old file of its name.
	if kept && !(clone && !rec.sources[0].new && rec.sources[0].index == s.keep[rec.index]) {
		if err := f.Truncate(0); err != nil {
			f.Close()
			return nil, err
		}
		kept = false
	}
	if clone && !kept {
		sf.cloned = cloneAll(f, views[0])
	} else {
		sf.cloned = clone
	}
	if sf.cloned {
		if err := f.Truncate(rec.size); err != nil {
			f.Close()
			return nil, err
		}
		t.a.shared.Add(min(rec.size, views[0].size))
	}
	return sf, nil
}

func cloneAll(f *os.File, v *view) bool {
	src, err := v.handle()
	return err == nil && src != nil && btrfs.Clone(f, src) == nil
}

// put writes the blocks that the clone does not have.
func (s *stageFile) put(p []byte, at int64, changed []bool) error {
	if !s.cloned {
		return s.write(p, at)
	}
	for i := 0; i < len(changed); i++ {
		if !changed[i] {
			continue
		}
		from := i
		for i < len(changed) && changed[i] {
			i++
		}
		q := p[from*blockSizeFS : min(i*blockSizeFS, len(p))]
		if err := s.write(q, at+int64(from*blockSizeFS)); err != nil {
			return err
		}
	}
	return nil
}

// write keeps what of a file is in memory and not on the disk below two windows: when
// one is full it waits for the one before. Without that, an update is killed in a memory
// cgroup that its own memory fits in, by pages that a slow disk does not take in time
// (make test-memory, 64 MiB).
func (s *stageFile) write(p []byte, at int64) error {
	if _, err := s.f.WriteAt(p, at); err != nil {
		return err
	}
	s.t.a.written.Add(int64(len(p)))
	if s.dirty += int64(len(p)); s.dirty < s.t.a.window {
		return nil
	}
	s.dirty = 0
	return waitForDisk(s.f)
}

// waitForDisk begins to write what was not written yet, when what was begun before is on the disk.
func waitForDisk(f *os.File) error {
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE)
	if err == unix.ENOSYS {
		return nil
	}
	return err
}

// Close gives up a file that could not be made.
func (s *stageFile) Close() error { return s.f.Close() }

// share reflinks a run that moved.
func (s *stageFile) share(at int64, source int, pos, n int64) bool {
	src, err := s.views[source].handle()
	if err != nil || src == nil || btrfs.CloneRange(s.f, at, src, pos, n) != nil {
		return false
	}
	s.t.a.shared.Add(n)
	return true
}

func (t *stageTarget) close(rec *record, s sink) error {
	sf := s.(*stageFile)
	defer sf.f.Close()
	st := t.a.stage
	e := &st.news.entries[rec.index]
	var o *entry
	if k := st.keep[rec.index]; k >= 0 {
		o = &st.olds.entries[k]
	}
	if err := setAttributes(sf.f, e, o, true); err != nil {
		return fmt.Errorf("cannot set its attributes: %w", err)
	}
	t.a.finished[rec.index] = true
	return nil
}

func (t *stageTarget) openNew(index int) (*os.File, int64, error) {
	return openRegular(t.a.stage.root, t.a.news.entries[index].path)
}

// writerSink writes to a pipe.
type writerSink struct{ w io.Writer }

func (s writerSink) put(p []byte, _ int64, _ []bool) error {
	_, err := s.w.Write(p)
	return err
}

// A sinkWriter is an io.Writer that hands pieces to a sink.
type sinkWriter struct {
	out   sink
	buf   []byte
	flags []bool
	at    int64
	crc   uint32
}

func newSinkWriter(out sink, size int64) *sinkWriter {
	buffer := (min(max(size, 1), assembleSize) + blockSizeFS - 1) &^ (blockSizeFS - 1)
	w := &sinkWriter{out: out, buf: make([]byte, 0, buffer), flags: make([]bool, assembleSize/blockSizeFS)}
	for i := range w.flags {
		w.flags[i] = true
	}
	return w
}

func (w *sinkWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *sinkWriter) flush() error {
	w.crc = crc32.Update(w.crc, castagnoli, w.buf)
	err := w.out.put(w.buf, w.at, w.flags[:(len(w.buf)+blockSizeFS-1)/blockSizeFS])
	w.at += int64(len(w.buf))
	w.buf = w.buf[:0]
	return err
}

// finish flushes and compares the size.
func (w *sinkWriter) finish(size int64) error {
	if len(w.buf) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.at != size {
		return damaged("a recipe that makes %d bytes instead of %d", w.at, size)
	}
	return nil
}
