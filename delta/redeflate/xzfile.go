package redeflate

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"math/bits"
	"slices"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// Most xz files are such that everything that stands around their LZMA2 streams follows from the
// streams, from what is inside, and from two bytes that are called their shape here (opXz):
//
//	kind of the checksum, 0 none, 1 CRC-32, 4 CRC-64, 10 SHA-256; and as in the flags of
//	each block's header 0x40: it says how long the stream is, 0x80: and how much is inside
//	the first byte of each block's header, its length
type xzShape struct {
	kind, header byte
	stream       relz.Stream
}

const (
	xzFooter = "YZ"

	shapeCheck   = 0x0f
	shapePacked  = 0x40
	shapeContent = 0x80
	shapeKnown   = shapeCheck | shapePacked | shapeContent
)

var crc64ECMA = crc64.MakeTable(crc64.ECMA)

// xzHash returns what computes a checksum, nil where there is none; ok is false for one that is unknown.
func xzHash(kind byte) (h hash.Hash, ok bool) {
	switch kind {
	case 0:
		return nil, true
	case 1:
		return crc32.NewIEEE(), true
	case 4:
		return crc64.New(crc64ECMA), true
	case 10:
		return sha256.New(), true
	}
	return nil, false
}

// xzSum returns a checksum as it stands in a file: CRCs have their lowest byte first.
func xzSum(h hash.Hash) []byte {
	if h == nil {
		return nil
	}
	sum := h.Sum(nil)
	if len(sum) <= 8 {
		for i, k := 0, len(sum)-1; i < k; i, k = i+1, k-1 {
			sum[i], sum[k] = sum[k], sum[i]
		}
	}
	return sum
}

// xzDictionary returns the byte that stands for the size of a dictionary.
func xzDictionary(size int) (byte, bool) {
	for v := byte(0); v < 40; v++ {
		if int64(2|v&1)<<(v/2+11) == int64(size) {
			return v, true
		}
	}
	return 0, false
}

// start is what a file begins with.
func (x *xzShape) start() []byte {
	flags := []byte{0, x.kind & shapeCheck}
	return appendSum(append([]byte(xzMagic), flags...), flags)
}

// head is the header of a block, nil where there is none like that.
func (x *xzShape) head(packed, size int64) []byte {
	dictionary, ok := xzDictionary(x.stream.Dict)
	h := []byte{x.header, x.kind & (shapePacked | shapeContent)}
	if x.kind&shapePacked != 0 {
		h = binary.AppendUvarint(h, uint64(packed))
	}
	if x.kind&shapeContent != 0 {
		h = binary.AppendUvarint(h, uint64(size))
	}
	if x.stream.X86 {
		h[1] |= 1
		h = append(h, xzFilterX86, 0)
	}
	h = append(h, xzFilterLZMA2, 1, dictionary)
	n := int(x.header) * 4
	if !ok || x.header == 0 || len(h) > n {
		return nil
	}
	h = append(h, make([]byte, n-len(h))...)
	return appendSum(h, h)
}

// An xzRecord is what the index says of a block.
type xzRecord struct{ packed, size int64 } // without padding, with header and checksum

// tail is what follows a stream, and the record of its block.
func (x *xzShape) tail(packed, size int64, sum []byte) ([]byte, xzRecord) {
	return append(make([]byte, -packed&3), sum...), xzRecord{int64(x.header)*4 + 4 + packed + int64(len(sum)), size}
}

// finish is what follows the last block.
func (x *xzShape) finish(records []xzRecord) []byte {
	index := binary.AppendUvarint([]byte{0}, uint64(len(records)))
	for _, r := range records {
		index = binary.AppendUvarint(index, uint64(r.packed))
		index = binary.AppendUvarint(index, uint64(r.size))
	}
	index = append(index, make([]byte, -len(index)&3)...)
	index = appendSum(index, index)
	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), 0, x.kind&shapeCheck)
	index = appendSum(index, footer)
	return append(append(index, footer...), xzFooter...)
}

// appendSum appends the CRC-32 of p.
func appendSum(b, p []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(p))
}

// mostPacked bounds what a stream takes that is held in memory, because its length stands before it.
func mostPacked(size int64) int { return int(min(size/2, 16<<20)) + 64<<10 }

// wholeXz takes a file apart that is nothing but xz blocks. It returns false for others.
func (u *unpacker) wholeXz(data []byte) bool {
	old := oldXzFile(u.o.Old, u.o.Moves)
	return old != nil && len(u.plain) == 0 && u.xzAfter(data, old)
}

// xzAfter is wholeXz with the help of this old file.
func (u *unpacker) xzAfter(data []byte, old *oldStream) bool {
	if len(data) < xzHeader+2 {
		return false
	}
	u.prior(old)
	x := xzShape{kind: data[7]&shapeCheck | data[xzHeader+1]&(shapePacked|shapeContent), header: data[xzHeader]}
	d := relz.Describer{}
	in := bytes.NewReader(data)
	var records []xzRecord
	end := int64(0)
	err := xzParts(in, 0, int64(len(data)), func(at int64, s relz.Stream) (int64, error) {
		s.Size = min(s.Size, u.o.MaxPlain)
		if len(records) == 0 {
			d.Stream, x.stream = s, relz.Stream{Dict: s.Dict, X86: s.X86}
		}
		if s.Dict != x.stream.Dict || s.X86 != x.stream.X86 || s.X86 && len(records) > 0 {
			return 0, ErrUnsupported
		}
		d.Stream.Size = s.Size
		used, err := d.Block(data[at:])
		if err != nil {
			return 0, err
		}
		plain := d.Last()
		h, ok := xzHash(data[7])
		if !ok || used > mostPacked(int64(len(plain))) {
			return 0, ErrUnsupported
		}
		if h != nil {
			h.Write(plain)
		}
		head := x.head(int64(used), int64(len(plain)))
		tail, r := x.tail(int64(used), int64(len(plain)), xzSum(h))
		records = append(records, r)
		if at < int64(len(head)) || !bytes.Equal(data[at-int64(len(head)):at], head) || !bytes.HasPrefix(data[at+int64(used):], tail) {
			return 0, ErrUnsupported
		}
		end = at + int64(used+len(tail))
		return int64(used), nil
	})
	if err != nil || len(records) == 0 || !bytes.Equal(data[end:], x.finish(records)) {
		return false
	}
	out, err := d.Finish(old.history)
	if err != nil || len(out.Recipe) > out.Used/fixShare {
		return false
	}
	u.copyPending()
	n := int64(len(out.Plain))
	u.recipe.xz(n, old, &x, out.Recipe)
	u.encoders["xz, after the old file"] += n
	u.streams++
	u.content(out.Plain, 1)
	u.named("xz")
	return true
}

// prior lets what follows the old stream begin with the priors.
func (u *unpacker) prior(old *oldStream) {
	if u.o.Train {
		old.history.Train(u.o.Priors)
	} else {
		old.history.SetPriors(u.o.Priors)
	}
}

// oldXzFile learns from all blocks of an old file, if that is an xz file.
func oldXzFile(data []byte, moves []Move) *oldStream {
	file := bytes.NewReader(data)
	o := &oldStream{op: opXz}
	size := int64(len(data))
	err := xzParts(file, 0, size, func(at int64, s relz.Stream) (int64, error) {
		in := &countingReader{r: io.NewSectionReader(file, at, size-at)}
		n := &plainWriter{w: io.Discard}
		if err := relz.Expand(n, in, s); err != nil {
			return 0, err
		}
		o.stream.Dict = max(o.stream.Dict, s.Dict)
		o.stream.Size += n.n
		return in.n, nil
	})
	if err != nil || o.learn(nil, file, moves) != nil {
		return nil
	}
	return o
}

// learn reads what is to be known of an old file.
func (o *oldStream) learn(w io.Writer, file io.ReaderAt, moves []Move) error {
	var err error
	switch o.op {
	case opZstd:
		o.history, err = relz.LearnZstd(w, bufio.NewReaderSize(io.NewSectionReader(file, o.at, 1<<40), 64<<10), o.stream, moves)
		return err
	case opLzma:
		o.history, err = relz.Learn(w, bufio.NewReader(io.NewSectionReader(file, o.at, 1<<40)), o.stream, moves)
		return err
	}
	l, err := relz.NewLearner(w, o.stream, moves)
	if err != nil {
		return err
	}
	buf := bufio.NewReader(nil)
	err = xzParts(file, o.at, 1<<40, func(at int64, s relz.Stream) (int64, error) {
		in := &countingReader{r: io.NewSectionReader(file, at, 1<<40)}
		buf.Reset(in)
		if s.Dict > o.stream.Dict {
			return 0, ErrUnsupported
		}
		err := l.Block(buf, s.X86)
		return in.n - int64(buf.Buffered()), err
	})
	if err == nil {
		o.history, err = l.History()
	}
	return err
}

// xz writes a whole file.
func (r *Restorer) xz(w io.Writer, plain io.Reader, o operation) error {
	s, blocks, err := relz.Describes(o.fixes)
	if err != nil || s.Size != o.length {
		return relz.ErrRecipe
	}
	h, ok := xzHash(o.shape.kind & shapeCheck)
	if !ok || o.shape.kind&^shapeKnown != 0 {
		return relz.ErrRecipe
	}
	history, err := r.history(o)
	if err != nil {
		return err
	}
	x := o.shape
	x.stream = s
	sums := &blockSums{r: plain, h: h, blocks: blocks, sums: make(chan []byte, len(blocks))}
	r.packed.reset(mostPacked(slices.Max(blocks)))
	sums.complete() // nothing is read of a file without content
	var records []xzRecord
	if _, err := w.Write(x.start()); err != nil {
		return err
	}
	err = r.space.Rebuild(&r.packed, sums, o.length, o.fixes, history, func() error {
		packed, size := int64(len(r.packed.b)), blocks[len(records)]
		head := x.head(packed, size)
		tail, record := x.tail(packed, size, <-sums.sums)
		if head == nil {
			return relz.ErrRecipe
		}
		records = append(records, record)
		for _, p := range [][]byte{head, r.packed.b, tail} {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
		r.packed.b = r.packed.b[:0]
		return nil
	})
	if err == nil {
		_, err = w.Write(x.finish(records))
	}
	return err
}

// blockSums is a reader that hands the checksum of each block on as soon as all of it was read.
type blockSums struct {
	r      io.Reader
	h      hash.Hash // or nil
	blocks []int64   // what is left of each
	n      int64     // read of the first one
	sums   chan []byte
}

func (b *blockSums) Read(p []byte) (n int, err error) {
	if b.complete(); len(b.blocks) == 0 {
		return 0, io.EOF
	}
	n, err = b.r.Read(p[:min(int64(len(p)), b.blocks[0]-b.n)])
	if b.h != nil {
		b.h.Write(p[:n])
	}
	b.n += int64(n)
	b.complete()
	return n, err
}

// complete hands on the sums of blocks that were read.
func (b *blockSums) complete() {
	for len(b.blocks) > 0 && b.n == b.blocks[0] {
		b.sums <- xzSum(b.h)
		if b.h != nil {
			b.h.Reset()
		}
		b.blocks, b.n = b.blocks[1:], 0
	}
}

// A limitedBuffer keeps what is written to it.
type limitedBuffer struct {
	b     []byte
	limit int
}

// reset empties it; what is much larger than needed is given back.
func (l *limitedBuffer) reset(limit int) {
	l.limit = limit
	if cap(l.b) > 1<<bits.Len(uint(limit)) {
		l.b = nil
	}
	l.b = l.b[:0]
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if len(p) > l.limit-len(l.b) {
		return 0, relz.ErrRecipe
	}
	l.b = append(l.b, p...)
	return len(p), nil
}
