package delta

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

// The streams of a section: data of one kind each, so that each is compressed
// solid over all files with what it resembles. The numbers are part of the format.
const (
	streamControl = iota // numbers: records and operations
	streamSeek           // numbers: where in a source to go on
	streamDiff           // differences to source bytes
	streamExtra          // bytes that no source has
	streamRaw            // checksums, signatures, and other bytes that do not compress
	streamRecipe         // how to compress again
	numStreams
)

var streamNames = [numStreams]string{"control", "seek", "diff", "extra", "raw", "recipe"}

// spool is a temporary file that has no name: it vanishes with the process.
type spool struct {
	f *os.File
	w *bufio.Writer
	n int64
}

func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, "btrovl-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 64<<10)}, nil
}

func (s *spool) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	return n, err
}

// reader flushes and returns a reader of everything from the start.
func (s *spool) reader() (*io.SectionReader, error) {
	if err := s.w.Flush(); err != nil {
		return nil, err
	}
	return io.NewSectionReader(s.f, 0, s.n), nil
}

func (s *spool) close() {
	if s.f != nil {
		s.f.Close()
	}
}

// streamWriter collects the plain streams of a section. A mark is taken where
// the interleaving may cut. Write errors stick in err.
type streamWriter struct {
	s     [numStreams]*spool
	marks [][numStreams]int64
	num   [binary.MaxVarintLen64]byte
	named *namedSources // of a shared section
	err   error
}

func newStreamWriter(dir string) (*streamWriter, error) {
	var w streamWriter
	for i := range w.s {
		s, err := newSpool(dir)
		if err != nil {
			w.close()
			return nil, err
		}
		w.s[i] = s
	}
	return &w, nil
}

func (w *streamWriter) close() {
	for _, s := range w.s {
		if s != nil {
			s.close()
		}
	}
}

func (w *streamWriter) bytes(stream int, p []byte) {
	if len(p) >= markEvery {
		// What was written to other streams must not lie behind all of this.
		w.markAfter(1)
	}
	if w.err == nil {
		_, w.err = w.s[stream].Write(p)
	}
}

func (w *streamWriter) uint(stream int, v uint64) {
	w.bytes(stream, binary.AppendUvarint(w.num[:0], v))
}

func (w *streamWriter) int(stream int, v int64) {
	w.bytes(stream, binary.AppendVarint(w.num[:0], v))
}

// markEvery is how much of all streams may lie between two marks: the reader
// buffers about that much of a stream that it does not need yet.
const markEvery = 64 << 10

// mark says that everything written so far is needed before anything that follows.
func (w *streamWriter) mark() { w.markAfter(markEvery) }

// markAfter takes a mark if at least that much was written since the last one.
func (w *streamWriter) markAfter(least int64) {
	var m [numStreams]int64
	var d int64
	for i, s := range w.s {
		m[i] = s.n
		if k := len(w.marks); k > 0 {
			d += m[i] - w.marks[k-1][i]
		} else {
			d += m[i]
		}
	}
	if d >= least {
		w.marks = append(w.marks, m)
	}
}

// A section is the part of a payload for one base:
//
//	u8   number of streams, and for each in the order of their numbers:
//	u8     codec
//	u32    dictionary or window size that the decoder needs
//	32   SHA-256 of the base's encoded listing, zeros without a base
//	u32  size of the new encoded listing
//	frames: u8 stream, u24 length, bytes of the compressed stream
//	u32  0xffffffff ends the section
//
// Integers are little endian. The frames stand in the order in which a reader
// needs them, so that one that applies while it reads holds little.
const (
	frameMin = 16 << 10 // a frame is at least this long, or its header would weigh
	frameMax = 1<<24 - 1
	endFrame = 0xffffffff
)

type sectionHead struct {
	codecs  [numStreams]codec
	dicts   [numStreams]uint32
	base    [32]byte // SHA-256 of the base's listing
	listing uint32   // bytes of the new listing
}

const sectionHeadSize = 1 + 5*numStreams + 32 + 4

func (h *sectionHead) encode() []byte {
	b := make([]byte, 0, sectionHeadSize)
	b = append(b, numStreams)
	for i := range h.codecs {
		b = append(b, byte(h.codecs[i]))
		b = binary.LittleEndian.AppendUint32(b, h.dicts[i])
	}
	b = append(b, h.base[:]...)
	return binary.LittleEndian.AppendUint32(b, h.listing)
}

func decodeSectionHead(b []byte) (*sectionHead, error) {
	var h sectionHead
	if b[0] != numStreams {
		return nil, damaged("a section with %d streams", b[0])
	}
	b = b[1:]
	for i := range h.codecs {
		h.codecs[i], h.dicts[i] = codec(b[0]), binary.LittleEndian.Uint32(b[1:])
		if h.codecs[i] >= numCodecs || h.dicts[i] > maxDict {
			return nil, damaged("stream %s with codec %d and window %d", streamNames[i], h.codecs[i], h.dicts[i])
		}
		b = b[5:]
	}
	copy(h.base[:], b)
	h.listing = binary.LittleEndian.Uint32(b[32:])
	return &h, nil
}

// maxDict bounds what a decoder allocates before it has read anything.
const maxDict = 128 << 20

// packed is a compressed stream and where its marks lie in it.
type packed struct {
	spool *spool
	need  []int64 // compressed bytes that are needed to decode up to each mark
}

// pack compresses the streams and interleaves them into out.
func (w *streamWriter) pack(ctx context.Context, dir string, h *sectionHead, out io.Writer) (report []StreamReport, err error) {
	if w.err != nil {
		return nil, w.err
	}
	var last [numStreams]int64
	for i, s := range w.s {
		last[i] = s.n
	}
	w.marks = append(w.marks, last)
	var p [numStreams]*packed
	errs := make(chan error, numStreams)
	for i := range p {
		p[i] = new(packed)
		go func() { errs <- w.packOne(ctx, dir, h, i, p[i]) }()
	}
	for range p {
		if e := <-errs; e != nil && err == nil {
			err = e
		}
	}
	for i := range p {
		if p[i].spool != nil {
			defer p[i].spool.close()
		}
	}
	if err != nil {
		return nil, err
	}
	if _, err := out.Write(h.encode()); err != nil {
		return nil, err
	}
	var done [numStreams]int64
	for k := range w.marks {
		for i := range p {
			if err := p[i].frames(out, i, &done[i], p[i].need[k]); err != nil {
				return nil, err
			}
		}
	}
	for i := range p {
		if err := p[i].frames(out, i, &done[i], p[i].spool.n); err != nil {
			return nil, err
		}
		report = append(report, StreamReport{Name: streamNames[i], Raw: w.s[i].n, Compressed: p[i].spool.n})
	}
	_, err = out.Write(binary.LittleEndian.AppendUint32(nil, endFrame))
	return report, err
}

// packOne compresses one stream, then decodes it again to see what each mark needs.
// That proves the codec, too.
func (w *streamWriter) packOne(ctx context.Context, dir string, h *sectionHead, i int, p *packed) error {
	in, err := w.s[i].reader()
	if err != nil {
		return err
	}
	if p.spool, err = newSpool(dir); err != nil {
		return err
	}
	if err := h.codecs[i].compress(ctx, p.spool, in, h.dicts[i]); err != nil {
		return fmt.Errorf("cannot compress the stream %s: %w", streamNames[i], err)
	}
	if p.spool.n >= w.s[i].n { // it did not pay
		p.spool.close()
		p.spool, h.codecs[i], h.dicts[i] = w.s[i], codecStore, 0
		w.s[i] = &spool{n: p.spool.n} // its file is the packed one's now
	}
	packed, err := p.spool.reader()
	if err != nil {
		return err
	}
	count := &countReader{r: bufio.NewReaderSize(packed, 64<<10)}
	plain, err := h.codecs[i].decoder(count, h.dicts[i])
	if err != nil {
		return err
	}
	var at int64
	for _, m := range w.marks {
		n, err := io.CopyN(io.Discard, plain, m[i]-at)
		at += n
		if err != nil {
			return fmt.Errorf("cannot decode the stream %s at byte %d of %d: %w", streamNames[i], at, w.s[i].n, err)
		}
		p.need = append(p.need, count.n)
	}
	return nil
}

// frames writes the compressed stream from *done to at least need.
func (p *packed) frames(out io.Writer, stream int, done *int64, need int64) error {
	for *done < need {
		n := min(max(need-*done, frameMin), p.spool.n-*done, frameMax)
		head := binary.LittleEndian.AppendUint32(nil, uint32(n)<<8|uint32(stream))
		if _, err := out.Write(head); err != nil {
			return err
		}
		if _, err := io.Copy(out, io.NewSectionReader(p.spool.f, *done, n)); err != nil {
			return err
		}
		*done += n
	}
	return nil
}

// countReader counts what a decoder takes.
type countReader struct {
	r *bufio.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}
