package redeflate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io"
	"slices"
)

// A squashfs 4.0 image (Documentation/filesystems/squashfs.rst in the kernel, and squashfs-tools' squashfs_fs.h):
// a superblock, data blocks and fragments packed one behind the other, then tables of metadata blocks. Each block is
// compressed for itself. Where data blocks are, and how long, only the inodes say.
const (
	squashMagic = "hsqs"
	squashHead  = 96

	squashGzip = 1 // zlib streams (RFC 1950)
	squashXz   = 4 // whole xz files
	squashZstd = 6 // Zstandard frames

	squashPlain    = 1 << 24 // of a block's length: it is not compressed
	squashMetaSize = 8 << 10
	squashNone     = 1<<64 - 1
	// maxChunks bounds the list of blocks, and what it takes: 24 bytes each.
	maxChunks = 1 << 18
)

type squashSuper struct {
	inodes, blockSize, fragments uint32
	compressor                   uint16
	ids                          uint16
	// Where tables begin.
	idTable, xattrTable, inodeTable, dirTable, fragmentTable, exportTable uint64
}

// squashSuperblock reads a superblock; ok is false for what is none, or a kind that cannot be taken apart.
func squashSuperblock(p []byte) (s squashSuper, ok bool) {
	if len(p) < squashHead || string(p[:4]) != squashMagic {
		return s, false
	}
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(p[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(p[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(p[at:]) }
	s = squashSuper{inodes: u32(4), blockSize: u32(12), fragments: u32(16), compressor: u16(20), ids: u16(26),
		idTable: u64(48), xattrTable: u64(56), inodeTable: u64(64), dirTable: u64(72), fragmentTable: u64(80), exportTable: u64(88)}
	log := u16(22)
	known := s.compressor == squashGzip || s.compressor == squashXz || s.compressor == squashZstd
	return s, known && u16(28) == 4 && u16(30) == 0 && log >= 12 && log <= 20 && s.blockSize == 1<<log
}

// An imageChunk is a compressed block of an image.
type imageChunk struct {
	at     int64 // in the file
	inside int64 // where its content begins in the expanded image
	packed int32
	size   int32 // room for its content, at least that of it
}

// A squashReader collects the blocks of an image.
type squashReader struct {
	im     *Image
	super  squashSuper
	size   uint64
	chunks []imageChunk
}

// squashChunks returns the compressed blocks of a squashfs image, sorted and without overlaps. ErrUnsupported says that
// this is no image that can be understood.
func (im *Image) squashChunks(s squashSuper) ([]imageChunk, error) {
	r := &squashReader{im: im, super: s, size: uint64(im.fileSize)}
	if s.inodeTable < squashHead || s.dirTable <= s.inodeTable || s.dirTable > r.size {
		return nil, ErrUnsupported
	}
	if err := r.inodes(); err != nil {
		return nil, err
	}
	if err := r.tables(); err != nil {
		return nil, err
	}
	slices.SortFunc(r.chunks, func(a, b imageChunk) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.packed, b.packed), cmp.Compare(b.size, a.size))
	})
	// Files with equal content share their blocks. The one that promises most room stays.
	r.chunks = slices.CompactFunc(r.chunks, func(a, b imageChunk) bool { return a.at == b.at && a.packed == b.packed })
	end := int64(squashHead)
	for _, c := range r.chunks {
		if c.at < end || c.at+int64(c.packed) > im.fileSize {
			return nil, ErrUnsupported
		}
		end = c.at + int64(c.packed)
	}
	return r.chunks, nil
}

// add notes a block, if it is compressed.
func (r *squashReader) add(at uint64, length uint32, room uint32) error {
	if length == 0 || length&squashPlain != 0 {
		return nil
	}
	if length > 2<<20 || at > r.size || uint64(length) > r.size-at || len(r.chunks) >= maxChunks {
		return ErrUnsupported
	}
	r.chunks = append(r.chunks, imageChunk{at: int64(at), packed: int32(length), size: int32(room)})
	return nil
}

// metadata reads the metadata block at an offset and returns its content and where the next begins. With note it is one of
// the image's blocks.
func (r *squashReader) metadata(at uint64, note bool) (content []byte, next uint64, err error) {
	head, err := r.im.bytes(int64(at), 2)
	if err != nil {
		return nil, 0, err
	}
	h := binary.LittleEndian.Uint16(head)
	n := uint64(h &^ 0x8000)
	if n == 0 || n > squashMetaSize+64 {
		return nil, 0, ErrUnsupported
	}
	next = at + 2 + n
	if next > r.size {
		return nil, 0, ErrUnsupported
	}
	if h&0x8000 != 0 {
		content, err = r.im.bytes(int64(at+2), int(n))
		return content, next, err
	}
	if note {
		if err := r.add(at+2, uint32(n), squashMetaSize); err != nil {
			return nil, 0, err
		}
	}
	content, err = r.im.expandAt(int64(at+2), int(n), squashMetaSize)
	return content, next, err
}

// A squashTable reads what the metadata blocks from one offset to another hold.
type squashTable struct {
	r        *squashReader
	at, end  uint64
	have     []byte
	consumed int
}

// next returns the next n bytes, valid until the next call.
func (t *squashTable) next(n int) ([]byte, error) {
	for len(t.have)-t.consumed < n {
		if t.at >= t.end {
			return nil, ErrUnsupported
		}
		content, next, err := t.r.metadata(t.at, true)
		if err != nil {
			return nil, err
		}
		t.have = append(t.have[:copy(t.have, t.have[t.consumed:])], content...)
		t.at, t.consumed = next, 0
	}
	p := t.have[t.consumed : t.consumed+n]
	t.consumed += n
	return p, nil
}

// inodes reads the inode table: of files, where their blocks are.
func (r *squashReader) inodes() error {
	t := &squashTable{r: r, at: r.super.inodeTable, end: r.super.dirTable}
	for range r.super.inodes {
		head, err := t.next(16)
		if err != nil {
			return err
		}
		if err := r.inode(t, binary.LittleEndian.Uint16(head)); err != nil {
			return err
		}
	}
	return nil
}

// inode reads what follows the head of an inode.
func (r *squashReader) inode(t *squashTable, kind uint16) error {
	skip := func(n int) error { _, err := t.next(n); return err }
	u32 := binary.LittleEndian.Uint32
	switch kind {
	case 1: // directory
		return skip(16)
	case 8: // directory with an index
		p, err := t.next(24)
		if err != nil {
			return err
		}
		for range binary.LittleEndian.Uint16(p[16:]) {
			e, err := t.next(12)
			if err != nil {
				return err
			}
			if n := u32(e[8:]); n > 1<<10 {
				return ErrUnsupported
			} else if err := skip(int(n) + 1); err != nil {
				return err
			}
		}
		return nil
	case 2: // file
		p, err := t.next(16)
		if err != nil {
			return err
		}
		return r.file(t, uint64(u32(p)), uint64(u32(p[12:])), u32(p[4:]))
	case 9: // file with more to it
		p, err := t.next(40)
		if err != nil {
			return err
		}
		return r.file(t, binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]), u32(p[28:]))
	case 3, 10: // symbolic link
		p, err := t.next(8)
		if err != nil {
			return err
		}
		n := u32(p[4:])
		if n > 1<<16 {
			return ErrUnsupported
		}
		if kind == 10 {
			n += 4
		}
		return skip(int(n))
	case 4, 5: // device
		return skip(8)
	case 11, 12:
		return skip(12)
	case 6, 7: // FIFO, socket
		return skip(4)
	case 13, 14:
		return skip(8)
	}
	return ErrUnsupported
}

// file reads the lengths of a file's blocks.
func (r *squashReader) file(t *squashTable, at, size uint64, fragment uint32) error {
	block := uint64(r.super.blockSize)
	n := size / block
	rest := uint32(size % block)
	if fragment == 1<<32-1 && rest > 0 {
		n++
	}
	for i := range n {
		p, err := t.next(4)
		if err != nil {
			return err
		}
		room := r.super.blockSize
		if i == n-1 && rest > 0 && fragment == 1<<32-1 {
			room = rest
		}
		length := binary.LittleEndian.Uint32(p)
		if err := r.add(at, length, room); err != nil {
			return err
		}
		at += uint64(length &^ squashPlain)
	}
	return nil
}

// tables reads the other tables: the one of fragments for what it says, all for where their blocks are.
func (r *squashReader) tables() error {
	s := &r.super
	first := min(s.fragmentTable, s.exportTable, s.idTable, s.xattrTable, r.size)
	// A table is a list of where its metadata blocks are, behind these.
	list := func(at uint64, entries, entrySize uint64, each func(p []byte) error) error {
		if at == squashNone || entries == 0 {
			return nil
		}
		for i := range (entries*entrySize + squashMetaSize - 1) / squashMetaSize {
			p, err := r.im.bytes(int64(at+8*i), 8)
			if err != nil {
				return err
			}
			block := binary.LittleEndian.Uint64(p)
			if block > r.size {
				return ErrUnsupported
			}
			first = min(first, block)
			content, _, err := r.metadata(block, true)
			if err != nil {
				return err
			}
			for ; each != nil && len(content) >= int(entrySize); content = content[entrySize:] {
				if err := each(content); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err := list(s.fragmentTable, uint64(s.fragments), 16, func(p []byte) error {
		return r.add(binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint32(p[8:]), s.blockSize)
	})
	if err == nil {
		err = list(s.exportTable, uint64(s.inodes), 8, nil)
	}
	if err == nil {
		err = list(s.idTable, uint64(s.ids), 4, nil)
	}
	if err == nil && s.xattrTable != squashNone {
		var p []byte
		if p, err = r.im.bytes(int64(s.xattrTable), 16); err == nil {
			pairs, before := binary.LittleEndian.Uint64(p), first
			first = s.xattrTable // the pairs are behind the other tables
			err = list(s.xattrTable+16, uint64(binary.LittleEndian.Uint32(p[8:])), 16, nil)
			if err == nil && pairs < first {
				err = r.blocks(pairs, first)
			}
			first = min(before, first, pairs)
		}
	}
	if err == nil {
		err = r.blocks(s.dirTable, first)
	}
	return err
}

// blocks notes the metadata blocks from one offset to another.
func (r *squashReader) blocks(at, end uint64) error {
	for at < end {
		if end-at < 2 {
			return ErrUnsupported
		}
		head, err := r.im.bytes(int64(at), 2)
		if err != nil {
			return err
		}
		h := binary.LittleEndian.Uint16(head)
		n := uint64(h &^ 0x8000)
		if n == 0 || n > end-at-2 {
			return ErrUnsupported
		}
		if h&0x8000 == 0 {
			if err := r.add(at+2, uint32(n), squashMetaSize); err != nil {
				return err
			}
		}
		at += 2 + n
	}
	return nil
}

func isSquash(p []byte) bool { _, ok := squashSuperblock(p); return ok }

// expandAt returns the content of a compressed block.
func (im *Image) expandAt(at int64, packed, room int) ([]byte, error) {
	p, err := im.bytes(at, packed)
	if err != nil {
		return nil, err
	}
	w := limitedBuffer{limit: room}
	e := newExpander(&w, bytes.NewReader(p), int64(packed))
	e.most = int64(room)
	switch im.compressor {
	case squashGzip:
		err = e.zlib()
	case squashXz:
		_, err = e.xz(0)
	case squashZstd:
		_, err = e.zstd(0)
	}
	if err != nil {
		return nil, ErrDamaged
	}
	return w.b, nil
}

// bytes reads n bytes of the file.
func (im *Image) bytes(at int64, n int) ([]byte, error) {
	if at < 0 || at > im.fileSize || int64(n) > im.fileSize-at {
		return nil, ErrUnsupported
	}
	p := make([]byte, n)
	if k, err := im.file.ReadAt(p, at); k < n {
		if err == io.EOF {
			err = ErrUnsupported
		}
		return nil, err
	}
	return p, nil
}
