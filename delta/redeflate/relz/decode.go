package relz

import (
	"errors"
	"io"
)

var errLZMA = errors.New("damaged LZMA2 data")

// A chunk is the header of a piece of an LZMA2 stream.
//
//	0x00                      the end
//	0x01, 0x02                bytes as they are; 0x01 forgets the dictionary
//	0x80 | reset<<5 | size    compressed; reset 1: state, 2: and new
//	                          properties, 3: and the dictionary
type chunk struct {
	control    byte // without the bits of size
	properties byte
	size       int // bytes that it stands for, at most 2 MiB
	packed     int // bytes that it takes, at most 64 KiB
}

const (
	chunkEnd        = 0x00
	chunkRawReset   = 0x01
	chunkRaw        = 0x02
	chunkCompressed = 0x80
	chunkResetMask  = 0x60
	chunkProperties = 0x40 // this or more: properties follow

	maxChunk  = 2 << 20
	maxPacked = 64 << 10
)

func (c *chunk) raw() bool { return c.control < chunkCompressed }

// readChunk reads a header, or io.EOF at the end of the stream.
func readChunk(r io.Reader) (c chunk, err error) {
	var b [6]byte
	if _, err = io.ReadFull(r, b[:1]); err != nil {
		return c, io.ErrUnexpectedEOF
	}
	switch {
	case b[0] == chunkEnd:
		return c, io.EOF
	case b[0] == chunkRaw || b[0] == chunkRawReset:
		if _, err = io.ReadFull(r, b[1:3]); err != nil {
			return c, io.ErrUnexpectedEOF
		}
		c.control = b[0]
		c.size = int(b[1])<<8 + int(b[2]) + 1
		c.packed = c.size
		return c, nil
	case b[0] < chunkCompressed:
		return c, errLZMA
	}
	n := 5
	if b[0]&chunkResetMask >= chunkProperties {
		n = 6
	}
	if _, err = io.ReadFull(r, b[1:n]); err != nil {
		return c, io.ErrUnexpectedEOF
	}
	c.control = b[0] &^ 0x1f
	c.size = int(b[0]&0x1f)<<16 + int(b[1])<<8 + int(b[2]) + 1
	c.packed = int(b[3])<<8 + int(b[4]) + 1
	c.properties = b[5]
	return c, nil
}

// appendTo writes the header.
func (c *chunk) appendTo(b []byte) []byte {
	n := c.size - 1
	if c.raw() {
		return append(b, c.control, byte(n>>8), byte(n))
	}
	p := c.packed - 1
	b = append(b, c.control|byte(n>>16), byte(n>>8), byte(n), byte(p>>8), byte(p))
	if c.control&chunkResetMask >= chunkProperties {
		b = append(b, c.properties)
	}
	return b
}

// begin resets the model as the header of a chunk says. fresh says that the
// stream has had no state so far, which the first chunk must change.
func (m *model) begin(c chunk, fresh bool) bool {
	reset := c.control & chunkResetMask
	if fresh && reset < chunkProperties {
		return false
	}
	if reset >= chunkProperties && !m.setProperties(c.properties) {
		return false
	}
	if reset > 0 {
		m.reset()
	}
	return true
}

// A streamDecoder decodes one LZMA2 stream chunk by chunk.
type streamDecoder struct {
	r      io.Reader
	w      *window
	m      model
	c      coder
	fresh  bool
	packed []byte
}

// newDecoder prepares to decode r through w.
func newDecoder(r io.Reader, w *window) *streamDecoder {
	return &streamDecoder{r: r, w: w, fresh: true, packed: make([]byte, maxPacked)}
}

// next decodes a chunk and returns its header and content, which is good until
// the next call; io.EOF at the end. token, unless nil, sees each token.
func (d *streamDecoder) next(token func(pos int64, t Token)) (c chunk, content []byte, err error) {
	if c, err = readChunk(d.r); err != nil {
		return c, nil, err
	}
	w := d.w
	begin := w.end
	if !w.slide(begin, c.size) {
		return c, nil, errLZMA
	}
	if c.raw() {
		err = w.read(d.r, c.size)
		if token != nil {
			for i := range c.size {
				token(begin+int64(i), Token{Literal, 1, 0})
			}
		}
		return c, w.at(begin)[:c.size], err
	}
	in := d.packed[:c.packed]
	if _, err := io.ReadFull(d.r, in); err != nil {
		return c, nil, io.ErrUnexpectedEOF
	}
	if !d.c.decode(in) || !d.m.begin(c, d.fresh) {
		return c, nil, errLZMA
	}
	d.fresh = false
	end := begin + int64(c.size)
	buf, at := w.buf, int(begin-w.start)
	for stop := int(end - w.start); at < stop; {
		previous, matched := byte(0), byte(0)
		if at > 0 {
			previous = buf[at-1]
			if from := at - 1 - int(d.m.reps[0]); from >= 0 {
				matched = buf[from]
			}
		}
		t, b := code(&d.c, &d.m, Token{}, uint32(w.start)+uint32(at), previous, matched, 0)
		if token != nil {
			token(w.start+int64(at), t)
		}
		if t.Kind == Literal {
			buf[at] = b
			at++
			continue
		}
		from := at - 1 - int(t.Dist)
		if from < 0 || int64(t.Dist) >= int64(w.keep) || int(t.Len) > stop-at {
			return c, nil, errLZMA
		}
		for range t.Len {
			buf[at] = buf[from]
			at++
			from++
		}
	}
	w.end = end
	if d.c.over() {
		return c, nil, errLZMA
	}
	return c, w.at(begin)[:c.size], nil
}
