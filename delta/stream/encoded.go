package stream

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// maxUnencoded bounds what an encoded write may decode to. btrfs compresses
// extents of at most 128 KiB.
const maxUnencoded = 1 << 20

// decoders decode encoded writes; each is made when it is first needed.
type decoders struct {
	zlib io.ReadCloser
	zstd *zstd.Decoder
	buf  []byte
}

func (d *decoders) close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
}

// decode returns the bytes that an encoded write puts into the file. They are good
// until the next call.
func (d *decoders) decode(c *Command) ([]byte, error) {
	if c.Encryption != 0 {
		return nil, fmt.Errorf("encryption %d is not known", c.Encryption)
	}
	if c.UnencodedLen > maxUnencoded {
		return nil, fmt.Errorf("an extent of %d bytes; at most %d are allowed", c.UnencodedLen, maxUnencoded)
	}
	if c.UnencodedOffset > c.UnencodedLen || c.UnencodedFileLen > c.UnencodedLen-c.UnencodedOffset {
		return nil, fmt.Errorf("bytes %d+%d of an extent of %d", c.UnencodedOffset, c.UnencodedFileLen, c.UnencodedLen)
	}
	if uint64(cap(d.buf)) < c.UnencodedLen {
		d.buf = make([]byte, c.UnencodedLen)
	}
	out := d.buf[:c.UnencodedLen]
	n := 0
	var err error
	switch c.Compression {
	case 0:
		n = copy(out, c.Data)
	case 1:
		n, err = d.fromZlib(out, c.Data)
	case 2:
		n, err = d.fromZstd(out, c.Data)
	case 3, 4, 5, 6, 7:
		n, err = fromLZO(out, c.Data, 4096<<(c.Compression-3))
	default:
		err = fmt.Errorf("compression %d is not known: make the stream without --compressed-data", c.Compression)
	}
	if err != nil {
		return nil, err
	}
	clear(out[n:]) // an extent may decode to less: the rest of its last block is zero
	return out[c.UnencodedOffset : c.UnencodedOffset+c.UnencodedFileLen], nil
}

// fill reads until out is full or the compressed data ends. What follows it in the
// last block is padding.
func fill(r io.Reader, out []byte) (int, error) {
	n, err := io.ReadFull(r, out)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
		err = nil
	}
	return n, err
}

func (d *decoders) fromZlib(out, data []byte) (int, error) {
	var err error
	if d.zlib == nil {
		d.zlib, err = zlib.NewReader(bytes.NewReader(data))
	} else {
		err = d.zlib.(zlib.Resetter).Reset(bytes.NewReader(data), nil)
	}
	if err != nil {
		return 0, err
	}
	return fill(d.zlib, out)
}

func (d *decoders) fromZstd(out, data []byte) (int, error) {
	var err error
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(bytes.NewReader(data),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxUnencoded))
	} else {
		err = d.zstd.Reset(bytes.NewReader(data))
	}
	if err != nil {
		return 0, err
	}
	n, err := fill(d.zstd, out)
	if errors.Is(err, zstd.ErrMagicMismatch) && n > 0 {
		err = nil // the padding
	}
	return n, err
}
