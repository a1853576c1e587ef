package relz

// A coder is LZMA's range coder, in one of its two directions. Encoding, bit
// writes the bit that it is given; decoding, it ignores it. Both return the bit in
// question: there is one walk through each model for both directions, so that
// they cannot differ.
type coder struct {
	encoding bool
	rng      uint32

	out   []byte
	low   uint64
	cache byte
	held  int // bytes, of cache and of 0xff, that a carry may still change

	in   []byte
	next int
	code uint32
}

// encode begins to append to out. The first byte is always zero, as in LZMA.
func (c *coder) encode(out []byte) { *c = coder{encoding: true, rng: 1<<32 - 1, out: out, held: 1} }

// decode begins with in.
func (c *coder) decode(in []byte) bool {
	if len(in) < 5 || in[0] != 0 {
		return false
	}
	code := uint32(in[1])<<24 | uint32(in[2])<<16 | uint32(in[3])<<8 | uint32(in[4])
	*c = coder{rng: 1<<32 - 1, in: in, next: 5, code: code}
	return true
}

// over reports whether more was decoded than there is; there, zeros are read.
func (c *coder) over() bool { return c.next > len(c.in) }

// bit codes one bit with an adaptive probability.
func (c *coder) bit(p *prob, b uint32) uint32 {
	if !c.encoding {
		return c.decodeBit(p)
	}
	bound := c.rng >> probBits * uint32(*p)
	if b == 0 {
		c.rng = bound
		*p += (1<<probBits - *p) >> moveBits
	} else {
		c.low += uint64(bound)
		c.rng -= bound
		*p -= *p >> moveBits
	}
	for c.rng < 1<<24 {
		c.rng <<= 8
		c.shift()
	}
	return b
}

func (c *coder) decodeBit(p *prob) uint32 {
	if c.rng < 1<<24 {
		c.load()
	}
	bound := c.rng >> probBits * uint32(*p)
	if c.code < bound {
		c.rng = bound
		*p += (1<<probBits - *p) >> moveBits
		return 0
	}
	c.rng -= bound
	c.code -= bound
	*p -= *p >> moveBits
	return 1
}

func (c *coder) load() {
	c.rng <<= 8
	c.code <<= 8
	if c.next < len(c.in) {
		c.code |= uint32(c.in[c.next])
	}
	c.next++
}

// direct codes n bits that are as often one as zero.
func (c *coder) direct(v uint32, n uint) uint32 {
	got := uint32(0)
	for i := n; i > 0; i-- {
		if !c.encoding && c.rng < 1<<24 {
			c.load()
		}
		c.rng >>= 1
		b := v >> (i - 1) & 1
		if c.encoding {
			c.low += uint64(c.rng & -b)
			for c.rng < 1<<24 {
				c.rng <<= 8
				c.shift()
			}
		} else if b = 0; c.code >= c.rng {
			c.code -= c.rng
			b = 1
		}
		got = got<<1 | b
	}
	return got
}

func (c *coder) shift() {
	if c.low < 0xff000000 || c.low >= 1<<32 {
		carry := byte(c.low >> 32)
		for b := c.cache; c.held > 0; c.held-- {
			c.out = append(c.out, b+carry)
			b = 0xff
		}
		c.cache = byte(c.low >> 24)
	}
	c.held++
	c.low = c.low & 0xffffff << 8
}

// finish writes what is held back and returns all that was encoded.
func (c *coder) finish() []byte {
	for range 5 {
		c.shift()
	}
	return c.out
}
