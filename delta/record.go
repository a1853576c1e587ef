package delta

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/btrovl/btrovl/delta/exe"
)

// A record says how the content of one regular file of the new tree is made.
// Its numbers stand in the control stream, its checksum in the raw stream:
//
//	varint   index in the new listing, minus the one after the record before
//	uvarint  method | cloned<<3 | number of sources<<4
//	uvarint  size of the content
//	per source:
//	  uvarint  zigzag(index - guess)<<2 | view<<1 | new
//	  where a source that is not the first one is expanded: uvarint  size of what it expands to
//	restore only:
//	  uvarint  size of plain, uvarint size of the recipe (its bytes: recipe stream)
//	object only:
//	  uvarint  where its head begins, see object.go
//	program only:
//	  uvarint  size of its head, see program.go
//	  uvarint  number of moves; for each, in the order of the new file:
//	    uvarint  bytes between the move before and this one
//	    uvarint  length
//	    seek: varint  old position, minus the end of the old bytes of the move before
//	kernel only, see kernel.go:
//	  as restore; uvarint  size of a btf.Map, 0: none (its bytes: recipe stream, behind the recipe)
//	  uvarint  where the program begins inside of the old file, uvarint its size; the same of the new
//	  as program, within the programs
//	packed only, see packed.go:
//	  as restore; uvarint  where its head begins, as object, within plain; uvarint  size of what is inside
//	  of the source
//	operations until the content (restore: plain) is complete; copy has none
//	raw: u32 CRC-32C of the content
//
// The guess for a source in the old tree (a shared section has names instead, see
// named.go) is the index after the last one used
// there; for one in the new tree it is the record's own index.
type record struct {
	index   int
	method  method
	cloned  bool // the file starts as a clone of its first source, cut or extended to size
	size    int64
	sources []source
	plain   int64
	recipe  int64
	head    int64
	moves   []exe.Move
	kernel  kernelRecord
	inside  int64 // packed: size of the object in the source
	crc     uint32
}

type method uint8

const (
	methodCopy    method = iota // the whole first source
	methodPatch                 // operations
	methodRestore               // operations make plain, the recipe makes the file of it
	methodObject                // operations on a relocatable ELF file in phases, see object.go
	methodProgram               // operations on a linked ELF file along moves, see program.go
	methodKernel                // a program inside of a compressed file, see kernel.go
	methodPacked                // an object inside of a compressed file, see packed.go
	numMethods
)

var methodNames = [numMethods]string{"copy", "patch", "recompress", "object", "program", "kernel", "packed"}

// A source is a regular file that operations take bytes from.
type source struct {
	index    int
	new      bool  // in the new tree: complete when this record is reached
	expanded bool  // what is inside of its compressed parts (redeflate.Expand)
	size     int64 // of that, of all but the first source
}

const (
	maxSources = 1 << 16
	// maxExpandedSize bounds what a source expands to; that of all together is a number, then.
	maxExpandedSize = 1 << 40
	maxSize         = 1 << 50
	maxRecipe       = 64 << 20
)

// cursor holds what records and operations are coded relative to.
type cursor struct {
	record int // index that the next record is expected to have
	old    int // index that the next source in the old tree is expected to have
}

func zigzag(v int) uint64     { return uint64(v)<<1 ^ uint64(int64(v)>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

func (w *streamWriter) record(c *cursor, r *record) {
	w.int(streamControl, int64(r.index-c.record))
	c.record = r.index + 1
	head := uint64(r.method) | uint64(len(r.sources))<<4
	if r.cloned {
		head |= 8
	}
	w.uint(streamControl, head)
	w.uint(streamControl, uint64(r.size))
	for i, s := range r.sources {
		w.source(c, r, s)
		if i > 0 && s.expanded {
			w.uint(streamControl, uint64(s.size))
		}
	}
	if r.recompressed() {
		w.uint(streamControl, uint64(r.plain))
		w.uint(streamControl, uint64(r.recipe))
	}
	if r.method == methodObject {
		w.uint(streamControl, uint64(r.size-r.head))
	}
	if r.method == methodPacked {
		w.uint(streamControl, uint64(r.plain-r.head))
		w.uint(streamControl, uint64(r.inside))
	}
	if r.method == methodKernel {
		w.kernel(&r.kernel)
	}
	if r.method == methodProgram || r.method == methodKernel {
		w.moves(r)
	}
	w.bytes(streamRaw, binary.LittleEndian.AppendUint32(nil, r.crc))
}

func (w *streamWriter) source(c *cursor, r *record, s source) {
	if w.named != nil && !s.new {
		w.named.write(w, s)
		return
	}
	guess := c.old
	if s.new {
		guess = r.index
	} else {
		c.old = s.index + 1
	}
	v := zigzag(s.index-guess) << 2
	if s.expanded {
		v |= 2
	}
	if s.new {
		v |= 1
	}
	w.uint(streamControl, v)
}

func (w *streamWriter) moves(r *record) {
	w.uint(streamControl, uint64(r.head))
	w.uint(streamControl, uint64(len(r.moves)))
	old, new := int64(0), int64(0)
	for _, m := range r.moves {
		w.uint(streamControl, uint64(m.New-new))
		w.uint(streamControl, uint64(m.Length))
		w.int(streamSeek, m.Old-old)
		old, new = m.Old+m.Length, m.New+m.Length
	}
}

// record reads and checks a record against the sizes of the two listings.
func (r *sectionReader) record(c *cursor, news, olds int) (*record, error) {
	var rec record
	index, err := r.int(streamControl)
	if err != nil {
		return nil, err
	}
	if index += int64(c.record); index < 0 || index >= int64(news) {
		return nil, damaged("a record for file %d of %d", index, news)
	}
	rec.index = int(index)
	c.record = rec.index + 1
	head, err := r.uint(streamControl, maxSources<<4|15)
	if err != nil {
		return nil, err
	}
	rec.method, rec.cloned = method(head&7), head&8 != 0
	n := int(head >> 4)
	size, err := r.uint(streamControl, maxSize)
	if err != nil {
		return nil, err
	}
	rec.size = int64(size)
	for i := range n {
		s, err := r.source(c, &rec, news, olds)
		if err == nil && i > 0 && s.expanded {
			var size uint64
			size, err = r.uint(streamControl, maxExpandedSize)
			s.size = int64(size)
		}
		if err != nil {
			return nil, err
		}
		rec.sources = append(rec.sources, s)
	}
	switch {
	case rec.method >= numMethods,
		rec.method == methodCopy && n != 1,
		rec.inPieces() && (n != 1 || rec.sources[0].new || rec.sources[0].expanded != rec.recompressed()),
		rec.cloned && (n == 0 || rec.recompressed() || rec.sources[0].expanded):
		return nil, damaged("a record with method %d and %d sources", rec.method, n)
	case rec.recompressed():
		plain, err := r.uint(streamControl, maxSize)
		if err != nil {
			return nil, err
		}
		recipe, err := r.uint(streamControl, maxRecipe)
		if err != nil {
			return nil, err
		}
		rec.plain, rec.recipe = int64(plain), int64(recipe)
		switch rec.method {
		case methodKernel:
			err = r.kernel(&rec)
		case methodPacked:
			err = r.packed(&rec)
		}
		if err != nil {
			return nil, err
		}
	case rec.method == methodObject:
		tail, err := r.uint(streamControl, size)
		if err != nil {
			return nil, err
		}
		rec.head = int64(size - tail)
	case rec.method == methodProgram:
		if err := r.moves(&rec, rec.size); err != nil {
			return nil, err
		}
	}
	var crc [4]byte
	if err := r.bytes(streamRaw, crc[:]); err != nil {
		return nil, err
	}
	rec.crc = binary.LittleEndian.Uint32(crc[:])
	return &rec, nil
}

// inMemory reports whether source and content are held in memory as a whole.
func (r *record) inMemory() bool { return r.method == methodObject || r.method == methodProgram }

// inPieces reports whether operations stay within pieces, and end with a raw one of length 0.
func (r *record) inPieces() bool {
	return r.inMemory() || r.method == methodKernel || r.method == methodPacked
}

// recompressed reports whether what operations make is compressed by a recipe.
func (r *record) recompressed() bool {
	return r.method == methodRestore || r.method == methodKernel || r.method == methodPacked
}

// makes returns how many bytes the operations make.
func (r *record) makes() int64 {
	switch {
	case r.method == methodCopy:
		return 0
	case r.recompressed():
		return r.plain
	}
	return r.size
}

// packed reads what a packed object has beside what is compressed again.
func (r *sectionReader) packed(rec *record) error {
	tail, err := r.uint(streamControl, uint64(rec.plain))
	if err != nil {
		return err
	}
	rec.head = rec.plain - int64(tail)
	inside, err := r.uint(streamControl, maxObject)
	rec.inside = int64(inside)
	return err
}

// moves reads the moves of a program of size bytes.
func (r *sectionReader) moves(rec *record, size int64) error {
	head, err := r.uint(streamControl, uint64(size))
	if err != nil {
		return err
	}
	rec.head = int64(head)
	n, err := r.uint(streamControl, maxMoves)
	if err != nil {
		return err
	}
	old, new := int64(0), int64(0)
	for ; n > 0; n-- {
		gap, err := r.uint(streamControl, uint64(size-new))
		if err != nil {
			return err
		}
		new += int64(gap)
		length, err := r.uint(streamControl, uint64(size-new))
		if err != nil {
			return err
		}
		d, err := r.int(streamSeek)
		if err != nil {
			return err
		}
		if d < -maxSize || d > maxSize {
			return damaged("a move by %d", d)
		}
		old += d
		rec.moves = append(rec.moves, exe.Move{Old: old, New: new, Length: int64(length)})
		old, new = old+int64(length), new+int64(length)
	}
	return nil
}

func (r *sectionReader) source(c *cursor, rec *record, news, olds int) (s source, err error) {
	v, err := r.uint(streamControl, 1<<40)
	if err != nil {
		return s, err
	}
	s.new, s.expanded = v&1 != 0, v&2 != 0
	if r.named != nil && !s.new {
		s.index, err = r.named.read(r, v>>2)
		return s, err
	}
	guess, limit := c.old, olds
	if s.new {
		guess, limit = rec.index, news
	}
	index := int64(guess) + unzigzag(v>>2)
	if index < 0 || index >= int64(limit) || s.new && index == int64(rec.index) {
		return s, damaged("a source %d of %d files", index, limit)
	}
	s.index = int(index)
	if !s.new {
		c.old = s.index + 1
	}
	return s, nil
}

// An operation makes the next bytes of a file.
//
//	control: uvarint length<<3 | seek<<2 | kind
//	seek:    varint from the end of the operation before to the new position in the
//	         address space of all sources, one behind the other; only with the seek bit
//
// The positions of an object's operations are counted otherwise, see object.go.
//
// The bytes of an add stand in the diff stream, those of an insert in extra, those of a
// raw insert in raw. Copy and add may cross from one source to the next.
type op struct {
	kind   opKind
	length int64
	pos    int64 // in the address space of the sources (copy, add)
	seek   int64 // object: what is added to the expected position
}

type opKind uint8

const (
	opRaw    opKind = iota // insert from the raw stream; with length 0: an object is complete
	opCopy                 // source bytes; with length 0: to the end of an object's piece
	opAdd                  // source bytes plus differences
	opInsert               // new bytes
)

// opWriter codes the operations of one file.
type opWriter struct {
	w      *streamWriter
	pos    int64
	object bool
}

func (o *opWriter) op(op op) {
	v := uint64(op.length)<<3 | uint64(op.kind)
	if o.object {
		if op.seek != 0 {
			o.w.uint(streamControl, v|4)
			o.w.int(streamSeek, op.seek)
		} else {
			o.w.uint(streamControl, v)
		}
		return
	}
	if op.kind == opCopy || op.kind == opAdd {
		if op.pos != o.pos {
			o.w.uint(streamControl, v|4)
			o.w.int(streamSeek, op.pos-o.pos)
		} else {
			o.w.uint(streamControl, v)
		}
		o.pos = op.pos + op.length
		return
	}
	o.w.uint(streamControl, v)
}

// opReader decodes the operations of one file.
type opReader struct {
	r     *sectionReader
	pos   int64
	total int64 // bytes of all sources
	left  int64 // bytes to be made; an object: at most
	// An object's operations end with a raw one of length 0, and their positions
	// are known only where the object is made.
	object bool
	ended  bool
}

func (o *opReader) more() bool {
	if o.object {
		return !o.ended
	}
	return o.left > 0
}

// next returns an operation that stays within the sources and the file.
func (o *opReader) next() (op, error) {
	v, err := o.r.uint(streamControl, maxSize<<3)
	if err != nil {
		return op{}, err
	}
	p := op{kind: opKind(v & 3), length: int64(v >> 3)}
	if p.length > o.left || p.length == 0 && !(o.object && (p.kind == opRaw || p.kind == opCopy)) {
		return p, damaged("an operation of %d bytes with %d left", p.length, o.left)
	}
	o.left -= p.length
	if o.object {
		o.ended = p.kind == opRaw && p.length == 0
		if v&4 != 0 {
			if p.seek, err = o.r.int(streamSeek); err != nil {
				return p, err
			}
			if p.seek < -maxSize || p.seek > maxSize {
				return p, damaged("a seek by %d", p.seek)
			}
		}
		return p, nil
	}
	if p.kind == opCopy || p.kind == opAdd {
		if v&4 != 0 {
			d, err := o.r.int(streamSeek)
			if err != nil {
				return p, err
			}
			if d < -maxSize || d > maxSize {
				return p, damaged("a seek by %d", d)
			}
			o.pos += d
		}
		if o.pos < 0 || p.length > o.total-o.pos {
			return p, damaged("an operation that reads %d bytes at %d of %d", p.length, o.pos, o.total)
		}
		p.pos = o.pos
		o.pos += p.length
	}
	return p, nil
}

// sectionReader reads numbers and bytes from the streams of a section.
type sectionReader struct {
	head  *sectionHead
	d     *demux
	named *namedSources // of a shared section
}

func newSectionReader(src io.Reader) (*sectionReader, error) {
	b := make([]byte, sectionHeadSize)
	if _, err := io.ReadFull(src, b); err != nil {
		return nil, short(err)
	}
	h, err := decodeSectionHead(b)
	if err != nil {
		return nil, err
	}
	return &sectionReader{head: h, d: newDemux(src, h)}, nil
}

func (r *sectionReader) close() { r.d.close() }

func (r *sectionReader) uint(stream int, limit uint64) (uint64, error) {
	v, err := binary.ReadUvarint(r.d.streams[stream])
	if err != nil {
		return 0, numberError(err)
	}
	if v > limit {
		return 0, damaged("the number %d where at most %d can be", v, limit)
	}
	return v, nil
}

func (r *sectionReader) int(stream int) (int64, error) {
	v, err := binary.ReadVarint(r.d.streams[stream])
	return v, numberError(err)
}

func (r *sectionReader) bytes(stream int, p []byte) error {
	_, err := io.ReadFull(r.d.streams[stream], p)
	if err == io.EOF && len(p) == 0 {
		return nil
	}
	return numberError(err)
}

// numberError names what ReadUvarint has no type for.
func numberError(err error) error {
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		if err == nil {
			return nil
		}
		return short(io.EOF)
	}
	if errors.Unwrap(err) == nil && err.Error() == "binary: varint overflows a 64-bit integer" {
		return damaged("a number of more than 64 bits")
	}
	return err
}

// hints reads what stands before the first record.
func (r *sectionReader) hints() (*hints, error) {
	n, err := r.uint(streamControl, maxHints)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if err := r.bytes(streamRecipe, b); err != nil {
		return nil, err
	}
	return decodeHints(b)
}
