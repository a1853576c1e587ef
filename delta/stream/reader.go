package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"strings"
)

// A FormatError says that a stream is damaged, or that it needs more than this
// package knows.
type FormatError struct {
	Offset int64 // of the command in the stream
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("damaged send stream at byte %d: %s", e.Offset, e.Reason)
}

// A Reader reads the commands of a stream. Memory is bounded by the longest
// command that a kernel writes (256 KiB). It never reads beyond End, so that
// another stream may follow; what is slow in small reads is given to it as a
// bufio.Reader.
type Reader struct {
	r       io.Reader
	version int
	at      int64 // bytes read
	start   int64 // of the current command
	ended   bool
	err     error
	buf     []byte
}

// NewReader reads the stream's header.
func NewReader(r io.Reader) (*Reader, error) {
	var h [len(magic) + 4]byte
	if n, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, &FormatError{0, fmt.Sprintf("no send stream: only %d bytes", n)}
		}
		return nil, err
	}
	if string(h[:len(magic)]) != magic {
		return nil, &FormatError{0, "no send stream: it does not begin with \"btrfs-stream\""}
	}
	v := binary.LittleEndian.Uint32(h[len(magic):])
	if v < 1 || v > maxVersion {
		return nil, &FormatError{0, fmt.Sprintf("version %d; versions 1 to %d are known: make it with btrfs send --proto 1", v, maxVersion)}
	}
	return &Reader{r: r, version: int(v), at: int64(len(h))}, nil
}

// Version returns the version of the stream.
func (r *Reader) Version() int { return r.version }

// Offset returns the number of bytes read so far.
func (r *Reader) Offset() int64 { return r.at }

func (r *Reader) damaged(format string, args ...any) error {
	return &FormatError{r.start, fmt.Sprintf(format, args...)}
}

// Next reads the next command into c; after End it returns io.EOF. A stream that
// breaks off before End is a *FormatError. After an error every call returns it.
func (r *Reader) Next(c *Command) error {
	if r.err == nil && r.ended {
		r.err = io.EOF
	}
	if r.err == nil {
		r.err = r.next(c)
	}
	return r.err
}

func (r *Reader) next(c *Command) error {
	*c = Command{}
	r.start = r.at
	if cap(r.buf) < headerSize {
		r.buf = make([]byte, 4096)
	}
	h := r.buf[:headerSize]
	if err := r.read(h); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint32(h)
	kind := Kind(binary.LittleEndian.Uint16(h[4:]))
	want := binary.LittleEndian.Uint32(h[6:])
	if size > maxCommand {
		return r.damaged("a command of %d bytes; at most %d are allowed", size, maxCommand)
	}
	info, known := infoOf(kind)
	if !known {
		return r.damaged("unknown command %d", uint16(kind))
	}
	if info.since > r.version {
		return r.damaged("%v in a stream of version %d", kind, r.version)
	}
	clear(h[6:]) // the checksum is made over a zero checksum
	crc := checksum(0, h)
	if cap(r.buf) < int(size) {
		r.buf = make([]byte, int(size), 1<<bits.Len32(size))
	}
	body := r.buf[:size]
	if err := r.read(body); err != nil {
		return err
	}
	if crc = checksum(crc, body); crc != want {
		return r.damaged("the checksum of %v is %08x, not %08x", kind, crc, want)
	}
	c.Kind = kind
	have, err := r.attributes(c, body)
	if err != nil {
		return err
	}
	if missing := info.needs &^ have; missing != 0 {
		return r.damaged("%v lacks attribute %d", kind, bits.TrailingZeros64(missing))
	}
	r.ended = kind == End
	return nil
}

func (r *Reader) read(b []byte) error {
	n, err := io.ReadFull(r.r, b)
	r.at += int64(n)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return r.damaged("the stream ends before its end command")
	}
	return err
}

// attributes parses the attributes of a command and returns which there are.
func (r *Reader) attributes(c *Command, b []byte) (have uint64, err error) {
	for len(b) > 0 {
		if len(b) < 2 {
			return 0, r.damaged("%v: half an attribute", c.Kind)
		}
		a := attribute(binary.LittleEndian.Uint16(b))
		b = b[2:]
		if a == 0 || a > attrMax {
			return 0, r.damaged("%v: unknown attribute %d", c.Kind, a)
		}
		n := len(b)
		if a != attrData || r.version < 2 {
			if len(b) < 2 {
				return 0, r.damaged("%v: half an attribute", c.Kind)
			}
			n = int(binary.LittleEndian.Uint16(b))
			b = b[2:]
			if n > len(b) {
				return 0, r.damaged("%v: attribute %d of %d bytes in the last %d", c.Kind, a, n, len(b))
			}
		}
		if have&(1<<a) != 0 {
			return 0, r.damaged("%v: attribute %d twice", c.Kind, a)
		}
		have |= 1 << a
		if err := r.attribute(c, a, b[:n:n]); err != nil {
			return 0, err
		}
		b = b[n:]
	}
	return have, nil
}

// attribute stores one attribute.
func (r *Reader) attribute(c *Command, a attribute, v []byte) (err error) {
	switch a {
	case attrUUID:
		err = r.uuid(a, v, &c.UUID)
	case attrCtransid:
		c.Ctransid, err = r.uint(a, v, 8)
	case attrIno:
		c.Ino, err = r.uint(a, v, 8)
	case attrSize, attrCloneLen:
		c.Size, err = r.position(a, v)
	case attrMode:
		c.Mode, err = r.uint32(a, v)
	case attrUID:
		c.UID, err = r.uint32(a, v)
	case attrGID:
		c.GID, err = r.uint32(a, v)
	case attrRdev:
		c.Rdev, err = r.uint(a, v, 8)
	case attrCtime:
		err = r.time(a, v, &c.Ctime)
	case attrMtime:
		err = r.time(a, v, &c.Mtime)
	case attrAtime:
		err = r.time(a, v, &c.Atime)
	case attrOtime:
		err = r.time(a, v, &Time{}) // sent by version 2; cannot be set
	case attrXattrName:
		c.XattrName, err = r.text(a, v, maxXattr)
	case attrXattrData, attrData:
		c.Data = v
	case attrPath:
		c.Path, err = r.text(a, v, maxPath)
	case attrPathTo:
		c.To, err = r.text(a, v, maxPath)
	case attrPathLink:
		c.Target, err = r.text(a, v, maxPath)
	case attrFileOffset:
		c.Offset, err = r.position(a, v)
	case attrCloneUUID:
		err = r.uuid(a, v, &c.CloneUUID)
	case attrCloneCtransid:
		c.CloneCtransid, err = r.uint(a, v, 8)
	case attrClonePath:
		c.ClonePath, err = r.text(a, v, maxPath)
	case attrCloneOffset:
		c.CloneOffset, err = r.position(a, v)
	case attrFallocateMode:
		c.FallocateMode, err = r.word(a, v)
	case attrFileAttr:
		c.Attr, err = r.uint(a, v, 8)
	case attrUnencodedFileLen:
		c.UnencodedFileLen, err = r.position(a, v)
	case attrUnencodedLen:
		c.UnencodedLen, err = r.position(a, v)
	case attrUnencodedOffset:
		c.UnencodedOffset, err = r.position(a, v)
	case attrCompression:
		c.Compression, err = r.word(a, v)
	case attrEncryption:
		c.Encryption, err = r.word(a, v)
	case attrVerityAlgorithm:
		var u uint64
		u, err = r.uint(a, v, 1)
		c.VerityAlgorithm = uint8(u)
	case attrVerityBlockSize:
		c.VerityBlockSize, err = r.word(a, v)
	case attrVeritySalt:
		c.VeritySalt = v
	case attrVeritySig:
		c.VeritySig = v
	}
	return err
}

// uint reads an integer of the given size.
func (r *Reader) uint(a attribute, v []byte, size int) (uint64, error) {
	if len(v) != size {
		return 0, r.damaged("attribute %d has %d bytes, not %d", a, len(v), size)
	}
	u := uint64(0)
	for i, c := range v {
		u |= uint64(c) << (8 * i)
	}
	return u, nil
}

// word reads an integer of 32 bits.
func (r *Reader) word(a attribute, v []byte) (uint32, error) {
	u, err := r.uint(a, v, 4)
	return uint32(u), err
}

// uint32 reads an integer of 64 bits that must fit 32.
func (r *Reader) uint32(a attribute, v []byte) (uint32, error) {
	u, err := r.uint(a, v, 8)
	if err == nil && u > math.MaxUint32 {
		err = r.damaged("attribute %d is %d, beyond 32 bits", a, u)
	}
	return uint32(u), err
}

// position reads an offset or length in a file.
func (r *Reader) position(a attribute, v []byte) (uint64, error) {
	u, err := r.uint(a, v, 8)
	if err == nil && u > math.MaxInt64 {
		err = r.damaged("attribute %d is %d, beyond any file", a, u)
	}
	return u, err
}

func (r *Reader) uuid(a attribute, v []byte, to *UUID) error {
	if len(v) != len(to) {
		return r.damaged("attribute %d has %d bytes, not %d", a, len(v), len(to))
	}
	copy(to[:], v)
	return nil
}

func (r *Reader) time(a attribute, v []byte, to *Time) error {
	if len(v) != 12 {
		return r.damaged("attribute %d has %d bytes, not 12", a, len(v))
	}
	to.Sec = int64(binary.LittleEndian.Uint64(v))
	to.Nsec = binary.LittleEndian.Uint32(v[8:])
	if to.Nsec >= 1e9 {
		return r.damaged("attribute %d has %d nanoseconds", a, to.Nsec)
	}
	return nil
}

func (r *Reader) text(a attribute, v []byte, max int) (string, error) {
	if len(v) > max {
		return "", r.damaged("attribute %d has %d bytes; at most %d are allowed", a, len(v), max)
	}
	s := string(v)
	if strings.IndexByte(s, 0) >= 0 {
		return "", r.damaged("attribute %d contains a zero byte", a)
	}
	return s, nil
}
