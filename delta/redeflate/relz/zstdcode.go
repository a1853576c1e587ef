package relz

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// A zstdDecoder decodes one frame block by block.
type zstdDecoder struct {
	r      io.Reader
	frame  zstdFrame
	buf    []byte // content, at least as much of it as the window holds
	start  int64  // offset in the content of buf[0]
	fixed  bool   // buf is as large as it need be
	limit  int64  // of the content
	reps   [3]uint32
	tables zstdTables
	packed []byte
	lits   []byte
	done   bool
	sum    []byte // the checksum, once done
}

// newZstdDecoder reads the header of a frame that holds at most limit bytes.
func newZstdDecoder(r io.Reader, limit int64) (*zstdDecoder, error) {
	f, err := readFrame(r)
	if err != nil {
		return nil, err
	}
	if f.size > limit {
		return nil, errZstd
	}
	return &zstdDecoder{r: r, frame: f, limit: limit, reps: [3]uint32{1, 4, 8}, packed: make([]byte, zstdMaxSize)}, nil
}

// room makes room for a block behind what is there.
func (d *zstdDecoder) room() {
	if cap(d.buf)-len(d.buf) >= zstdMaxSize {
		return
	}
	if n := len(d.buf) - int(min(d.frame.window, 1<<40)); n >= zstdMaxSize && (d.fixed || n >= len(d.buf)/4) {
		d.start += int64(n)
		d.buf = d.buf[:copy(d.buf, d.buf[n:])]
	}
	if cap(d.buf)-len(d.buf) < zstdMaxSize {
		b := make([]byte, len(d.buf), max(2*cap(d.buf), 2*zstdMaxSize))
		copy(b, d.buf)
		d.buf = b
	}
}

// next decodes a block and returns its content, which is good until the next call; io.EOF behind the last. token, unless
// nil, sees each token, a run of literals as one.
func (d *zstdDecoder) next(token func(pos int64, t Token)) (b zstdBlock, content []byte, err error) {
	if d.done {
		return b, nil, io.EOF
	}
	var h [3]byte
	if _, err := io.ReadFull(d.r, h[:]); err != nil {
		return b, nil, errZstd
	}
	v := int(h[0]) | int(h[1])<<8 | int(h[2])<<16
	b.last, b.kind = v&1 != 0, byte(v>>1&3)
	if v >>= 3; v > zstdMaxSize {
		return b, nil, errZstd
	}
	d.room()
	begin := len(d.buf)
	switch b.kind {
	case zstdRaw:
		d.buf = d.buf[:begin+v]
		_, err = io.ReadFull(d.r, d.buf[begin:])
	case zstdRLE:
		d.buf = d.buf[:begin+v]
		if _, err = io.ReadFull(d.r, h[:1]); err == nil {
			for i := begin; i < len(d.buf); i++ {
				d.buf[i] = h[0]
			}
		}
	case zstdCompressed:
		if _, err = io.ReadFull(d.r, d.packed[:v]); err == nil && !d.block(&b, d.packed[:v], token) {
			err = errZstd
		}
	default:
		err = errZstd
	}
	if err == nil && b.last {
		d.done = true
		if d.frame.checksum {
			d.sum = make([]byte, 4)
			_, err = io.ReadFull(d.r, d.sum)
		}
	}
	if err != nil || d.start+int64(len(d.buf)) > d.limit {
		return b, nil, errZstd
	}
	content = d.buf[begin:]
	b.size = len(content)
	if b.kind != zstdCompressed && token != nil && b.size > 0 {
		token(d.start+int64(begin), Token{Literal, uint32(b.size), 0})
	}
	return b, content, nil
}

// block decodes a compressed block.
func (d *zstdDecoder) block(b *zstdBlock, p []byte, token func(pos int64, t Token)) bool {
	lit, format, size, packed, used, ok := literalsHeader(p)
	if !ok {
		return false
	}
	b.lit, b.format = lit, format
	in, p := p[used:used+packed], p[used+packed:]
	tables := in
	if in, ok = d.tables.literals(lit, in); !ok {
		return false
	}
	b.tables = append(b.tables, tables[:len(tables)-len(in)]...)
	if d.lits, ok = d.literals(d.lits[:0], lit, format, size, in); !ok || len(p) == 0 {
		return false
	}
	n := int(p[0])
	switch {
	case n < 128:
		p = p[1:]
	case len(p) < 3:
		return false
	case n < 255:
		n, p = (n-128)<<8|int(p[1]), p[2:]
	default:
		n, p = int(binary.LittleEndian.Uint16(p[1:]))+0x7f00, p[3:]
	}
	if n == 0 {
		return len(p) == 0 && d.take(d.lits, token)
	}
	if len(p) == 0 {
		return false
	}
	b.seqs, b.modes = true, p[0]
	tables = p[1:]
	if p, ok = d.tables.sequences(b.modes, tables); !ok {
		return false
	}
	b.tables = append(b.tables, tables[:len(tables)-len(p)]...)
	return d.sequences(n, p, token)
}

// literals decodes literals whose table was read.
func (d *zstdDecoder) literals(out []byte, lit, format byte, size int, p []byte) (_ []byte, ok bool) {
	switch lit {
	case litRaw:
		return append(out, p...), true
	case litRLE:
		for range size {
			out = append(out, p[0])
		}
		return out, true
	}
	huf := d.tables.huf
	if format == 0 {
		return huf.read(out, p, size)
	}
	if len(p) < 6 || size < 6 {
		return out, false
	}
	each := (size + 3) / 4
	at := 6
	for i := range 4 {
		n, want := len(p)-at, size-3*each
		if i < 3 {
			n, want = int(binary.LittleEndian.Uint16(p[2*i:])), each
		}
		if n > len(p)-at || want < 0 {
			return out, false
		}
		if out, ok = huf.read(out, p[at:at+n], want); !ok {
			return out, false
		}
		at += n
	}
	return out, true
}

// take appends literals to the content.
func (d *zstdDecoder) take(lits []byte, token func(pos int64, t Token)) bool {
	if len(lits) > cap(d.buf)-len(d.buf) {
		return false
	}
	if token != nil && len(lits) > 0 {
		token(d.start+int64(len(d.buf)), Token{Literal, uint32(len(lits)), 0})
	}
	d.buf = append(d.buf, lits...)
	return true
}

// sequences decodes n sequences and what they stand for.
func (d *zstdDecoder) sequences(n int, p []byte, token func(pos int64, t Token)) bool {
	r, ok := newBackReader(p)
	if !ok {
		return false
	}
	var state [numSymbols]uint32
	for i, t := range d.tables.fse {
		state[i] = r.read(t.log)
	}
	lits, stop := d.lits, len(d.buf)+zstdMaxSize
	for i := range n {
		var e [numSymbols]fseEntry
		for k, t := range d.tables.fse {
			e[k] = t.decode[state[k]]
		}
		of := uint(e[symOffset].symbol)
		offset := uint32(1)<<of | r.read(of)
		ml, ll := e[symMatch].symbol, e[symLiterals].symbol
		if int(ml) > zstdMaxSymbol[symMatch] || int(ll) > zstdMaxSymbol[symLiterals] {
			return false
		}
		match := int(matchBase[ml] + r.read(uint(matchBits[ml])))
		run := int(literalsBase[ll] + r.read(uint(literalsBits[ll])))
		if i < n-1 {
			for _, k := range [...]int{symLiterals, symMatch, symOffset} {
				state[k] = uint32(e[k].base) + r.read(uint(e[k].bits))
			}
		}
		if r.pos < 0 || run > len(lits) || len(d.buf)+run+match > stop {
			return false
		}
		if run > 0 && !d.take(lits[:run], token) {
			return false
		}
		lits = lits[run:]
		t := Token{Len: uint32(match)}
		t.Kind, t.Dist, ok = repeatedOffset(offset, run == 0, &d.reps)
		from := len(d.buf) - 1 - int(t.Dist)
		if !ok || from < 0 || int64(t.Dist) >= d.frame.window || match > cap(d.buf)-len(d.buf) {
			return false
		}
		if token != nil {
			token(d.start+int64(len(d.buf)), t)
		}
		for match > 0 { // a match may overlap itself
			k := min(match, len(d.buf)-from)
			d.buf = append(d.buf, d.buf[from:from+k]...)
			match -= k
		}
	}
	return r.pos == 0 && d.take(lits, token)
}

// repeatedOffset says what an offset of a sequence stands for: a kind, and a distance less one. none says that no literals
// stand before; reps, the last offsets, are brought up to date.
func repeatedOffset(offset uint32, none bool, reps *[3]uint32) (k Kind, dist uint32, ok bool) {
	if offset > 3 {
		k, dist = Match, offset-4
	} else {
		k = Rep0 + Kind(offset-1)
		if none {
			k++
		}
		if k == Rep3 {
			dist = reps[0] - 2
		} else {
			dist = reps[k-Rep0] - 1
		}
	}
	switch k {
	case Match, Rep3, Rep2:
		reps[0], reps[1], reps[2] = dist+1, reps[0], reps[1]
	case Rep1:
		reps[0], reps[1] = reps[1], reps[0]
	}
	return k, dist, dist < 1<<31
}

// A zstdEncoder makes the blocks of a frame from their tokens.
type zstdEncoder struct {
	w      io.Writer
	blocks []zstdBlock
	sum    []byte
	tables zstdTables
	lits   []byte
	seqs   []zstdSequence
	out    []byte
}

// block writes the next block.
func (e *zstdEncoder) block(p piece) error {
	b := e.blocks[0]
	e.blocks = e.blocks[1:]
	content := p.buf[p.at : p.at+p.size]
	out := append(e.out[:0], 0, 0, 0)
	n, ok := 0, true
	switch b.kind {
	case zstdRaw:
		out = append(out, content...)
		n = len(content)
	case zstdRLE:
		if n = len(content); n == 0 {
			return errZstd
		}
		out = append(out, content[0])
	default:
		e.split(content, p.tokens)
		if out, ok = e.compressed(out, &b); !ok {
			return errZstd
		}
		n = len(out) - 3
	}
	if n > zstdMaxSize {
		return errZstd
	}
	v := b2u(b.last) | uint32(b.kind)<<1 | uint32(n)<<3
	out[0], out[1], out[2] = byte(v), byte(v>>8), byte(v>>16)
	e.out = out
	_, err := e.w.Write(out)
	return err
}

// split makes literals and sequences of tokens.
func (e *zstdEncoder) split(content []byte, tokens []Token) {
	e.lits, e.seqs = e.lits[:0], e.seqs[:0]
	run, at := 0, 0
	for _, t := range tokens {
		if t.Kind == Literal {
			e.lits = append(e.lits, content[at:at+int(t.Len)]...)
			run += int(t.Len)
			at += int(t.Len)
			continue
		}
		s := zstdSequence{literals: uint32(run), match: t.Len, offset: t.Dist + 4}
		if t.Kind != Match {
			s.offset = uint32(t.Kind-Rep0) + 1
			if run == 0 {
				s.offset--
			}
		}
		e.seqs = append(e.seqs, s)
		at += int(t.Len)
		run = 0
	}
}

// compressed appends a block's literals and sequences.
func (e *zstdEncoder) compressed(out []byte, b *zstdBlock) (_ []byte, ok bool) {
	tables := b.tables
	rest, ok := e.tables.literals(b.lit, tables)
	if !ok {
		return nil, false
	}
	body := append([]byte(nil), tables[:len(tables)-len(rest)]...)
	switch b.lit {
	case litRaw:
		body = append(body, e.lits...)
	case litRLE:
		if len(e.lits) == 0 {
			return nil, false
		}
		body = append(body, e.lits[0])
	default:
		if body, ok = e.streams(body, b.format); !ok {
			return nil, false
		}
	}
	if out, ok = appendLiteralsHeader(out, b.lit, b.format, len(e.lits), len(body)); !ok {
		return nil, false
	}
	out = append(out, body...)
	switch n := len(e.seqs); {
	case n < 128:
		out = append(out, byte(n))
	case n < 0x7f00:
		out = append(out, byte(n>>8)+128, byte(n))
	default:
		out = append(out, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	if b.seqs != (len(e.seqs) > 0) {
		return nil, false
	}
	if !b.seqs {
		return out, len(rest) == 0
	}
	out = append(out, b.modes)
	left, ok := e.tables.sequences(b.modes, rest)
	if !ok || len(left) > 0 {
		return nil, false
	}
	return e.sequences(append(out, rest...))
}

// streams appends literals in one stream or four.
func (e *zstdEncoder) streams(out []byte, format byte) (_ []byte, ok bool) {
	if format == 0 {
		return e.tables.huf.write(out, e.lits)
	}
	if len(e.lits) < 6 {
		return nil, false
	}
	each, start := (len(e.lits)+3)/4, len(out)
	if 3*each > len(e.lits) {
		return nil, false
	}
	out = append(out, 0, 0, 0, 0, 0, 0)
	for i := range 4 {
		p, before := e.lits[i*each:], len(out)
		if i < 3 {
			p = p[:each]
		}
		if out, ok = e.tables.huf.write(out, p); !ok || len(out)-before > 1<<16-1 {
			return nil, false
		}
		if i < 3 {
			binary.LittleEndian.PutUint16(out[start+2*i:], uint16(len(out)-before))
		}
	}
	return out, true
}

// sequences appends the bits of sequences.
func (e *zstdEncoder) sequences(out []byte) (_ []byte, ok bool) {
	w := bitWriter{out: out}
	t := &e.tables.fse
	var state [numSymbols]uint32
	for i := len(e.seqs) - 1; i >= 0; i-- {
		s := e.seqs[i]
		if s.match < matchBase[0] {
			return nil, false
		}
		code := [numSymbols]byte{codeOfLiterals(s.literals), byte(bits.Len32(s.offset) - 1), codeOfMatch(s.match)}
		for k := range t {
			if !t[k].has(code[k]) {
				return nil, false
			}
		}
		if i == len(e.seqs)-1 {
			for k := range t {
				state[k] = t[k].begin(code[k])
			}
		} else {
			for _, k := range [...]int{symOffset, symMatch, symLiterals} {
				state[k] = t[k].encode(&w, state[k], code[k])
			}
		}
		ll, ml := code[symLiterals], code[symMatch]
		w.add(s.literals-literalsBase[ll], uint(literalsBits[ll]))
		w.add(s.match-matchBase[ml], uint(matchBits[ml]))
		w.add(s.offset, uint(code[symOffset]))
	}
	for _, k := range [...]int{symMatch, symOffset, symLiterals} {
		w.add(state[k], t[k].log)
	}
	return w.close(), true
}
