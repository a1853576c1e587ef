package delta

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// A codec compresses one stream of a bundle, solid from its start to its end.
// The numbers are part of the format.
type codec uint8

const (
	codecStore codec = iota // as it is
	codecLZMA2              // raw LZMA2, no container
	codecZstd               // one zstd frame
	numCodecs
)

// decoder returns a reader of the plain stream. It reads at most one byte more of
// r than it needs.
func (c codec) decoder(r byteReader, dict uint32) (io.Reader, error) {
	switch c {
	case codecStore:
		return r, nil
	case codecLZMA2:
		return lzma.Reader2Config{DictCap: int(dict)}.NewReader2(r)
	case codecZstd:
		return newZstd(r, dict)
	}
	return nil, fmt.Errorf("codec %d is unknown", c)
}

func newZstd(r io.Reader, dict uint32) (io.Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(uint64(max(dict, zstd.MinWindowSize))))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// compress writes the compressed stream in to out. dict bounds the memory of the decoder.
func (c codec) compress(ctx context.Context, out io.Writer, in io.Reader, dict uint32) error {
	switch c {
	case codecStore:
		_, err := io.Copy(out, in)
		return err
	case codecLZMA2:
		return compressLZMA2(ctx, out, in, dict)
	case codecZstd:
		z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(int(dict)), zstd.WithEncoderCRC(false))
		if err != nil {
			return err
		}
		if _, err := io.Copy(z, in); err != nil {
			z.Close()
			return err
		}
		return z.Close()
	}
	return fmt.Errorf("codec %d is unknown", c)
}

// compressLZMA2 uses the xz tool, whose -9e is a fifth smaller than the best pure Go
// encoder, and falls back to that where there is no xz.
func compressLZMA2(ctx context.Context, out io.Writer, in io.Reader, dict uint32) error {
	path, err := exec.LookPath("xz")
	if err != nil {
		w, err := lzma.Writer2Config{DictCap: int(dict)}.NewWriter2(out)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, in); err != nil {
			return err
		}
		return w.Close()
	}
	cmd := exec.CommandContext(ctx, path, "--compress", "--stdout", "--threads=1", "--format=raw",
		fmt.Sprintf("--lzma2=preset=9e,dict=%d,lc=%d,lp=0,pb=0", dict, 3))
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, &stderr
	cmd.Env = append(os.Environ(), "XZ_OPT=", "XZ_DEFAULTS=", "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("xz: %w: %.200s", err, stderr.Bytes())
	}
	return nil
}

// byteReader is what decoders need in order not to read ahead.
type byteReader interface {
	io.Reader
	io.ByteReader
}
