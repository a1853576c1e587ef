package redeflate

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// The xz format (its description at tukaani.org/xz/xz-file-format.txt): a
// header, blocks that each hold an LZMA2 stream and a checksum, an index and a footer.
const (
	xzMagic       = "\xfd7zXZ\x00"
	xzHeader      = 12
	xzFilterLZMA2 = 0x21
	xzFilterX86   = 0x04
)

func isXz(p []byte) bool {
	return len(p) >= xzHeader && string(p[:6]) == xzMagic && p[6] == 0
}

// An xzBlock is the header of a block.
type xzBlock struct {
	header int // its length
	stream relz.Stream
}

// xzBlockHeader reads a header at the start of p. ok is false for the index,
// which stands where another block could, and for filters that are not known.
func xzBlockHeader(p []byte) (b xzBlock, ok bool) {
	if len(p) < 8 || p[0] == 0 {
		return b, false
	}
	b.header = (int(p[0]) + 1) * 4
	if len(p) < b.header {
		return b, false
	}
	flags, p := p[1], p[2:b.header-4]
	number := func() uint64 {
		v, n := binary.Uvarint(p)
		if n <= 0 {
			p = nil
			return 0
		}
		p = p[n:]
		return v
	}
	b.stream.Size = maxXzPlain
	if flags&0x40 != 0 {
		number()
	}
	if flags&0x80 != 0 {
		b.stream.Size = int64(min(number(), maxXzPlain))
	}
	for i := range int(flags&3) + 1 {
		id, n := number(), number()
		if n > uint64(len(p)) {
			return b, false
		}
		properties := p[:n]
		p = p[n:]
		switch {
		case id == xzFilterX86 && i == 0 && n == 0 && flags&3 == 1:
			b.stream.X86 = true
		case id == xzFilterLZMA2 && i == int(flags&3) && n == 1 && properties[0] <= 40:
			v := properties[0]
			b.stream.Dict = int(min(int64(2|v&1)<<(v/2+11), relz.MaxDict+1))
		default:
			return b, false
		}
	}
	return b, b.stream.Dict > 0 && b.stream.Dict <= relz.MaxDict
}

// maxXzPlain bounds what is inside of a block.
const maxXzPlain = 1<<31 - 1

// xzCheck is the length of the checksum behind a block.
func xzCheck(header []byte) int64 {
	if n := header[7] & 15; n > 0 {
		return int64(4) << ((n - 1) / 3)
	}
	return 0
}

// xzParts walks through the blocks of the xz file at an offset of r. It gives
// each block's stream to the caller, who returns its length.
func xzParts(r io.ReaderAt, at, size int64, data func(at int64, s relz.Stream) (used int64, err error)) error {
	read := func(at int64, n int) []byte {
		p := make([]byte, min(int64(n), max(size-at, 0)))
		n, _ = r.ReadAt(p, at)
		return p[:n]
	}
	head := read(at, xzHeader)
	if !isXz(head) {
		return ErrUnsupported
	}
	for at += xzHeader; ; {
		p := read(at, 1024)
		if len(p) > 0 && p[0] == 0 {
			return nil
		}
		b, ok := xzBlockHeader(p)
		if !ok {
			return ErrUnsupported
		}
		at += int64(b.header)
		used, err := data(at, b.stream)
		if err != nil {
			return err
		}
		at += (used+3)&^3 + xzCheck(head)
	}
}

// xz takes the xz file at the start of data apart, with the help of an old one.
// It returns how much of data is done; index and footer are left.
func (u *unpacker) xz(data []byte) int {
	if u.wholeXz(data) {
		return len(data)
	}
	old := u.oldXz()
	if old == nil {
		return 0
	}
	type part struct {
		at int64
		*relz.Described
	}
	var parts []part
	room := u.o.MaxPlain - int64(len(u.plain))
	err := xzParts(bytes.NewReader(data), 0, int64(len(data)), func(at int64, s relz.Stream) (int64, error) {
		s.Size = min(s.Size, room)
		d, err := relz.Describe(data[at:], s, old.history)
		if err != nil || len(d.Recipe) > d.Used/fixShare {
			return 0, ErrUnsupported
		}
		room -= int64(len(d.Plain))
		parts = append(parts, part{at, d})
		return int64(d.Used), nil
	})
	if err != nil {
		return 0
	}
	done := int64(0)
	for _, p := range parts {
		u.copyPending()
		u.recipe.literal(data[done:p.at])
		n := int64(len(p.Plain))
		u.recipe.lzma(n, old, p.Recipe)
		u.encoders["xz, after the old file"] += n
		u.streams++
		u.content(p.Plain, 1)
		done = p.at + int64(p.Used)
	}
	if done > 0 {
		u.named("xz")
	}
	return int(done)
}

// An oldStream is the stream of an old file to which a recipe refers, or all of an old xz file.
type oldStream struct {
	op      byte // that refers to it
	at      int64
	stream  relz.Stream
	follows bool // opFollows
	history *relz.History
}

// oldXz finds the first LZMA2 stream of the old file.
func (u *unpacker) oldXz() *oldStream {
	if u.o.Old == nil {
		return nil
	}
	if u.old != nil {
		return u.old.only(opLzma)
	}
	file := bytes.NewReader(u.o.Old)
	at := payload(u.o.Old, int64(len(u.o.Old)))
	var found *oldStream
	xzParts(file, at, int64(len(u.o.Old)), func(at int64, s relz.Stream) (int64, error) {
		if found != nil { // one is enough
			return 0, ErrUnsupported
		}
		in := &countingReader{r: io.NewSectionReader(file, at, int64(len(u.o.Old))-at)}
		n := &plainWriter{w: io.Discard}
		if err := relz.Expand(n, in, s); err != nil {
			return 0, ErrUnsupported
		}
		s.Size = n.n
		h, err := relz.Learn(nil, io.NewSectionReader(file, at, in.n), s, u.o.Moves)
		if err == nil {
			found = &oldStream{op: opLzma, at: at, stream: s, history: h}
		}
		return in.n, err
	})
	u.old = found
	return found
}
