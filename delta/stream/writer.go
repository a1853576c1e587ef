package stream

import (
	"encoding/binary"
	"fmt"
	"io"
)

// writeSize is the data of one write command, as the kernel cuts it: with a path
// it stays below the 64 KiB of every btrfs-progs' buffer.
const writeSize = 48 << 10

// A Writer writes a stream of version 1, which every btrfs-progs reads. It does
// one Write on the underlying writer for each command.
type Writer struct {
	w   io.Writer
	buf []byte
}

// NewWriter writes the stream's header.
func NewWriter(w io.Writer) (*Writer, error) {
	h := binary.LittleEndian.AppendUint32([]byte(magic), 1)
	if _, err := w.Write(h); err != nil {
		return nil, err
	}
	return &Writer{w: w}, nil
}

// Write writes one command; data of a Write command longer than 48 KiB is split.
// The caller ends the stream with an End command.
func (w *Writer) Write(c *Command) error {
	if c.Kind != Write {
		return w.command(c)
	}
	part := *c
	for rest := c.Data; len(rest) > 0; {
		n := min(len(rest), writeSize)
		part.Data = rest[:n]
		if err := w.command(&part); err != nil {
			return err
		}
		rest = rest[n:]
		part.Offset += uint64(n)
	}
	return nil
}

func (w *Writer) command(c *Command) error {
	info, known := infoOf(c.Kind)
	if !known || info.since > 1 {
		return fmt.Errorf("%v does not exist in version 1 of the send stream", c.Kind)
	}
	b := append(w.buf[:0], make([]byte, headerSize)...)
	var err error
	for a := attribute(1); a <= attrMax; a++ {
		// The inode number is optional when read, but old btrfs-progs want it.
		if info.needs&(1<<a) != 0 || a == attrIno && c.Kind >= Mkfile && c.Kind <= Symlink {
			if b, err = appendAttribute(b, c, a); err != nil {
				return err
			}
		}
	}
	w.buf = b
	binary.LittleEndian.PutUint32(b, uint32(len(b)-headerSize))
	binary.LittleEndian.PutUint16(b[4:], uint16(c.Kind))
	binary.LittleEndian.PutUint32(b[6:], checksum(0, b))
	_, err = w.w.Write(b)
	return err
}

// appendAttribute appends one attribute of c.
func appendAttribute(b []byte, c *Command, a attribute) ([]byte, error) {
	b = binary.LittleEndian.AppendUint16(b, uint16(a))
	lengthAt := len(b)
	b = append(b, 0, 0)
	switch a {
	case attrUUID:
		b = append(b, c.UUID[:]...)
	case attrCtransid:
		b = binary.LittleEndian.AppendUint64(b, c.Ctransid)
	case attrIno:
		b = binary.LittleEndian.AppendUint64(b, c.Ino)
	case attrSize, attrCloneLen:
		b = binary.LittleEndian.AppendUint64(b, c.Size)
	case attrMode:
		b = binary.LittleEndian.AppendUint64(b, uint64(c.Mode))
	case attrUID:
		b = binary.LittleEndian.AppendUint64(b, uint64(c.UID))
	case attrGID:
		b = binary.LittleEndian.AppendUint64(b, uint64(c.GID))
	case attrRdev:
		b = binary.LittleEndian.AppendUint64(b, c.Rdev)
	case attrCtime:
		b = appendTime(b, c.Ctime)
	case attrMtime:
		b = appendTime(b, c.Mtime)
	case attrAtime:
		b = appendTime(b, c.Atime)
	case attrXattrName:
		b = append(b, c.XattrName...)
	case attrXattrData, attrData:
		b = append(b, c.Data...)
	case attrPath:
		b = append(b, c.Path...)
	case attrPathTo:
		b = append(b, c.To...)
	case attrPathLink:
		b = append(b, c.Target...)
	case attrFileOffset:
		b = binary.LittleEndian.AppendUint64(b, c.Offset)
	case attrCloneUUID:
		b = append(b, c.CloneUUID[:]...)
	case attrCloneCtransid:
		b = binary.LittleEndian.AppendUint64(b, c.CloneCtransid)
	case attrClonePath:
		b = append(b, c.ClonePath...)
	case attrCloneOffset:
		b = binary.LittleEndian.AppendUint64(b, c.CloneOffset)
	}
	n := len(b) - lengthAt - 2
	if n > 0xffff {
		return b, fmt.Errorf("%v %q: %d bytes do not fit an attribute (65535)", c.Kind, c.Path, n)
	}
	binary.LittleEndian.PutUint16(b[lengthAt:], uint16(n))
	return b, nil
}

func appendTime(b []byte, t Time) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Sec))
	return binary.LittleEndian.AppendUint32(b, t.Nsec)
}
