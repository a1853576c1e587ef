package relz

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
)

// Zstandard frames (RFC 8878).

var errZstd = errors.New("damaged Zstandard frame")

const (
	zstdMagic   = 0xfd2fb528
	zstdMaxSize = 128 << 10 // of a block
	zstdLongest = zstdMaxSize
	zstdHeader  = 14 // the longest header of a frame
)

// A zstdFrame is the header of a frame.
type zstdFrame struct {
	raw      []byte
	window   int64
	size     int64 // of the content, -1 if it is not said
	checksum bool  // 4 bytes follow the last block
}

// readFrame reads a header. Dictionaries are not supported.
func readFrame(r io.Reader) (f zstdFrame, err error) {
	b := make([]byte, 5, zstdHeader)
	if _, err := io.ReadFull(r, b); err != nil {
		return f, errZstd
	}
	d := b[4]
	single := d&0x20 != 0
	n := [4]int{0, 2, 4, 8}[d>>6]
	if n == 0 && single {
		n = 1
	}
	if binary.LittleEndian.Uint32(b) != zstdMagic || d&0x08 != 0 || d&3 != 0 {
		return f, errZstd
	}
	window := 0
	if !single {
		window = 1
	}
	b = b[:5+window+n]
	if _, err := io.ReadFull(r, b[5:]); err != nil {
		return f, errZstd
	}
	f = zstdFrame{raw: b, size: -1, checksum: d&4 != 0}
	if n > 0 {
		f.size = int64(load64(b, 5+window))
		if n == 2 {
			f.size += 256
		}
		if f.size < 0 || f.size > maxSize {
			return f, errZstd
		}
	}
	if f.window = f.size; !single {
		base := int64(1) << (10 + b[5]>>3)
		f.window = base + base/8*int64(b[5]&7)
	}
	return f, nil
}

// A zstdBlock says of a block what does not follow from its content and its tokens.
type zstdBlock struct {
	kind   byte
	last   bool
	size   int // of the content
	lit    byte
	format byte // of the header of the literals
	seqs   bool // there are sequences
	modes  byte // of their tables
	tables []byte
}

const (
	zstdRaw = iota
	zstdRLE
	zstdCompressed

	litRaw      = 0
	litRLE      = 1
	litHuffman  = 2
	litTreeless = 3

	modePredefined = 0
	modeRLE        = 1
	modeFSE        = 2
	modeRepeat     = 3
)

// Symbols of a sequence, in the order in which their tables stand.
const (
	symLiterals = iota
	symOffset
	symMatch
	numSymbols
)

var (
	zstdMaxSymbol = [numSymbols]int{35, 31, 52}
	zstdMaxLog    = [numSymbols]uint{9, 8, 9}
	zstdModeShift = [numSymbols]uint{6, 4, 2}

	zstdPredefined = [numSymbols]*fseTable{
		newFSE([]int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}, 6),
		newFSE([]int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}, 5),
		newFSE([]int16{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}, 6),
	}
	literalsBase = [36]uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}
	literalsBits = [36]byte{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	matchBase    = [53]uint32{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
		35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051, 4099, 8195, 16387, 32771, 65539}
	matchBits = [53]byte{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

	literalsCode, matchCode = codesOf(literalsBase[:]), codesOf(matchBase[:]) // of numbers below 128
)

// codesOf returns the codes of numbers below 128 above the first base.
func codesOf(base []uint32) (c [128]byte) {
	for i := range c {
		for int(c[i])+1 < len(base) && base[c[i]+1]-base[0] <= uint32(i) {
			c[i]++
		}
	}
	return c
}

// codeOf returns the code of a number above the first base. From 128 on there is one for each number of bits, from
// large+8 on.
func codeOf(v uint32, small *[128]byte, large int) byte {
	if v < 128 {
		return small[v]
	}
	return byte(large + bits.Len32(v))
}

func codeOfLiterals(n uint32) byte { return codeOf(n, &literalsCode, 18) }
func codeOfMatch(n uint32) byte    { return codeOf(n-matchBase[0], &matchCode, 35) }

// A zstdSequence is a run of literals and a match.
type zstdSequence struct {
	literals, match uint32
	offset          uint32 // 1 to 3: one of the last, else 3 less
}

// zstdTables are those in use; they outlive blocks.
type zstdTables struct {
	huf *hufTable
	fse [numSymbols]*fseTable
}

// literals takes the tables of the literals off p, if there are any.
func (t *zstdTables) literals(lit byte, p []byte) (rest []byte, ok bool) {
	if lit != litHuffman {
		return p, lit != litTreeless || t.huf != nil
	}
	huf, used, ok := readHuf(p)
	if ok {
		t.huf = huf
		p = p[used:]
	}
	return p, ok
}

// sequences takes the tables of the sequences off p.
func (t *zstdTables) sequences(modes byte, p []byte) (rest []byte, ok bool) {
	if modes&3 != 0 {
		return nil, false
	}
	for i := range t.fse {
		switch modes >> zstdModeShift[i] & 3 {
		case modePredefined:
			t.fse[i] = zstdPredefined[i]
		case modeRLE:
			if len(p) == 0 || int(p[0]) > zstdMaxSymbol[i] {
				return nil, false
			}
			t.fse[i] = oneFSE(p[0])
			p = p[1:]
		case modeFSE:
			norm, log, used, ok := readNorm(p, zstdMaxSymbol[i], zstdMaxLog[i])
			if !ok {
				return nil, false
			}
			t.fse[i] = newFSE(norm, log)
			p = p[used:]
		case modeRepeat:
			if t.fse[i] == nil {
				return nil, false
			}
		}
	}
	return p, true
}

// literalsHeader reads the header of literals.
func literalsHeader(p []byte) (lit, format byte, size, packed, used int, ok bool) {
	if len(p) == 0 {
		return 0, 0, 0, 0, 0, false
	}
	lit, format = p[0]&3, p[0]>>2&3
	v := load64(p, 0)
	if lit == litRaw || lit == litRLE {
		switch used, size = 1, int(v>>3&31); format {
		case 1:
			used, size = 2, int(v>>4&0xfff)
		case 3:
			used, size = 3, int(v>>4&0xfffff)
		default:
			format = 0 // its second bit is one of the size
		}
		if packed = size; lit == litRLE {
			packed = 1
		}
	} else {
		n := zstdSizeBits[format]
		used = int(4+2*n+7) / 8
		size, packed = int(v>>4&(1<<n-1)), int(v>>(4+n)&(1<<n-1))
	}
	return lit, format, size, packed, used, used+packed <= len(p) && size <= zstdMaxSize
}

var zstdSizeBits = [4]uint{10, 10, 14, 18}

// appendLiteralsHeader writes the header of literals; ok is false where the sizes are too large for its format.
func appendLiteralsHeader(out []byte, lit, format byte, size, packed int) (_ []byte, ok bool) {
	v := uint64(lit) | uint64(format)<<2
	if lit == litRaw || lit == litRLE {
		n, used := uint(12), 2
		switch format {
		case 0:
			v |= uint64(size) << 3
			return append(out, byte(v)), size < 32
		case 3:
			n, used = 20, 3
		}
		v |= uint64(size) << 4
		return append(out, binary.LittleEndian.AppendUint64(nil, v)[:used]...), size < 1<<n
	}
	n := zstdSizeBits[format]
	v |= uint64(size)<<4 | uint64(packed)<<(4+n)
	return append(out, binary.LittleEndian.AppendUint64(nil, v)[:(4+2*n+7)/8]...), size < 1<<n && packed < 1<<n
}
