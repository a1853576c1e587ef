package relz

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"runtime"
)

// ExpandZstd writes the content of the Zstandard frame at the start of packed, of which it reads no byte more; at most limit
// bytes. The memory that it takes is twice the frame's window, or its content.
func ExpandZstd(w io.Writer, packed io.Reader, limit int64) error {
	d, err := newZstdDecoder(packed, limit)
	if err != nil {
		return err
	}
	for {
		_, content, err := d.next(nil)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
}

// LearnZstd is [Learn] of a frame, whose window is at most s.Dict, or larger than its content.
func LearnZstd(w io.Writer, packed io.Reader, s Stream, moves []Move) (*History, error) {
	size := s.Size
	if size < 0 || size > maxSize {
		return nil, errZstd
	}
	d, err := newZstdDecoder(packed, size)
	if err != nil {
		return nil, err
	}
	if min(d.frame.window, size) > int64(s.Dict) {
		return nil, errZstd
	}
	d.buf, d.fixed = make([]byte, 0, zstdWindow(d.frame.window, size+size/zstdGrowth)), true
	h := newHistory(size, moves)
	indexed := int64(0)
	for {
		_, content, err := d.next(h.token)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if w != nil {
			if _, err := w.Write(content); err != nil {
				return nil, err
			}
		}
		end := d.start + int64(len(d.buf))
		if n := end - anchorWidth - indexed; n > 0 {
			if indexed < d.start { // a frame that says less of its content than it has
				return nil, errZstd
			}
			h.content(indexed, d.buf[indexed-d.start:], int(n))
			indexed += n
		}
	}
	if d.start+int64(len(d.buf)) != size {
		return nil, errZstd
	}
	h.flush(size)
	h.spare = &window{buf: d.buf[:cap(d.buf)]}
	return &History{h}, nil
}

// zstdWindow is what the content of a frame takes in memory.
func zstdWindow(keep, size int64) int {
	const most = math.MaxInt32 - zstdMaxSize - windowPad // fits an int anywhere; no memory that is stated is as large
	return int(min(keep+zstdRoom, size, most)) + zstdMaxSize + windowPad
}

const (
	zstdRoom   = 2 << 20
	zstdGrowth = 32 // an old frame's window can be used again where the new one is larger by less than this part
)

// DescribeZstd is [Describe] of a frame that holds at most limit bytes. If it can be, the recipe is such that
// MemoryZstd, with what is old, does not say more than memory.
func DescribeZstd(packed []byte, limit, memory int64, old *History, from Stream) (*Described, error) {
	in := bytes.NewReader(packed)
	d, err := newZstdDecoder(in, min(limit, maxSize))
	if err != nil {
		return nil, err
	}
	var content []byte
	var blocks []zstdBlock
	var tokens []Token
	for {
		b, p, err := d.next(func(_ int64, t Token) { tokens = append(tokens, t) })
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		content = append(content, p...)
		blocks = append(blocks, b)
	}
	size := int64(len(content))
	headBits := headBitsFor(size)
	for headBits > minHeadBits && zstdMemory(d.frame.window, size, headBits, len(blocks), from, old.moved()) > memory {
		headBits--
	}
	flags := byte(0)
	if old.moved() {
		flags |= flagMoves
	}
	if old.priorsOf().of(true) {
		flags |= flagPriors
	}
	head := append([]byte{flags, byte(headBits), byte(len(d.frame.raw))}, d.frame.raw...)
	head = append(head, d.sum...)
	head = binary.AppendUvarint(head, uint64(len(blocks)))
	for i := range blocks {
		head = blocks[i].appendTo(head)
	}
	var c coder
	c.encode(head)
	k := newZstdWalk(&c, &window{}, bytes.NewReader(content), new(guide), d.frame.window, size, old.history(), headBits)
	for i := range blocks {
		var ok bool
		if err := k.loadBlock(blocks[i].size, func() {}); err != nil {
			return nil, errZstd
		}
		if tokens, ok = k.describeZstd(&blocks[i], tokens); !ok {
			return nil, errZstd
		}
	}
	k.g.trained()
	return &Described{Recipe: c.finish(), Plain: content, Used: len(packed) - in.Len()}, nil
}

// appendTo writes what a recipe says of a block.
func (b *zstdBlock) appendTo(out []byte) []byte {
	out = append(out, b.kind|b.lit<<2|b.format<<4|byte(b2u(b.seqs))<<6|byte(b2u(b.last))<<7)
	out = binary.AppendUvarint(out, uint64(b.size))
	if b.kind != zstdCompressed {
		return out
	}
	if b.seqs {
		out = append(out, b.modes)
	}
	out = binary.AppendUvarint(out, uint64(len(b.tables)))
	return append(out, b.tables...)
}

// A parsedZstd is a recipe taken apart.
type parsedZstd struct {
	frame     zstdFrame
	moves     bool
	priors    bool
	headBits  int
	sum       []byte
	blocks    []zstdBlock
	size      int64
	decisions []byte
}

// parseZstd takes a recipe apart.
func parseZstd(b []byte) (p parsedZstd, err error) {
	in := recipeReader{b: b}
	flags := in.byte()
	p.moves, p.priors, p.headBits = flags&flagMoves != 0, flags&flagPriors != 0, int(in.byte())
	header := bytes.NewReader(in.bytes(int(in.byte())))
	if p.frame, err = readFrame(header); err != nil || header.Len() > 0 || flags&^(flagMoves|flagPriors) != 0 || p.headBits < minHeadBits || p.headBits > maxHeadBits {
		return p, ErrRecipe
	}
	if p.frame.checksum {
		p.sum = in.bytes(4)
	}
	n := in.number(maxParts)
	for i := 0; i < n && !in.bad; i++ {
		v := in.byte()
		z := zstdBlock{kind: v & 3, lit: v >> 2 & 3, format: v >> 4 & 3, seqs: v&64 != 0, last: v&128 != 0, size: in.number(zstdMaxSize)}
		if z.kind == zstdCompressed {
			if z.seqs {
				z.modes = in.byte()
			}
			z.tables = in.bytes(in.number(zstdMaxSize))
		}
		in.require(z.kind <= zstdCompressed && z.last == (i == n-1))
		p.size += int64(z.size)
		p.blocks = append(p.blocks, z)
	}
	if in.bad || n == 0 || p.size > maxSize {
		return p, ErrRecipe
	}
	p.decisions = in.b
	return p, nil
}

// zstdMay reports whether a token of this kind can come next: where no literals stand before a match, the last distance
// cannot be meant, but the last one less one can (Rep3).
func (g *guide) zstdMay(k Kind) bool {
	none := g.fresh || g.shape&1 != 0
	return k != Short && (k != Rep0 || !none) && (k != Rep3 || none)
}

// zstdRepeat brings the last distances up to date.
func (g *guide) zstdRepeat(t Token) {
	g.fresh = false
	r := &g.reps
	switch t.Kind {
	case Match, Rep3, Rep2:
		r[0], r[1], r[2] = t.Dist, r[0], r[1]
	case Rep1:
		r[0], r[1] = r[1], r[0]
	}
	r[3] = r[0] - 1 // none, if that is 1<<32 - 1
}

// newZstdWalk begins to walk through a frame.
func newZstdWalk(c *coder, w *window, content io.Reader, g *guide, keep, size int64, old *history, headBits int) *walk {
	n := zstdWindow(keep, size)
	if cap(w.buf) < n {
		if w.buf = nil; n > 16<<20 {
			runtime.GC() // what was there goes first, or both are
		}
		w.buf = make([]byte, n)
	}
	*w = window{buf: w.buf[:n], keep: int(min(keep, size+1))}
	clear(w.buf)
	k := &walk{w: w, g: g, content: content, end: size}
	g.reset(c, w, old, size, headBits, true)
	g.reps = [4]uint32{0, 3, 7, 1<<32 - 1}
	return k
}

// loadBlock brings a block of n bytes into the window. It calls before if that moves what is there.
func (k *walk) loadBlock(n int, before func()) error {
	err := k.load(n, before)
	k.g.end = k.g.at + int64(n)
	k.g.fresh = true
	return err
}

// describeZstd writes the decisions of a block.
func (k *walk) describeZstd(b *zstdBlock, tokens []Token) ([]Token, bool) {
	if b.kind != zstdCompressed {
		if k.g.advance(b.size); b.size > 0 {
			tokens = tokens[1:]
		}
		return tokens, true
	}
	for stop := k.g.end; k.g.at < stop; tokens = tokens[1:] {
		t := tokens[0]
		if t.Kind != Literal {
			if _, ok := k.g.next(t, int(stop-k.g.at)); !ok {
				return nil, false
			}
			continue
		}
		for range t.Len {
			if _, ok := k.g.next(Token{Literal, 1, 0}, int(stop-k.g.at)); !ok {
				return nil, false
			}
		}
	}
	return tokens, true
}

// decideZstd reads the decisions of a block.
func (k *walk) decideZstd(b *zstdBlock, tokens []Token) ([]Token, bool) {
	if b.kind != zstdCompressed {
		k.g.advance(b.size)
		return tokens, true
	}
	for stop := k.g.end; k.g.at < stop; {
		t, ok := k.g.next(Token{}, int(stop-k.g.at))
		if !ok || k.g.c.over() {
			return tokens, false
		}
		if n := len(tokens) - 1; t.Kind == Literal && n >= 0 && tokens[n].Kind == Literal {
			tokens[n].Len++
		} else {
			tokens = append(tokens, t)
		}
	}
	return tokens, true
}

// RebuildZstd writes the frame that recipe describes, reading size bytes of plain.
func (ws *Workspace) RebuildZstd(w io.Writer, plain io.Reader, size int64, recipe []byte, old *History) error {
	p, err := parseZstd(recipe)
	if err != nil {
		return err
	}
	var c coder
	if p.size != size || p.moves != old.moved() || p.priors != old.priorsOf().of(true) || !c.decode(p.decisions) {
		return ErrRecipe
	}
	if _, err := w.Write(p.frame.raw); err != nil {
		return err
	}
	var at *window
	if old != nil && old.h.spare != nil {
		at, old.h.spare = old.h.spare, nil
	} else {
		at = &window{}
	}
	if ws.guide == nil {
		ws.guide = new(guide)
	}
	k := newZstdWalk(&c, at, io.LimitReader(plain, size), ws.guide, p.frame.window, size, old.history(), p.headBits)
	e := &zstdEncoder{w: w, blocks: p.blocks}
	r := ws.chunkCoder(w, nil)
	r.make = e.block
	go r.run()
	err = k.rebuildZstd(p.blocks, r)
	close(r.work)
	<-r.done
	if err == nil {
		err = r.err
	}
	if err == errZstd {
		err = ErrRecipe
	}
	if err == nil {
		k.g.trained()
		_, err = w.Write(p.sum)
	}
	return err
}

// rebuildZstd gives all blocks to r.
func (k *walk) rebuildZstd(blocks []zstdBlock, r *chunkCoder) error {
	for i := range blocks {
		if err := k.loadBlock(blocks[i].size, r.pending.Wait); err != nil {
			return err
		}
		p := piece{chunk: chunk{size: blocks[i].size}, buf: k.w.buf, at: int(k.g.at - k.w.start)}
		var ok bool
		if p.tokens, ok = k.decideZstd(&blocks[i], <-r.spare); !ok {
			return errZstd
		}
		if r.failed.Load() {
			return nil // the reason is in r.err
		}
		r.send(p)
	}
	return nil
}

// MemoryZstd is [Memory] for [Workspace.RebuildZstd], and LearnZstd of old before it; old.Size 0 is none.
func MemoryZstd(recipe []byte, old Stream) (int64, error) {
	p, err := parseZstd(recipe)
	if err != nil {
		return 0, err
	}
	return zstdMemory(p.frame.window, p.size, p.headBits, len(p.blocks), old, p.moves), nil
}

func zstdMemory(window, size int64, headBits, blocks int, old Stream, moves bool) int64 {
	w := zstdWindow(window, size)
	need := int64(w) + headMemory(headBits, size) + int64(guideProbs)*2
	need += (rebuildAhead+6)*zstdMaxSize + int64(blocks)*64 + 256<<10
	if old.Size > 0 {
		// One window is used for both.
		need += int64(max(0, zstdWindow(int64(old.Dict), old.Size+old.Size/zstdGrowth)-w)) + historyMemory(old.Size, moves)
	}
	return need
}

// ZstdStream returns what [LearnZstd] must know of the frame at the start of head, whose content has size bytes. 14 bytes
// are enough.
func ZstdStream(head []byte, size int64) (Stream, error) {
	f, err := readFrame(bytes.NewReader(head))
	return Stream{Dict: int(min(f.window, size)), Size: size}, err
}
