package redeflate

import (
	"encoding/binary"
	"io"
)

// A bitWriter writes bits, the lowest first, through a buffer. Its first error
// sticks, and nothing is written after it.
type bitWriter struct {
	w    io.Writer
	acc  uint64
	n    uint // valid bits in acc, less than 32 between calls
	buf  []byte
	err  error
	done int64 // bytes that have left buf
}

const bitBufferSize = 32 << 10

func (b *bitWriter) reset(w io.Writer) {
	if b.buf == nil {
		b.buf = make([]byte, 0, bitBufferSize+8)
	}
	*b = bitWriter{w: w, buf: b.buf[:0]}
}

// write appends the n low bits of v, all others being zero; n is at most 32.
func (b *bitWriter) write(v uint32, n uint) {
	b.acc |= uint64(v) << b.n
	b.n += n
	if b.n >= 32 {
		b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(b.acc))
		b.acc >>= 32
		b.n -= 32
		if len(b.buf) >= bitBufferSize {
			b.drain()
		}
	}
}

// align fills the current byte with zeros.
func (b *bitWriter) align() {
	for b.n > 0 {
		b.buf = append(b.buf, byte(b.acc))
		b.acc >>= 8
		b.n -= min(b.n, 8)
	}
}

// bytes appends p; the writer must be aligned.
func (b *bitWriter) bytes(p []byte) {
	for len(p) > 0 && b.err == nil {
		n := copy(b.buf[len(b.buf):bitBufferSize:bitBufferSize], p)
		b.buf = b.buf[:len(b.buf)+n]
		p = p[n:]
		if len(b.buf) >= bitBufferSize {
			b.drain()
		}
	}
}

// flush aligns and hands everything to the writer below.
func (b *bitWriter) flush() error {
	b.align()
	b.drain()
	return b.err
}

func (b *bitWriter) drain() {
	if b.err == nil && len(b.buf) > 0 {
		var n int
		n, b.err = b.w.Write(b.buf)
		b.done += int64(n)
	}
	b.buf = b.buf[:0]
}
