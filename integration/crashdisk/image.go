package crashdisk

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// PageSize is the unit in which images share content.
	PageSize = 4096
	// SectorSize is the unit that a disk writes all or nothing.
	SectorSize = 512

	nodePages = 256 // pages per node: 1 MiB
)

type page = [PageSize]byte

// A node holds 1 MiB of an image. Pages are immutable once they are in a node;
// nil reads as zeroes. Only the image that made a node changes it.
type node struct {
	owner *Image
	pages [nodePages]*page
}

// Image is the content of a disk: an array of pages that images share
// copy-on-write. It is not safe for concurrent use, but clones are independent.
type Image struct {
	size  int64
	nodes []*node // nil: all zeroes
	sum   uint64  // xor over the hashes of all pages that are not zero
}

// NewImage returns an image of zeroes.
func NewImage(size int64) *Image {
	return &Image{size: size, nodes: make([]*node, (size+nodePages*PageSize-1)/(nodePages*PageSize))}
}

// Size returns the size in bytes.
func (m *Image) Size() int64 { return m.size }

// Sum identifies the content within this process: images with equal content have
// equal sums.
func (m *Image) Sum() uint64 { return m.sum }

// Clone returns an independent image with the same content. It costs 8 bytes per MiB.
func (m *Image) Clone() *Image {
	for _, n := range m.nodes {
		if n != nil && n.owner == m {
			n.owner = nil // shared from now on: whoever writes copies it first
		}
	}
	return &Image{size: m.size, nodes: append([]*node(nil), m.nodes...), sum: m.sum}
}

func (m *Image) page(i int64) *page {
	if n := m.nodes[i/nodePages]; n != nil {
		return n.pages[i%nodePages]
	}
	return nil
}

func (m *Image) setPage(i int64, p *page) {
	if p != nil && *p == (page{}) {
		p = nil
	}
	old := m.page(i)
	if old == p {
		return
	}
	n := m.nodes[i/nodePages]
	switch {
	case n == nil:
		n = &node{owner: m}
	case n.owner != m:
		c := *n
		c.owner = m
		n = &c
	}
	m.nodes[i/nodePages] = n
	n.pages[i%nodePages] = p
	m.sum ^= pageSum(i, old) ^ pageSum(i, p)
}

var pageSeed = maphash.MakeSeed() // sums are compared within one process only

func pageSum(i int64, p *page) uint64 {
	if p == nil {
		return 0
	}
	var h maphash.Hash
	h.SetSeed(pageSeed)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(i))
	h.Write(b[:])
	h.Write(p[:])
	return h.Sum64()
}

// WriteAt writes data, which must not change afterwards: whole pages are kept, not
// copied. Writing past the end is an error.
func (m *Image) WriteAt(data []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(data)) > m.size {
		return 0, fmt.Errorf("write of %d bytes at %d is outside the disk of %d bytes", len(data), off, m.size)
	}
	total := len(data)
	for len(data) > 0 {
		i, in := off/PageSize, int(off%PageSize)
		n := min(PageSize-in, len(data))
		if n == PageSize {
			m.setPage(i, (*page)(data[:PageSize]))
		} else {
			var p page
			if old := m.page(i); old != nil {
				p = *old
			}
			copy(p[in:], data[:n])
			m.setPage(i, &p)
		}
		data, off = data[n:], off+int64(n)
	}
	return total, nil
}

// ReadAt implements [io.ReaderAt].
func (m *Image) ReadAt(b []byte, off int64) (int, error) {
	total := 0
	for len(b) > 0 {
		if off >= m.size {
			return total, io.EOF
		}
		in := int(off % PageSize)
		n := min(PageSize-in, len(b), int(min(m.size-off, PageSize)))
		if p := m.page(off / PageSize); p != nil {
			copy(b[:n], p[in:])
		} else {
			clear(b[:n])
		}
		b, off, total = b[n:], off+int64(n), total+n
	}
	return total, nil
}

// Zero makes a range read as zeroes.
func (m *Image) Zero(off, length int64) {
	end := min(off+length, m.size)
	for off < end {
		i, in := off/PageSize, off%PageSize
		n := min(PageSize-in, end-off)
		if old := m.page(i); n == PageSize {
			m.setPage(i, nil)
		} else if old != nil {
			p := *old
			clear(p[in : in+n])
			m.setPage(i, &p)
		}
		off += n
	}
}

// Store writes the image to a sparse file, which gets the image's size. What the
// file held before remains where the image is zero: give it an empty file.
func (m *Image) Store(f *os.File) error {
	if err := f.Truncate(m.size); err != nil {
		return err
	}
	var run [][]byte
	var start int64
	flush := func() error {
		for off := start; len(run) > 0; {
			n, err := unix.Pwritev(int(f.Fd()), run, off)
			if err != nil {
				return fmt.Errorf("cannot write the image: %w", err)
			}
			off += int64(n)
			for n > 0 { // a short write ends within a page at worst
				k := min(n, len(run[0]))
				if run[0] = run[0][k:]; len(run[0]) == 0 {
					run = run[1:]
				}
				n -= k
			}
		}
		return nil
	}
	for ni, n := range m.nodes {
		if n == nil {
			continue
		}
		for pi, p := range n.pages {
			if p == nil {
				continue
			}
			off := (int64(ni)*nodePages + int64(pi)) * PageSize
			if len(run) > 0 && (off != start+int64(len(run))*PageSize || len(run) == 512) {
				if err := flush(); err != nil {
					return err
				}
			}
			if len(run) == 0 {
				run, start = run[:0:0], off
			}
			run = append(run, p[:min(PageSize, m.size-off)])
		}
	}
	return flush()
}

// Load reads an image from a file, skipping its holes.
func Load(f *os.File) (*Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m := NewImage(st.Size())
	for off := int64(0); off < m.size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot find data in the image: %w", err)
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("cannot find a hole in the image: %w", err)
		}
		for off = data - data%PageSize; off < hole; {
			b := make([]byte, min(1<<20, m.size-off, (hole-off+PageSize-1)/PageSize*PageSize))
			n, err := f.ReadAt(b, off)
			if err != nil && err != io.EOF {
				return nil, err
			}
			if n == 0 {
				break
			}
			if _, err := m.WriteAt(b[:n], off); err != nil {
				return nil, err
			}
			off += int64(n)
		}
	}
	return m, nil
}
