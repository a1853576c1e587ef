package redeflate

// What the two search loops do at the end of the data differs between the
// families; effort gathers it. ok is false if nothing is searched at all.
func (f *finder) effort(pos, limit int) (nice int, ok bool) {
	if !f.tail {
		return f.m.nice, true
	}
	if f.m.gnu {
		at := f.base + int64(pos)
		return f.m.nice, at-f.windowBase(at) <= 2*windowSize-minLookahead
	}
	return min(f.m.nice, limit-pos), limit-pos >= minMatch
}

// lazy is the search of levels 4 to 9: a match is taken only if the next
// position has no longer one. It runs for positions before until and stops when
// out is full.
func (f *finder) lazy(out []token, until, limit int) (n int, err error) {
	m := &f.m
	pos := f.pos
	floor := int(max(f.origin-f.base, 0))
	for pos < until && n < len(out) {
		head := f.insert(pos)
		prevLen, prevPos := f.curLen, f.curPos
		f.curLen = minMatch - 1
		if head > floor && prevLen < m.maxLazy && pos-head <= maxDist {
			f.curLen, f.curPos = f.lazySearch(pos, head, prevLen, limit)
		}

		var t token
		switch {
		case prevLen >= minMatch && f.curLen <= prevLen:
			t = match(prevLen, pos-1-prevPos)
		case f.waiting:
			t = literal(f.buf[pos-1])
		default:
			f.waiting = true
			pos++
			continue
		}
		fixed := t
		if f.count >= f.fixAt {
			if fixed, err = f.ask(t, pos-1, limit-pos+1); err != nil {
				break
			}
		}
		out[n] = fixed
		n++
		f.count++
		switch {
		case fixed.isMatch():
			next := pos - 1 + fixed.length()
			for i := pos + 1; i < next; i++ {
				f.insert(i)
			}
			pos = next
			f.waiting = false
			f.curLen = minMatch - 1
		case fixed != t:
			// The encoder saw no match where the model did, so it searched
			// pos without one to beat.
			f.curLen = minMatch - 1
			if head > floor && pos-head <= maxDist {
				f.curLen, f.curPos = f.lazySearch(pos, head, minMatch-1, limit)
			}
			pos++
		default:
			pos++
		}
	}
	f.pos = pos
	return n, err
}

// lazySearch searches pos with a match of prevLen at the position before.
func (f *finder) lazySearch(pos, head, prevLen, limit int) (length, at int) {
	nice, ok := f.m.nice, true
	if f.tail {
		if nice, ok = f.effort(pos, limit); !ok {
			return minMatch - 1, f.curPos
		}
	}
	chain := f.m.chain
	if prevLen >= f.m.good {
		chain >>= 2
	}
	length, at = f.search(pos, head, prevLen, chain, nice)
	if length > limit-pos {
		length = limit - pos
	}
	if length == minMatch && pos-at > tooFar {
		length--
	}
	return length, at
}

// fast is the search of levels 1 to 3: the first match is taken, and the inside
// of long matches is not hashed.
func (f *finder) fast(out []token, until, limit int) (n int, err error) {
	m := &f.m
	pos := f.pos
	floor := int(max(f.origin-f.base, 0))
	for pos < until && n < len(out) {
		head := f.insert(pos)
		t := literal(f.buf[pos])
		if head > floor && pos-head <= maxDist {
			if nice, ok := f.effort(pos, limit); ok {
				length, at := f.search(pos, head, minMatch-1, m.chain, nice)
				if length = min(length, limit-pos); length >= minMatch {
					t = match(length, pos-at)
				}
			}
		}
		if f.count >= f.fixAt {
			if t, err = f.ask(t, pos, limit-pos); err != nil {
				break
			}
		}
		out[n] = t
		n++
		f.count++
		next := pos + t.length()
		if t.isMatch() && t.length() <= m.maxLazy {
			for i := pos + 1; i < next; i++ {
				f.insert(i)
			}
		}
		pos = next
	}
	f.pos = pos
	return n, err
}
