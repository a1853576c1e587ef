package redeflate

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"io"
	"sort"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// An Image is a file that holds many blocks, each compressed for itself: a squashfs image. What is inside
// is the file with each such block replaced by its content, in as much room as it may take: a
// data block what its file says, a fragment the size of blocks, a metadata block 8 KiB; zeros follow content that is
// shorter. So where everything is follows from the tables alone, and only what is read need be decompressed.
//
// It must not be used by two goroutines at once.
type Image struct {
	file       io.ReaderAt
	fileSize   int64
	size       int64
	compressor uint16
	chunks     []imageChunk
	recent     []expandedChunk
	clock      int
}

// An expandedChunk is a block that was read lately.
type expandedChunk struct {
	chunk   int // plus one
	content []byte
	used    int
}

// imageCache is how much an Image holds expanded, and imageBlocks how many blocks at most.
const (
	imageCache  = 8 << 20
	imageBlocks = 128
)

// ImageMemory bounds what an Image takes: that, the list of its blocks, and a decoder.
const ImageMemory = imageCache + 24*maxChunks + 2<<20

// IsImage reports whether a file that begins with head, of 96 bytes or more, may be an image.
func IsImage(head []byte) bool { return isSquash(head) }

// OpenImage reads the tables of an image. What is no image, or one that cannot be understood, gives ErrUnsupported.
func OpenImage(file io.ReaderAt, size int64) (*Image, error) {
	head := make([]byte, squashHead)
	if n, err := file.ReadAt(head, 0); n < len(head) {
		if err == io.EOF {
			err = ErrUnsupported
		}
		return nil, err
	}
	s, ok := squashSuperblock(head)
	if !ok {
		return nil, ErrUnsupported
	}
	im := &Image{file: file, fileSize: size, compressor: s.compressor, recent: make([]expandedChunk, min(imageCache/s.blockSize, imageBlocks))}
	var err error
	if im.chunks, err = im.squashChunks(s); err != nil {
		return nil, err
	}
	grown := int64(0)
	for i := range im.chunks {
		c := &im.chunks[i]
		c.inside = c.at + grown
		grown += int64(c.size) - int64(c.packed)
	}
	im.size = size + grown
	return im, nil
}

// Block returns the number of the compressed block that a place inside is in, and where that ends; -1 for what stands between
// two blocks, of which reading costs nothing.
func (im *Image) Block(off int64) (block int, end int64) {
	i := sort.Search(len(im.chunks), func(i int) bool { return im.chunks[i].inside+int64(im.chunks[i].size) > off })
	switch {
	case i == len(im.chunks):
		return -1, im.size
	case off < im.chunks[i].inside:
		return -1, im.chunks[i].inside
	}
	return i, im.chunks[i].inside + int64(im.chunks[i].size)
}

// Holds returns how many blocks stay expanded, those that were read last.
func (im *Image) Holds() int { return len(im.recent) }

// Size returns how much is inside.
func (im *Image) Size() int64 { return im.size }

// ReadAt reads what is inside. A damaged block is an error.
func (im *Image) ReadAt(p []byte, off int64) (n int, err error) {
	i := sort.Search(len(im.chunks), func(i int) bool { return im.chunks[i].inside+int64(im.chunks[i].size) > off })
	for n < len(p) && off < im.size {
		var k int
		if i < len(im.chunks) && off >= im.chunks[i].inside {
			content, err := im.chunk(i)
			if err != nil {
				return n, err
			}
			within := off - im.chunks[i].inside
			room := p[n:min(int64(len(p)), int64(n)+int64(im.chunks[i].size)-within)]
			k = len(room)
			clear(room)
			if within < int64(len(content)) {
				copy(room, content[within:])
			}
			if within+int64(k) == int64(im.chunks[i].size) {
				i++
			}
		} else {
			end, at := im.size, off // what stands between two blocks
			if i > 0 {
				c := &im.chunks[i-1]
				at = c.at + int64(c.packed) + off - (c.inside + int64(c.size))
			}
			if i < len(im.chunks) {
				end = im.chunks[i].inside
			}
			room := p[n:min(int64(len(p)), int64(n)+end-off)]
			if k, err = im.file.ReadAt(room, at); k < len(room) {
				return n + k, cmp.Or(err, io.ErrUnexpectedEOF)
			}
		}
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// chunk returns the content of a block.
func (im *Image) chunk(i int) ([]byte, error) {
	im.clock++
	oldest := &im.recent[0]
	for k := range im.recent {
		r := &im.recent[k]
		if r.chunk == i+1 {
			r.used = im.clock
			return r.content, nil
		}
		if r.used < oldest.used {
			oldest = r
		}
	}
	c := &im.chunks[i]
	content, err := im.expandAt(c.at, int(c.packed), int(c.size))
	if err != nil {
		return nil, err
	}
	oldest.chunk, oldest.content, oldest.used = i+1, content, im.clock
	return content, nil
}

// A Part is a run of what is inside of an old image that is worth comparing with: what the new image does not have
// as it is.
type Part struct{ Offset, Length int64 } // of the inside

// UnpackedImage is an image taken apart with the help of an old one.
type UnpackedImage struct {
	Recipe []byte
	Rest   []byte // plain without what is kept
	Kept   []Kept // in the order of plain
	Old    []byte // the old image without what is kept, expanded
	Parts  []Part // of which Old consists
}

// Kept is a run of plain that stands in the old file as it is.
type Kept struct {
	Offset      int64 // in Rest: before which byte it stands
	Length, Old int64 // Old: where it is in the old file
}

// Plain returns how long plain is.
func (u *UnpackedImage) Plain() int64 {
	n := int64(len(u.Rest))
	for _, k := range u.Kept {
		n += k.Length
	}
	return n
}

// UnpackImage takes an image apart, as far as its blocks are not those of the old image, which o.Old is. Blocks that
// cannot be made again, or that would not pay, stay compressed. MaxPlain bounds Rest and Old.
// ErrUnsupported is for what is no image, has no old one or nothing that can be taken apart.
func UnpackImage(data []byte, o Options) (*UnpackedImage, error) {
	if o.MaxPlain <= 0 {
		o.MaxPlain = defaultMaxPlain
	}
	new, err := OpenImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, ErrUnsupported
	}
	old, err := OpenImage(bytes.NewReader(o.Old), int64(len(o.Old)))
	if err != nil {
		return nil, ErrUnsupported
	}
	b := &imageUnpacker{
		unpacker: unpacker{o: o, encoders: map[string]int64{}},
		old:      old, seed: maphash.MakeSeed(), place: make(map[uint64]int, len(old.chunks)),
	}
	if o.Memory > 0 {
		b.o.Memory = max(o.Memory-relz.PriorsMemory, 1)
	}
	b.recipe.b = append(b.recipe.b, recipeVersion)
	out := new.split(b, data)
	if out == nil || b.streams == 0 {
		return nil, ErrUnsupported
	}
	out.Recipe, out.Rest = b.recipe.b, b.plain
	if !o.NoVerify {
		if err := out.prove(data, &o); err != nil {
			return nil, ErrUnsupported
		}
	}
	return out, nil
}

// An imageUnpacker takes the blocks of an image apart.
type imageUnpacker struct {
	unpacker
	old     *Image
	seed    maphash.Seed
	place   map[uint64]int // blocks of the old image by a hash of them
	anchors map[uint64]int // blocks of the old image that are gone, by hashes of places in their content
	blocks  map[int]*oldStream
	// What the probabilities were when the last block was described that was worth it, and what they are.
	settled, carried *Priors
}

// split takes the image apart.
func (im *Image) split(b *imageUnpacker, data []byte) *UnpackedImage {
	out := new(UnpackedImage)
	packed := func(im *Image, file []byte, i int) []byte {
		c := &im.chunks[i]
		return file[c.at : c.at+int64(c.packed)]
	}
	for i := range b.old.chunks {
		h := maphash.Bytes(b.seed, packed(b.old, b.o.Old, i))
		if _, ok := b.place[h]; !ok {
			b.place[h] = i
		}
	}
	stays := make([]int, len(im.chunks)) // the same block of the old image, or -1
	gone := make([]bool, len(b.old.chunks))
	for i := range gone {
		gone[i] = true
	}
	for i := range im.chunks {
		p := packed(im, data, i)
		stays[i] = -1
		if k, ok := b.place[maphash.Bytes(b.seed, p)]; ok && bytes.Equal(p, packed(b.old, b.o.Old, k)) {
			stays[i], gone[k] = k, false
		}
	}
	if !b.rest(gone, out) {
		return nil
	}
	total := im.fileSize
	for i, c := range im.chunks {
		if total -= int64(c.packed); stays[i] < 0 {
			total += int64(c.size)
		}
	}
	if total > b.o.MaxPlain {
		return nil
	}
	b.plain = make([]byte, 0, total)
	at := int64(0)
	for i := range im.chunks {
		c := &im.chunks[i]
		b.put(Raw, data[at:c.at], "", 0)
		at = c.at + int64(c.packed)
		p := data[c.at:at]
		if k := stays[i]; k >= 0 {
			out.keep(Kept{int64(len(b.plain)), int64(c.packed), b.old.chunks[k].at})
			b.pending += int64(c.packed)
		} else if !b.chunk(im.compressor, p, int(c.size)) {
			b.put(Raw, p, "", 0)
		}
	}
	b.put(Raw, data[at:], "", 0)
	b.copyPending()
	return out
}

// keep appends a run, or makes the last one longer.
func (u *UnpackedImage) keep(k Kept) {
	if n := len(u.Kept); n > 0 {
		if last := &u.Kept[n-1]; last.Offset == k.Offset && last.Old+last.Length == k.Old {
			last.Length += k.Length
			return
		}
	}
	u.Kept = append(u.Kept, k)
}

// rest collects what is inside of the old image but for the blocks that stay.
func (b *imageUnpacker) rest(gone []bool, out *UnpackedImage) bool {
	b.anchors, b.blocks = make(map[uint64]int), make(map[int]*oldStream)
	total := b.old.fileSize
	for i, c := range b.old.chunks {
		if total -= int64(c.packed); gone[i] {
			total += int64(c.size)
		}
	}
	if total > b.o.MaxPlain {
		return false
	}
	out.Old = make([]byte, 0, total)
	inside := int64(0)
	add := func(p []byte) {
		if n := len(out.Parts); n > 0 && out.Parts[n-1].Offset+out.Parts[n-1].Length == inside {
			out.Parts[n-1].Length += int64(len(p))
		} else if len(p) > 0 {
			out.Parts = append(out.Parts, Part{inside, int64(len(p))})
		}
		out.Old = append(out.Old, p...)
		inside += int64(len(p))
	}
	at := int64(0)
	for i := range b.old.chunks {
		c := &b.old.chunks[i]
		add(b.o.Old[at:c.at])
		at = c.at + int64(c.packed)
		if gone[i] {
			// Of one that is damaged nothing can be made.
			if content, err := b.old.expandAt(c.at, int(c.packed), int(c.size)); err == nil {
				eachAnchor(content, func(h uint64) { b.anchors[h] = i })
				add(content)
			}
		}
		inside = c.inside + int64(c.size)
	}
	add(b.o.Old[at:])
	return true
}

// eachAnchor calls f for places in p that any text with the same bytes around them has, too: one in 32. Runs of zeros, which
// everything has, are none.
func eachAnchor(p []byte, f func(uint64)) {
	for ; len(p) >= 16; p = p[1:] {
		h := (binary.LittleEndian.Uint64(p)*0x9e3779b97f4a7c15 ^ binary.LittleEndian.Uint64(p[8:])) * 0xc2b2ae3d27d4eb4f
		if h>>59 == 0 && h != 0 {
			f(h)
		}
	}
}

// chunk takes a block apart.
func (b *imageUnpacker) chunk(compressor uint16, p []byte, room int) bool {
	if compressor == squashGzip {
		return b.zlib(p)
	}
	content, err := (&Image{file: bytes.NewReader(p), fileSize: int64(len(p)), compressor: compressor}).expandAt(0, len(p), room)
	if err != nil {
		return false
	}
	old := b.likest(compressor, content)
	if old == nil {
		return false
	}
	if b.carried == nil {
		b.settled, b.carried = relz.NewPriors(compressor == squashZstd), relz.NewPriors(compressor == squashZstd)
		b.o.Priors, b.o.Train = b.carried, true
	}
	var done bool
	if compressor == squashZstd {
		done = b.zstdAfter(p, old, true) > 0
	} else {
		done = b.xzAfter(p, old)
	}
	if done {
		b.settled.Set(b.carried)
	} else {
		b.carried.Set(b.settled)
	}
	return done
}

// likest returns the block of the old image that a content has most in common with.
func (b *imageUnpacker) likest(compressor uint16, content []byte) *oldStream {
	votes, seen := make(map[int]int), make(map[uint64]bool)
	eachAnchor(content, func(h uint64) {
		if i, ok := b.anchors[h]; ok && !seen[h] {
			votes[i]++
			seen[h] = true
		}
	})
	best, most := -1, 0
	for i, n := range votes {
		if n > most || n == most && i < best {
			best, most = i, n
		}
	}
	if best < 0 || compressor != b.old.compressor {
		return nil
	}
	o, ok := b.blocks[best]
	if !ok {
		o = b.oldBlock(&b.old.chunks[best])
		if len(b.blocks) >= 64 { // what is near is used again, nothing else
			clear(b.blocks)
		}
		b.blocks[best] = o
	}
	return o
}

// oldBlock is a block of the old image for recipes to refer to, nil where there is none.
func (b *imageUnpacker) oldBlock(c *imageChunk) *oldStream {
	p := b.o.Old[c.at : c.at+int64(c.packed)]
	o := &oldStream{op: opZstd}
	if b.old.compressor == squashZstd {
		size := &plainWriter{w: io.Discard}
		if relz.ExpandZstd(size, bytes.NewReader(p), maxXzPlain) != nil {
			return nil
		}
		var err error
		if o.stream, err = relz.ZstdStream(p, size.n); err != nil || o.learn(nil, bytes.NewReader(p), nil) != nil {
			return nil
		}
	} else if o = oldXzFile(p, nil); o == nil {
		return nil
	}
	o.at, o.follows = c.at, true
	return o
}

// prove makes the image again.
func (u *UnpackedImage) prove(data []byte, o *Options) error {
	r := Restorer{Old: bytes.NewReader(o.Old)}
	check := compareWriter{want: data}
	var plain []io.Reader
	at := int64(0)
	for _, k := range u.Kept {
		plain = append(plain, bytes.NewReader(u.Rest[at:k.Offset]), bytes.NewReader(o.Old[k.Old:k.Old+k.Length]))
		at = k.Offset
	}
	plain = append(plain, bytes.NewReader(u.Rest[at:]))
	if err := r.Restore(&check, io.MultiReader(plain...), u.Recipe); err != nil {
		return err
	}
	if len(check.want) > 0 {
		return io.ErrUnexpectedEOF
	}
	return nil
}
