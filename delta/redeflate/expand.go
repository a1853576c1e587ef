package redeflate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"hash/adler32"
	"hash/crc32"
	"io"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// ErrDamaged says that a compressed part of a file does not hold what it should.
var ErrDamaged = errors.New("a compressed part is damaged")

// An expander writes the plain of a file that it reads piece by piece.
type expander struct {
	w        *plainWriter
	file     io.ReaderAt
	size     int64
	buf      *bufio.Reader
	flat     io.ReadCloser
	contents []Segment
	learn    *learner // of the stream that a recipe refers to, or nil
	most     int64    // that a stream of LZMA2 or Zstandard may hold
}

func newExpander(w io.Writer, file io.ReaderAt, size int64) *expander {
	return &expander{w: &plainWriter{w: w}, file: file, size: size, buf: bufio.NewReaderSize(nil, 64<<10), most: maxXzPlain}
}

// content notes that plain from an offset on is the content of a stream.
func (e *expander) content(from int64) {
	e.contents = append(e.contents, Segment{Offset: from, Length: e.w.n - from, Kind: Content, Depth: 1})
}

func (e *expander) run() error {
	head, err := e.peek(0, kernelHeader)
	if err != nil {
		return err
	}
	if isZip(head) {
		return e.zip()
	}
	start := payload(head, e.size)
	if head, err = e.peek(start, cpioHeader); err != nil {
		return err
	}
	if !isGzip(head) && !isCpio(head) && !isXz(head) && !isZstd(head) {
		return ErrUnsupported
	}
	if err := e.copy(0, start); err != nil {
		return err
	}
	for at := start; at < e.size; {
		head, err := e.peek(at, cpioHeader)
		if err != nil {
			return err
		}
		n := int64(0)
		switch {
		case isGzip(head):
			n, err = e.gzip(at)
		case isXz(head):
			n, err = e.xz(at)
		case isZstd(head):
			n, err = e.zstd(at)
		case isCpio(head):
			n, err = e.cpio(at)
		}
		if err == nil && n == 0 {
			n, err = e.skip(at)
		}
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// peek returns up to n bytes at an offset.
func (e *expander) peek(at int64, n int) ([]byte, error) {
	p := make([]byte, min(int64(n), e.size-at))
	k, err := e.file.ReadAt(p, at)
	if k == len(p) {
		err = nil
	}
	return p[:k], err
}

// from starts reading the file at an offset.
func (e *expander) from(at int64) *bufio.Reader {
	e.buf.Reset(io.NewSectionReader(e.file, at, e.size-at))
	return e.buf
}

// copy writes n bytes of the file as they are.
func (e *expander) copy(at, n int64) error {
	_, err := io.Copy(e.w, io.NewSectionReader(e.file, at, n))
	return err
}

// inflate writes the content of the deflate stream that begins in r.
func (e *expander) inflate(w io.Writer, r *bufio.Reader) error {
	if e.flat == nil {
		e.flat = flate.NewReader(r)
	} else if err := e.flat.(flate.Resetter).Reset(r, nil); err != nil {
		return err
	}
	_, err := io.Copy(w, e.flat)
	return err
}

// gzip writes the content of one member and returns the member's length.
func (e *expander) gzip(at int64) (int64, error) {
	// The name in a header has no limit; what is longer than this is not one.
	head, err := e.peek(at, 128<<10)
	if err != nil {
		return 0, err
	}
	header := gzipHeaderLength(head)
	if header == 0 {
		return 0, nil
	}
	from := e.w.n
	body := &countingReader{r: io.NewSectionReader(e.file, at+int64(header), e.size-at-int64(header))}
	e.buf.Reset(body)
	sum := sumWriter{w: e.w}
	if err := e.inflate(&sum, e.buf); err != nil {
		return 0, err
	}
	used := body.n - int64(e.buf.Buffered())
	var trailer [gzipTrailer]byte
	if _, err := io.ReadFull(e.buf, trailer[:]); err != nil {
		return 0, ErrDamaged
	}
	if binary.LittleEndian.Uint32(trailer[:]) != sum.crc || binary.LittleEndian.Uint32(trailer[4:]) != sum.n {
		return 0, ErrDamaged
	}
	e.content(from)
	return int64(header) + used + gzipTrailer, nil
}

// zlib writes the content of a file that is one zlib stream (RFC 1950) and nothing else.
func (e *expander) zlib() error {
	head, err := e.peek(0, zlibHeader)
	if err != nil || !isZlib(head) {
		return ErrDamaged
	}
	sum := adler32.New()
	r := e.from(zlibHeader)
	if err := e.inflate(io.MultiWriter(e.w, sum), r); err != nil {
		return err
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(rest, sum.Sum(nil)) {
		return ErrDamaged
	}
	return nil
}

// xz writes the content of an xz file and returns the length of all but its
// index and footer.
func (e *expander) xz(at int64) (int64, error) {
	end := at
	var learner *relz.Learner
	if l := e.learn; l != nil && l.old.op == opXz && l.old.at == at {
		var err error
		if learner, err = relz.NewLearner(e.w, l.old.stream, l.moves); err != nil {
			return 0, err
		}
	}
	err := xzParts(e.file, at, e.size, func(at int64, s relz.Stream) (int64, error) {
		in := &countingReader{r: io.NewSectionReader(e.file, at, e.size-at)}
		e.buf.Reset(in)
		from := e.w.n
		if learner != nil && s.Dict <= e.learn.old.stream.Dict {
			if err := learner.Block(e.buf, s.X86); err != nil {
				return 0, err
			}
		} else if err := e.lzma(at, s); err != nil {
			return 0, err
		}
		e.content(from)
		used := in.n - int64(e.buf.Buffered())
		end = at + used
		return used, nil
	})
	if learner != nil && err == nil {
		e.learn.old.history, err = learner.History()
	}
	return end - at, err
}

// lzma writes the content of the stream in e.buf, which is at an offset of the file.
func (e *expander) lzma(at int64, s relz.Stream) (err error) {
	if l := e.learn; l != nil && l.old.op == opLzma && l.old.at == at {
		s.Dict, s.Size = l.old.stream.Dict, l.old.stream.Size // the filter is the file's
		l.old.history, err = relz.Learn(e.w, e.buf, s, l.moves)
		return err
	}
	s.Size = min(s.Size, e.most)
	return relz.Expand(e.w, e.buf, s)
}

// cpio writes an archive that is not compressed and returns its length.
func (e *expander) cpio(at int64) (int64, error) {
	start := at
	for at < e.size {
		head, err := e.peek(at, cpioHeader+4096)
		if err != nil {
			return 0, err
		}
		entry, ok := cpioHead(head, e.size-at)
		if !ok {
			break
		}
		at += int64(entry.header + entry.content + entry.padding)
		if entry.last {
			break
		}
	}
	return at - start, e.copy(start, at-start)
}

// skip writes padding, or all the rest, as Unpack does.
func (e *expander) skip(at int64) (int64, error) {
	r := e.from(at)
	n := int64(0)
	for {
		b, err := r.ReadByte()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
		if b != 0 {
			break
		}
		n++
	}
	if n == 0 {
		n = e.size - at
	}
	return n, e.copy(at, n)
}

func (e *expander) zip() error {
	members, err := zipMembers(e.file, e.size)
	if err != nil {
		return err
	}
	at := int64(0)
	for _, m := range members {
		if m.offset < at || m.method != zipDeflated {
			continue
		}
		if err := e.copy(at, m.offset-at); err != nil {
			return err
		}
		e.buf.Reset(io.NewSectionReader(e.file, m.offset, m.size))
		if err := e.inflate(e.w, e.buf); err != nil {
			return err
		}
		at = m.offset + m.size
	}
	return e.copy(at, e.size-at)
}

// sumWriter computes what the trailer of a gzip member says.
type sumWriter struct {
	w   io.Writer
	crc uint32
	n   uint32
}

func (s *sumWriter) Write(p []byte) (int, error) {
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p)
	s.n += uint32(len(p))
	return s.w.Write(p)
}

// plainWriter counts the plain that was written through it.
type plainWriter struct {
	w io.Writer
	n int64
}

func (c *plainWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// countingReader counts what was read through it.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// Recognize reports whether a file that begins with head may be one that
// Unpack takes apart. 1,024 bytes are enough.
func Recognize(head []byte) bool {
	padded := append(bytes.Clone(head[:min(len(head), kernelHeader)]), make([]byte, cpioHeader)...)
	return isGzip(padded) || isZip(padded) || isCpio(padded) || isXz(padded) || isZstd(padded) || isKernel(padded) || isZboot(padded)
}
