package crashdisk

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Kind says what an [Op] did.
type Kind uint8

const (
	Write   Kind = 1 // Data at Off
	Discard Kind = 2 // Len bytes at Off now read as zeroes (punch hole, write zeroes)
	Flush   Kind = 3 // everything before is on stable storage
	Mark    Kind = 4 // the workload passed the point that Data names
	Failed  Kind = 5 // a fault rule refused a request on Len bytes at Off
)

func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Discard:
		return "discard"
	case Flush:
		return "flush"
	case Mark:
		return "mark"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Op is one recorded request, or a mark.
type Op struct {
	Kind Kind
	Off  int64
	Len  int64
	Data []byte // of a write; the name of a mark
}

func (o Op) String() string {
	switch o.Kind {
	case Flush:
		return "flush"
	case Mark:
		return "mark " + string(o.Data)
	}
	return fmt.Sprintf("%v %d+%d", o.Kind, o.Off, o.Len)
}

// The log is a memory file that parent and child share. The child only appends:
//
//	offset  size  field
//	0       1     kind
//	1       7     zero
//	8       8     offset on the disk
//	16      8     length on the disk
//	24      8     bytes of data that follow
//	32            data
//
// Integers are little endian. A record is in the log before its request is answered.
const logHeader = 32

type logWriter struct {
	mu  sync.Mutex
	f   *os.File
	end int64
	n   int // records
}

// append writes one record and returns how many there are.
func (l *logWriter) append(k Kind, off, length int64, data []byte) (int, error) {
	var h [logHeader]byte
	h[0] = byte(k)
	binary.LittleEndian.PutUint64(h[8:], uint64(off))
	binary.LittleEndian.PutUint64(h[16:], uint64(length))
	binary.LittleEndian.PutUint64(h[24:], uint64(len(data)))
	want := logHeader + len(data)
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := unix.Pwritev(int(l.f.Fd()), [][]byte{h[:], data}, l.end)
	if err == nil && n != want {
		err = io.ErrShortWrite
	}
	if err != nil {
		return l.n, fmt.Errorf("cannot write the log: %w", err)
	}
	l.end += int64(want)
	l.n++
	return l.n, nil
}

// readLog reads all whole records from offset at on and returns where they end.
func readLog(f *os.File, at int64) ([]Op, int64, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, at, err
	}
	var ops []Op
	var h [logHeader]byte
	for at+logHeader <= st.Size() {
		if _, err := f.ReadAt(h[:], at); err != nil {
			return ops, at, fmt.Errorf("cannot read the log: %w", err)
		}
		op := Op{
			Kind: Kind(h[0]),
			Off:  int64(binary.LittleEndian.Uint64(h[8:])),
			Len:  int64(binary.LittleEndian.Uint64(h[16:])),
		}
		n := int64(binary.LittleEndian.Uint64(h[24:]))
		if n < 0 || n > st.Size()-at-logHeader {
			break // the child is writing it
		}
		if n > 0 {
			op.Data = make([]byte, n)
			if _, err := f.ReadAt(op.Data, at+logHeader); err != nil {
				return ops, at, fmt.Errorf("cannot read the log: %w", err)
			}
		}
		ops = append(ops, op)
		at += logHeader + n
	}
	return ops, at, nil
}

// apply does to the image what the operation did to the disk.
func (o Op) apply(m *Image) error {
	switch o.Kind {
	case Write:
		_, err := m.WriteAt(o.Data, o.Off)
		return err
	case Discard:
		m.Zero(o.Off, o.Len)
	}
	return nil
}
