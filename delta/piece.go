package delta

// What is made piece by piece (objects, programs, kernels) has operations that stay within a
// piece and count their positions from the one expected there.

// A piecePair is a piece of new content and what it is compared with.
type piecePair struct{ new, old span }

// A pieceCursor is where in its content a builder is, and where in the source it
// expects to go on.
type pieceCursor struct{ at, pos int64 }

// ends reports whether an action says that the content is complete.
func (a *action) ends() bool { return a.kind == opRaw && a.length == 0 }

// take checks an action against the end of its piece and the size of the source, gives it its
// length and its position in the source, and moves behind it.
func (p *pieceCursor) take(a *action, end, source int64) error {
	left := end - p.at
	if a.length == 0 {
		a.length = left
	}
	if a.length > left {
		return damaged("an operation across pieces")
	}
	if a.kind == opCopy || a.kind == opAdd {
		a.pos = p.pos + a.seek
		if a.pos < 0 || a.length > source-a.pos {
			return damaged("an operation beyond its sources")
		}
		p.pos = a.pos + a.length
	}
	p.at += a.length
	return nil
}

// write makes the bytes of an action.
func (a *action) write(dst, src []byte) {
	switch a.kind {
	case opCopy:
		copy(dst, src[a.pos:a.pos+a.length])
	case opAdd:
		addBytes(dst, src[a.pos:a.pos+a.length], a.data)
	default:
		copy(dst, a.data)
	}
}
