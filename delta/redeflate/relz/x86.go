package relz

import (
	"encoding/binary"
	"io"
)

// An x86 filter turns the relative targets of calls and jumps (opcodes E8 and
// E9) into absolute ones, so that calls of one function look the same
// everywhere, or back. It is the filter that xz calls x86 and the LZMA SDK
// BCJ; what it does with bytes that only look like calls follows from their
// tables, which are kept here as they are part of the format.
type x86 struct {
	encode bool
	mask   uint32 // which of the last bytes looked like part of a call
	last   uint32 // where the last opcode was
	pos    uint32 // of the next byte, in the stream
}

func newX86(encode bool) x86 { return x86{encode: encode, last: ^uint32(4)} }

// run filters what it can of p in place and returns its length; the up to four
// bytes that remain must come again with what follows, or stay at the end.
func (f *x86) run(p []byte) int {
	if len(p) < 5 {
		return 0
	}
	if f.pos-f.last > 5 {
		f.last = f.pos - 5
	}
	high := func(b byte) bool { return b == 0 || b == 0xff }
	i := 0
	for i <= len(p)-5 {
		if p[i]&0xfe != 0xe8 {
			i++
			continue
		}
		at := f.pos + uint32(i)
		if back := at - f.last; back > 5 {
			f.mask = 0
		} else {
			for ; back > 0; back-- {
				f.mask = f.mask & 0x77 << 1
			}
		}
		f.last = at
		allowed := f.mask>>1 < 0x10 && (0x17>>(f.mask>>1&7))&1 == 1
		if !high(p[i+4]) || !allowed {
			f.mask |= 1
			if high(p[i+4]) {
				f.mask |= 0x10
			}
			i++
			continue
		}
		v, to := binary.LittleEndian.Uint32(p[i+1:]), uint32(0)
		for {
			if f.encode {
				to = v + at + 5
			} else {
				to = v - at - 5
			}
			if f.mask == 0 {
				break
			}
			n := [8]uint32{0, 1, 2, 2, 3, 3, 3, 3}[f.mask>>1] * 8
			if !high(byte(to >> (24 - n))) {
				break
			}
			v = to ^ (1<<(32-n) - 1)
		}
		to &= 0x1ffffff
		if to&0x1000000 != 0 {
			to |= 0xff000000
		}
		binary.LittleEndian.PutUint32(p[i+1:], to)
		i += 5
		f.mask = 0
	}
	f.pos += uint32(i)
	return i
}

// filterReader is what r gives, filtered.
type filterReader struct {
	r     io.Reader
	f     x86
	buf   []byte // filtered up to ready, then what waits
	next  int
	ready int
	err   error
}

func newFilterReader(r io.Reader, encode bool) *filterReader {
	return &filterReader{r: r, f: newX86(encode), buf: make([]byte, 0, 64<<10)}
}

func (r *filterReader) Read(p []byte) (int, error) {
	for r.next == r.ready {
		if r.err != nil {
			return 0, r.err
		}
		rest := copy(r.buf, r.buf[r.ready:])
		n, err := r.r.Read(r.buf[rest:cap(r.buf)])
		r.buf, r.next, r.err = r.buf[:rest+n], 0, err
		r.ready = r.f.run(r.buf)
		if err != nil {
			r.ready = len(r.buf)
		}
	}
	n := copy(p, r.buf[r.next:r.ready])
	r.next += n
	return n, nil
}

// filterWriter filters what it is given on its way to w. flush writes the rest.
type filterWriter struct {
	w   io.Writer
	f   x86
	buf []byte
}

func (w *filterWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, 64<<10)
		w.buf = append(w.buf, p[done:done+n]...)
		done += n
		k := w.f.run(w.buf)
		if _, err := w.w.Write(w.buf[:k]); err != nil {
			return done, err
		}
		w.buf = w.buf[:copy(w.buf, w.buf[k:])]
	}
	return done, nil
}

func (w *filterWriter) flush() error {
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}
