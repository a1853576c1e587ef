package redeflate

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

const zstdMagic = 0xfd2fb528

func isZstd(p []byte) bool { return len(p) >= 4 && binary.LittleEndian.Uint32(p) == zstdMagic }

// only returns o, if operations of this kind can refer to it.
func (o *oldStream) only(op byte) *oldStream {
	if o == nil || o.op != op {
		return nil
	}
	return o
}

// zstd takes the Zstandard frame at the start of data apart, with the help of an old one. It returns the frame's length.
func (u *unpacker) zstd(data []byte) int {
	old := u.oldZstd()
	if old == nil {
		return 0
	}
	return u.zstdAfter(data, old, false)
}

// zstdAfter is zstd with the help of this old frame; with whole, data must be nothing but the frame.
func (u *unpacker) zstdAfter(data []byte, old *oldStream, whole bool) int {
	u.prior(old)
	memory := u.o.Memory
	if memory == 0 {
		memory = 1 << 62
	}
	d, err := relz.DescribeZstd(data, u.o.MaxPlain-int64(len(u.plain)), memory-fixedMemory, old.history, old.stream)
	if err != nil || len(d.Recipe) > d.Used/fixShare || whole && d.Used != len(data) {
		return 0
	}
	u.copyPending()
	n := int64(len(d.Plain))
	u.recipe.decided(opZstd, n, old, d.Recipe)
	u.encoders["zstd, after the old file"] += n
	u.streams++
	u.named("zstd")
	u.content(d.Plain, 1)
	return d.Used
}

// oldZstd finds the first Zstandard frame of the old file.
func (u *unpacker) oldZstd() *oldStream {
	if u.o.Old == nil {
		return nil
	}
	if u.old != nil {
		return u.old.only(opZstd)
	}
	file := bytes.NewReader(u.o.Old)
	for at := payload(u.o.Old, int64(len(u.o.Old))); at < int64(len(u.o.Old)); {
		p := u.o.Old[at:]
		if isZstd(p) {
			size := &plainWriter{w: io.Discard}
			if relz.ExpandZstd(size, bytes.NewReader(p), maxXzPlain) != nil {
				return nil
			}
			o := &oldStream{op: opZstd, at: at}
			var err error
			if o.stream, err = relz.ZstdStream(p, size.n); err != nil || o.learn(nil, file, u.o.Moves) != nil {
				return nil
			}
			u.old = o
			return o
		}
		// An archive and padding stand in front of the compressed part of an initrd.
		n := len(p) - len(bytes.TrimLeft(p, "\x00"))
		if isCpio(p) {
			n = archiveLength(p)
		}
		if n == 0 {
			return nil
		}
		at += int64(n)
	}
	return nil
}

// archiveLength returns how long the cpio archive at the start of p is.
func archiveLength(p []byte) int {
	at := 0
	for at < len(p) {
		e, ok := cpioEntry(p[at:])
		if !ok {
			break
		}
		if at += e.header + e.content + e.padding; e.last {
			break
		}
	}
	return at
}

// zstd writes the content of a frame and returns the frame's length.
func (e *expander) zstd(at int64) (int64, error) {
	in := &countingReader{r: io.NewSectionReader(e.file, at, e.size-at)}
	e.buf.Reset(in)
	from := e.w.n
	var err error
	if l := e.learn; l != nil && l.old.op == opZstd && l.old.at == at {
		l.old.history, err = relz.LearnZstd(e.w, e.buf, l.old.stream, l.moves)
	} else {
		err = relz.ExpandZstd(e.w, e.buf, e.most)
	}
	if err != nil {
		return 0, err
	}
	e.content(from)
	return in.n - int64(e.buf.Buffered()), nil
}
