package redeflate

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// A finder turns plain into the tokens that its model would choose.
//
//	     |<-- history: at least 64 KiB -->|<-------- ahead -------->|
//	buf  |................................|.........................|pad|
//	                                     pos                       end
//
// Both programs keep a window of 64 KiB whose upper half they move down when it
// is used up. The finder has a longer buffer and moves less often; where the
// edges of the window can be observed in the output, it computes where they
// would be (windowBase).
//
// Positions are indexes into buf. As in the originals, the first position of
// the window ends a chain and is therefore never matched.
type finder struct {
	m    model
	r    io.Reader
	left int64 // bytes that r has still to give, or -1: all it has
	buf  []byte
	base int64 // offset in plain of buf[0]
	pos  int   // where the next search happens
	end  int   // valid bytes in buf
	eof  bool  // end is the end of plain
	head []int32
	prev *[windowSize]uint16 // distance to the candidate before; far if there is none
	sum  func([]byte)        // sees every byte of plain once; may be nil

	// The state of lazy matching between two positions.
	curLen, curPos int
	waiting        bool // the byte before pos is not part of a token yet
	trailing       bool // the last token was the byte left waiting at the very end

	origin    int64 // offset in plain at which the window began
	piece     int64 // offset in plain at which the search's view ends, if any
	tail      bool  // fewer than minLookahead bytes are left to see
	tailStart int64 // where that was noticed

	count uint64 // tokens so far
	fixAt uint64 // number of the token that fix wants to see next
	fix   fixer
}

// A fixer replaces tokens that the model gets wrong. It is asked about token
// number n, which the model predicts to be t, with ahead bytes left. It returns
// the token to take (noMatch: a literal) and the number of the next one that it wants to see.
type fixer interface {
	token(n uint64, t token, ahead int) (token, uint64, error)
}

const (
	finderBuffer = 384 << 10
	finderKeep   = 65536 + 2*minLookahead // windowBase may be so far back
	finderPad    = maxMatch + 16          // matchLength reads so far beyond end
	far          = 0xffff
	never        = ^uint64(0)
	noPiece      = int64(1)<<62 - 1
)

// reset starts on new data. left is the number of bytes that r must give, -1
// for all that it has.
func (f *finder) reset(m model, r io.Reader, left int64, sum func([]byte), fix fixer) {
	if f.buf == nil {
		f.buf = make([]byte, finderBuffer+finderPad)
		f.prev = new([windowSize]uint16)
	}
	if len(f.head) != 1<<m.hashBits {
		f.head = make([]int32, 1<<m.hashBits)
	} else {
		clear(f.head)
	}
	*f = finder{m: m, r: r, left: left, buf: f.buf, head: f.head, prev: f.prev, sum: sum,
		curLen: minMatch - 1, piece: noPiece, fixAt: never, fix: fix}
	if m.piece > 0 {
		f.piece = m.piece
	}
	if fix != nil {
		f.fixAt = 0
	}
}

// fill moves the history down and reads until the buffer is full or the data ends.
func (f *finder) fill() error {
	// In steps of the window, so that the slots of prev stay where they are.
	if drop := (f.pos - finderKeep) &^ windowMask; drop > 0 {
		copy(f.buf, f.buf[drop:f.end])
		f.base += int64(drop)
		f.pos -= drop
		f.end -= drop
		f.curPos -= drop
		for i, h := range f.head {
			f.head[i] = max(h-int32(drop), 0)
		}
	}
	for f.end < finderBuffer && !f.eof {
		n, err := f.read(f.buf[f.end:finderBuffer])
		f.end += n
		if err != nil {
			return err
		}
	}
	clear(f.buf[f.end : f.end+finderPad])
	return nil
}

// read reads plain into room, which is not empty, and notes its end.
func (f *finder) read(room []byte) (int, error) {
	if f.left >= 0 && int64(len(room)) > f.left {
		room = room[:f.left]
	}
	if len(room) == 0 {
		f.eof = true
		return 0, nil
	}
	n, err := f.r.Read(room)
	if f.sum != nil && n > 0 {
		f.sum(room[:n])
	}
	if f.left >= 0 {
		f.left -= int64(n)
		f.eof = f.left == 0
	}
	if err == io.EOF {
		if f.left > 0 {
			return n, io.ErrUnexpectedEOF
		}
		f.eof = true
		return n, nil
	}
	return n, err
}

// horizon returns the end of what may be seen, and whether that is the end of
// the piece or of the data and not just of what was read.
func (f *finder) horizon() (limit int, final bool) {
	if piece := f.piece - f.base; piece < int64(f.end) || piece == int64(f.end) {
		return int(piece), true
	}
	return f.end, f.eof
}

// run fills out with tokens. It returns fewer than len(out) only at the end of
// the piece or of the data.
func (f *finder) run(out []token) (n int, err error) {
	for n < len(out) {
		limit, final := f.horizon()
		if !final && limit-f.pos < minLookahead {
			if err := f.fill(); err != nil {
				return n, err
			}
			continue
		}
		until := limit - minLookahead + 1
		if f.pos >= until {
			f.enterTail(limit)
			until = limit
		}
		k := 0
		switch {
		case f.pos >= limit && !f.waiting:
			return n, nil
		case f.pos >= limit:
			k, err = f.leftOver(out[n:])
		case f.m.lazy:
			k, err = f.lazy(out[n:], until, limit)
		default:
			k, err = f.fast(out[n:], until, limit)
		}
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// leftOver gives out the byte that waited for a better match at the very end.
func (f *finder) leftOver(out []token) (int, error) {
	t := literal(f.buf[f.pos-1])
	if f.count >= f.fixAt {
		fixed, err := f.ask(t, f.pos-1, 1)
		if err != nil {
			return 0, err
		}
		t = fixed // one byte is left: it can only be the same
	}
	out[0] = t
	f.count++
	f.waiting, f.trailing = false, true
	return 1, nil
}

// ask lets fix replace t, which begins at position at.
func (f *finder) ask(t token, at, ahead int) (token, error) {
	t, next, err := f.fix.token(f.count, t, ahead)
	f.fixAt = next
	if t == noMatch {
		t = literal(f.buf[at])
	}
	return t, err
}

func (f *finder) ended() (ended, leftOver bool, err error) {
	if _, err := f.more(); err != nil {
		return false, false, err
	}
	limit, final := f.horizon()
	return final && f.pos >= limit && !f.waiting, f.trailing, nil
}

func (f *finder) held(from, n, at int64) []byte {
	i := from - f.base
	if n > storedMax || i < 0 || i+n > int64(f.end) || at >= 0 && from < f.windowBase(at) {
		return nil
	}
	return f.buf[i : i+n]
}

// windowBase computes where in plain the program's window of 64 KiB began when
// it was about to search at offset at.
func (f *finder) windowBase(at int64) int64 {
	tail := never
	if f.tail {
		tail = uint64(f.tailStart)
	}
	return f.m.windowBase(f.origin, at, tail)
}

// windowBase is the method of finder for data that begins at origin, and whose
// end the search noticed at tail.
func (m *model) windowBase(origin, at int64, tail uint64) int64 {
	edge := int64(windowSize + maxDist + 1)
	if uint64(at) >= tail {
		// With little left, the window moves one position earlier; GNU gzip,
		// having noticed the end, does not move it any more.
		edge--
		if m.gnu {
			at = int64(tail)
		}
	}
	if at-origin < edge {
		return origin
	}
	return origin + ((at-origin-edge)/windowSize+1)*windowSize
}

// enterTail notes that the search now sees the end of its data. GNU gzip lets
// matches run beyond it and cuts them afterwards, so what stands there decides
// which of two matches wins: two zeros, and then what the window held before.
func (f *finder) enterTail(limit int) {
	if f.tail {
		return
	}
	f.tail = true
	f.tailStart = f.base + int64(f.pos)
	if !f.m.gnu {
		return
	}
	window := f.windowBase(f.tailStart)
	moves := (window - f.origin) / windowSize
	for i := minMatch - 1; i < finderPad; i++ {
		slot := f.base + int64(limit+i) - window
		if moves >= 2 || moves == 1 && slot >= windowSize {
			f.buf[limit+i] = f.buf[limit+i-windowSize]
		}
	}
}

// more reports whether plain goes on after what has been turned into tokens.
func (f *finder) more() (bool, error) {
	if f.end-f.pos < minLookahead && !f.eof {
		if err := f.fill(); err != nil {
			return false, err
		}
	}
	return f.pos < f.end, nil
}

// nextPiece lets the search see the next piece, as pigz does: it begins with
// an empty window and is shown up to 32 KiB of what came before.
func (f *finder) nextPiece() {
	f.tail, f.trailing = false, false
	f.curLen = minMatch - 1
	f.piece += f.m.piece
	clear(f.head)
	start := f.pos
	if f.m.linked {
		start = max(f.pos-windowSize, 0)
	}
	f.origin = f.base + int64(start)
	for i := start; i < f.pos; i++ {
		f.insert(i)
	}
}

// hash is a function of the three bytes at i.
func (f *finder) hash(i int) uint32 {
	v := binary.LittleEndian.Uint32(f.buf[i:])
	return ((v&0xff)<<(2*f.m.shift) ^ (v>>8&0xff)<<f.m.shift ^ v>>16&0xff) & (1<<f.m.hashBits - 1)
}

// insert adds position i to its chain and returns the chain's head before.
func (f *finder) insert(i int) int {
	h := f.hash(i)
	head := int(f.head[h])
	f.head[h] = int32(i)
	f.prev[i&windowMask] = uint16(min(i-head, far))
	return head
}

// search walks the chain that begins at cur and returns the longest match for
// pos that is longer than best, or best. The first of equally long ones wins.
func (f *finder) search(pos, cur, best, chain, nice int) (length, at int) {
	buf, prev := f.buf, f.prev
	limit := max(pos-maxDist, int(max(f.origin-f.base, 0)))
	scan := buf[pos : pos+maxMatch+8]
	at = f.curPos
	// A longer match agrees in the last four of its first best+1 bytes.
	offset, mask := best-minMatch, ^uint32(0)
	if best < minMatch {
		offset, mask = 0, 0xffffff
	}
	want := binary.LittleEndian.Uint32(scan[offset:]) & mask
	for {
		if binary.LittleEndian.Uint32(buf[cur+offset:])&mask == want {
			if n := matchLength(scan, buf[cur:]); n > best {
				best, at = n, cur
				if n >= nice {
					break
				}
				offset, mask = n-minMatch, ^uint32(0)
				want = binary.LittleEndian.Uint32(scan[offset:])
			}
		}
		if chain--; chain == 0 {
			break
		}
		cur -= int(prev[cur&windowMask])
		if cur <= limit {
			break
		}
	}
	return best, at
}

// matchLength compares up to maxMatch bytes at a and b.
func matchLength(a, b []byte) int {
	a = a[:maxMatch+8]
	b = b[:maxMatch+8]
	for n := 0; n < maxMatch; n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return min(n+bits.TrailingZeros64(x)>>3, maxMatch)
		}
	}
	return maxMatch
}
