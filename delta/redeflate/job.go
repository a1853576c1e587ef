package redeflate

// A job is a stretch of plain with what surrounds it.
type job struct {
	buf        []byte
	base       int64 // offset in plain of buf[0]
	begin, end int   // the stretch in buf
	size       int   // of what is in buf
	last       bool
	from       *searchState // where to begin, if not afresh at begin

	tokens []token
	given  int           // of tokens: those before trail, or all if last
	head   []searchState // at the first positions of the stretch
	trail  []searchState // at the positions behind it
	tail   int64         // where the end of all data was noticed, or -1
	left   bool          // the last token is a left-over byte
	done   chan struct{}
}

// searchState is the state of lazy matching before it searches a position.
type searchState struct {
	at      int64 // offset in plain of the position
	tokens  int   // of the job that were given out before
	waiting bool
	length  int
	match   int64 // offset in plain of the match at the position before
}

// same reports whether everything that follows two states is the same.
func (s *searchState) same(o *searchState) bool {
	return s.at == o.at && s.waiting == o.waiting && s.length == o.length && (s.length < minMatch || s.match == o.match)
}

// search does the work of a job.
func (j *job) search(f *finder, m model) {
	clear(j.buf[j.size : j.size+finderPad])
	*f = finder{
		m: m, buf: j.buf, head: f.head, prev: f.prev, base: j.base, pos: j.begin, end: j.size,
		eof: j.last, curLen: minMatch - 1, piece: noPiece, fixAt: never, tailStart: -1,
	}
	if f.head == nil {
		f.head = make([]int32, 1<<m.hashBits)
		f.prev = new([windowSize]uint16)
	}
	clear(f.head)
	if s := j.from; s != nil {
		f.pos = int(s.at - j.base)
		f.waiting, f.curLen, f.curPos = s.waiting, s.length, int(s.match-j.base)
	}
	for i := range f.pos {
		f.insert(i)
	}
	n := 0
	// None of these can fail: there is nothing to read and nothing to ask.
	if j.from == nil && j.begin > 0 {
		j.head, n = j.trace(f, j.head[:0], n, min(j.begin+jobTrace, j.end-minLookahead))
	}
	if j.last {
		k, _ := f.run(j.tokens[n:])
		n += k
		j.given, j.tail, j.left = n, f.tailStart, f.trailing
		return
	}
	k, _ := f.lazy(j.tokens[n:], j.end, j.size)
	n += k
	j.given = n
	j.trail, _ = j.trace(f, j.trail[:0], n, j.end+jobTrace)
}

// trace searches the positions before until, noting the state at each.
func (j *job) trace(f *finder, states []searchState, n, until int) ([]searchState, int) {
	for f.pos < until {
		states = append(states, searchState{f.base + int64(f.pos), n, f.waiting, f.curLen, f.base + int64(f.curPos)})
		k, _ := f.lazy(j.tokens[n:], f.pos+1, j.size)
		n += k
	}
	return states, n
}

// meets finds the first position behind j at which next is in the same state.
// It returns how many tokens of j are good, and how many of next are not; -1 if
// there is no such position.
func (j *job) meets(next *job) (good, skip int) {
	i := 0
	for k := range j.trail {
		s := &j.trail[k]
		for i < len(next.head) && next.head[i].at < s.at {
			i++
		}
		if i < len(next.head) && next.head[i].same(s) {
			return s.tokens, next.head[i].tokens
		}
	}
	return -1, 0
}
