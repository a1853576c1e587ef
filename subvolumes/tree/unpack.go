package tree

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// unpack returns the plain content of r, which may be packed by gzip, bzip2, xz or
// zstd, by its first bytes. Close frees what the unpacker holds.
func unpack(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, &ArchiveError{Reason: "gzip: " + err.Error()}
		}
		return z, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		z, err := xz.ReaderConfig{DictCap: 1 << 16}.NewReader(b) // grows to what the stream says
		if err != nil {
			return nil, &ArchiveError{Reason: "xz: " + err.Error()}
		}
		return io.NopCloser(z), nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// zstd --long=27 and --ultra need a window of 128 MiB.
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderMaxMemory(1<<62))
		if err != nil {
			return nil, &ArchiveError{Reason: "zstd: " + err.Error()}
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	}
	return io.NopCloser(b), nil
}

// countReader tells how far the archive was read, and ends with its context.
type countReader struct {
	ctx context.Context
	r   io.Reader
	p   *progress
}

func (c *countReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(b)
	c.p.add(int64(n))
	return n, err
}

// endReader remembers that its input is over.
type endReader struct {
	r   io.Reader
	eof bool
}

func (e *endReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if err == io.EOF {
		if n > 0 {
			return n, nil // the end is told by a read that brings nothing
		}
		e.eof = true
	}
	return n, err
}
