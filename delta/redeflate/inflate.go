package redeflate

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// errInflate says that data is not a deflate stream, or too long a one.
var errInflate = errors.New("not a deflate stream")

// inflated is a deflate stream taken apart. compress/flate and its like tell
// only the content; an encoder is known by its tokens and blocks.
type inflated struct {
	plain  []byte // dst of inflate with the content appended
	used   int    // bytes of the stream
	blocks []blockInfo
	tokens []token // with storedRun for the bytes of stored blocks
	clean  bool    // unused bits are zero, as all encoders leave them
}

// blockInfo is one block as it stands in a stream.
type blockInfo struct {
	form         blockType
	tokens       int   // 0 for stored blocks
	bytes        int   // plain that it stands for
	header, body int64 // bit offsets of what follows the three bits, and of the tokens
}

// storedRun in a list of tokens stands for so many bytes of a stored block.
const storedRun token = 1 << 31

// tokenLimit ends the recording of tokens; 0 records none.
func inflate(data, dst []byte, maxPlain int64, tokenLimit int) (*inflated, error) {
	d := inflater{data: data, dst: dst, start: len(dst), room: maxPlain, tokenLimit: tokenLimit}
	d.out.clean = true
	for {
		last, err := d.block()
		if err != nil {
			return nil, err
		}
		if last {
			break
		}
	}
	if d.take(d.n%8) != 0 {
		d.out.clean = false
	}
	d.out.plain = d.dst
	d.out.used = d.next - int(d.n/8)
	return &d.out, nil
}

type inflater struct {
	data       []byte
	next       int
	acc        uint64
	n          uint
	short      bool // bits were asked for beyond the end
	dst        []byte
	start      int
	room       int64
	tokenLimit int
	out        inflated
	lit, dist  decoder

	lengths     [286 + 32]uint8 // of the codes of a dynamic block, literals first
	lits, dists int
}

// refill makes at least 48 bits available, zeros beyond the end of data.
func (d *inflater) refill() {
	if d.next+8 <= len(d.data) {
		d.acc |= binary.LittleEndian.Uint64(d.data[d.next:]) << d.n
		d.next += int(63-d.n) >> 3
		d.n |= 56
		d.acc &= 1<<d.n - 1
		return
	}
	for d.n <= 48 {
		if d.next < len(d.data) {
			d.acc |= uint64(d.data[d.next]) << d.n
		} else if d.next >= len(d.data)+8 {
			d.short = true
			return
		}
		d.next++
		d.n += 8
	}
}

// take removes n bits, at most 32.
func (d *inflater) take(n uint) uint32 {
	if d.n < n {
		d.refill()
		if d.n < n {
			d.short = true
			return 0
		}
	}
	v := uint32(d.acc & (1<<n - 1))
	d.acc >>= n
	d.n -= n
	return v
}

// offset is the number of bits taken.
func (d *inflater) offset() int64 { return int64(d.next)*8 - int64(d.n) }

// over reports whether more was taken than there is.
func (d *inflater) over() bool { return d.short || d.offset() > int64(len(d.data))*8 }

func (d *inflater) block() (last bool, err error) {
	last = d.take(1) == 1
	info := blockInfo{form: blockType(d.take(2)), header: d.offset()}
	before := len(d.dst)
	switch info.form {
	case storedBlock:
		err = d.stored()
	case fixedBlock:
		d.lit.build(fixedLit[:])
		d.dist.build(fixedDist[:])
		info.body = d.offset()
		info.tokens, err = d.codes()
	case dynamicBlock:
		if err = d.trees(); err == nil {
			info.body = d.offset()
			info.tokens, err = d.codes()
		}
	default:
		err = errInflate
	}
	if err == nil && d.over() {
		err = errInflate
	}
	info.bytes = len(d.dst) - before
	d.out.blocks = append(d.out.blocks, info)
	return last, err
}

func (d *inflater) stored() error {
	if d.take(d.n%8) != 0 {
		d.out.clean = false
	}
	v := d.take(32)
	n := int(v & storedMax)
	if d.over() || uint32(n) != ^v>>16 {
		return errInflate
	}
	at := int(d.offset() / 8)
	if n > len(d.data)-at || int64(len(d.dst)-d.start+n) > d.room {
		return errInflate
	}
	d.dst = append(d.dst, d.data[at:at+n]...)
	if n > 0 && len(d.out.tokens) < d.tokenLimit {
		d.out.tokens = append(d.out.tokens, storedRun|token(n))
	}
	d.next, d.acc, d.n = at+n, 0, 0
	return nil
}

// trees reads the codes of a dynamic block.
func (d *inflater) trees() error {
	lits, dists, sent := int(d.take(5))+257, int(d.take(5))+1, int(d.take(4))+4
	d.lits, d.dists = lits, dists
	lengths := d.lengths[:]
	if lits > 286 {
		return errInflate
	}
	var code [lenCodes]uint8
	for _, i := range codeOrder[:sent] {
		code[i] = uint8(d.take(3))
	}
	if !d.lit.build(code[:]) {
		return errInflate
	}
	for i := 0; i < lits+dists; {
		s := d.lit.symbol(d)
		if s < 0 || d.over() {
			return errInflate
		}
		if s < 16 {
			lengths[i] = uint8(s)
			i++
			continue
		}
		n, v := 0, uint8(0)
		switch s {
		case 16:
			if i == 0 {
				return errInflate
			}
			n, v = 3+int(d.take(2)), lengths[i-1]
		case 17:
			n = 3 + int(d.take(3))
		default:
			n = 11 + int(d.take(7))
		}
		if i+n > lits+dists {
			return errInflate
		}
		for ; n > 0; n-- {
			lengths[i] = v
			i++
		}
	}
	if lengths[endOfBlock] == 0 || !d.lit.build(lengths[:lits]) || !d.dist.build(lengths[lits:lits+dists]) {
		return errInflate
	}
	return nil
}

// codes decodes tokens up to the end of the block.
func (d *inflater) codes() (n int, err error) {
	for {
		d.refill()
		s := d.lit.symbol(d)
		var t token
		switch {
		case s < 0 || d.over() || s > 285:
			return n, errInflate
		case s < endOfBlock:
			d.dst = append(d.dst, byte(s))
			t = literal(byte(s))
		case s == endOfBlock:
			return n, nil
		default:
			s -= 257
			length := 255
			if s < 28 {
				length = lengthBase[s] + int(d.take(uint(lenExtra[s])))
				if length == 255 {
					// Length 258 in the way that no encoder of ours writes it.
					d.out.clean = false
				}
			}
			length += minMatch
			c := d.dist.symbol(d)
			if c < 0 || c >= distCodes {
				return n, errInflate
			}
			dist := distBase[c] + int(d.take(uint(distExtra[c]))) + 1
			from := len(d.dst) - dist
			if from < d.start {
				return n, errInflate
			}
			t = match(length, dist)
			if dist >= length {
				d.dst = append(d.dst, d.dst[from:from+length]...)
			} else {
				for ; length > 0; length-- {
					d.dst = append(d.dst, d.dst[from])
					from++
				}
			}
		}
		if int64(len(d.dst)-d.start) > d.room {
			return n, errInflate
		}
		n++
		if len(d.out.tokens) < d.tokenLimit {
			d.out.tokens = append(d.out.tokens, t)
		}
	}
}

// A decoder decodes one Huffman code: short codes by table, long ones bit by bit.
type decoder struct {
	table [1 << decoderBits]uint16 // symbol<<4 | length, 0 if longer
	count [maxBits + 1]uint16
	order [288]uint16 // symbols by code
}

const decoderBits = 10

// build prepares for canonical codes of these lengths. Only complete codes are
// good, and those of a single symbol, as zlib's inflate has it.
func (c *decoder) build(lengths []uint8) bool {
	c.count = [maxBits + 1]uint16{}
	used := 0
	for _, l := range lengths {
		c.count[l]++
		if l != 0 {
			used++
		}
	}
	c.count[0] = 0
	left := 1
	var offset [maxBits + 2]uint16
	for l := 1; l <= maxBits; l++ {
		left = left<<1 - int(c.count[l])
		if left < 0 {
			return false
		}
		offset[l+1] = offset[l] + c.count[l]
	}
	if left > 0 && used > 1 {
		return false
	}
	var codes [288]uint16
	assign(lengths, codes[:])
	clear(c.table[:])
	for s, l := range lengths {
		if l == 0 {
			continue
		}
		c.order[offset[l]] = uint16(s)
		offset[l]++
		if l <= decoderBits {
			for i := int(codes[s]); i < len(c.table); i += 1 << l {
				c.table[i] = uint16(s)<<4 | uint16(l)
			}
		}
	}
	return true
}

// symbol decodes the next symbol, or returns -1.
func (c *decoder) symbol(d *inflater) int {
	if d.n < maxBits {
		d.refill()
	}
	if e := c.table[d.acc&(1<<decoderBits-1)]; e != 0 {
		n := uint(e & 15)
		d.acc >>= n
		d.n -= min(n, d.n)
		return int(e >> 4)
	}
	code, first, index := 0, 0, 0
	reversed := bits.Reverse16(uint16(d.acc))
	for l := 1; l <= maxBits; l++ {
		code |= int(reversed>>(16-l)) & 1
		count := int(c.count[l])
		if code-count < first {
			d.acc >>= uint(l)
			d.n -= min(uint(l), d.n)
			return int(c.order[index+code-first])
		}
		index += count
		first = (first + count) << 1
		code <<= 1
	}
	return -1
}
