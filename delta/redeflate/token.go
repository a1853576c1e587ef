package redeflate

// A token is what deflate is made of: a literal byte (distance 0), or a match:
// distance<<8 | length-3.
type token uint32

// noMatch from a fixer is the literal that stands there.
const noMatch token = 1<<32 - 1

func literal(b byte) token         { return token(b) }
func match(length, dist int) token { return token(dist)<<8 | token(length-minMatch) }
func (t token) isMatch() bool      { return t > 0xff }
func (t token) dist() int          { return int(t >> 8) }
func (t token) low() byte          { return byte(t) }

// length is the number of bytes that the token stands for.
func (t token) length() int {
	if t > 0xff {
		return int(t&0xff) + minMatch
	}
	return 1
}

const (
	litCodes   = 286
	distCodes  = 30
	lenCodes   = 19
	endOfBlock = 256
	maxBits    = 15
)

// How deflate writes lengths and distances (RFC 1951, 3.2.5), and the order
// and repeat codes of code lengths (3.2.7).
var (
	lenExtra   = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distExtra  = [distCodes]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	codeExtra  = [lenCodes]uint8{16: 2, 17: 3, 18: 7}
	codeOrder  = [lenCodes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	lengthBase = bases(lenExtra[:28])
	distBase   = bases(distExtra[:])
	lengthCode = codesOf(lengthBase[:28], 256)
	distCode   = codesOf(distBase, windowSize) // of distance-1
	fixedLit   = fixedLiteralLengths()
	fixedDist  = fixedDistanceLengths()
)

// bases sums up how many values each code stands for.
func bases(extra []uint8) []int {
	out := make([]int, len(extra)+1)
	for i, e := range extra {
		out[i+1] = out[i] + 1<<e
	}
	return out[:len(extra)+1]
}

// codesOf inverts bases: the code of each value. Length 258 (value 255) has a
// code of its own, the last, although the one before covers it too.
func codesOf(base []int, values int) []uint8 {
	out := make([]uint8, values)
	code := 0
	for v := range out {
		for code+1 < len(base) && v >= base[code+1] {
			code++
		}
		out[v] = uint8(code)
	}
	if values == 256 {
		out[255] = 28
	}
	return out
}

func fixedLiteralLengths() (l [288]uint8) {
	for i := range l {
		switch {
		case i < 144:
			l[i] = 8
		case i < 256:
			l[i] = 9
		case i < 280:
			l[i] = 7
		default:
			l[i] = 8
		}
	}
	return l
}

func fixedDistanceLengths() (l [32]uint8) {
	for i := range l {
		l[i] = 5
	}
	return l
}
