package redeflate

import "sync"

// Searching for matches takes nine tenths of the time, and in levels 4 to 9 it
// can be done in several places at once. There, every position is hashed, so
// what is found at a position depends on the 32 KiB before it and on the match
// at the position just before, and on nothing else. A job therefore searches a
// stretch of plain without knowing what was decided before it. The job before
// runs on into the stretch; as soon as both are in the same state at the same
// position, all that follows is the same, and the tokens can be joined:
//
//	job k      ….literal match….|.match literal match literal
//	job k+1            start -->|literal literal match literal match…
//	                                              ^ both have just taken a match
//
// They usually agree after some ten tokens. If they do not within
// jobTrace bytes, the second job runs again from the state of the first.
type parallel struct {
	m     model
	in    *finder // reads plain and sums it up
	wait  sync.WaitGroup
	todo  chan *job
	queue []*job // started, in the order of plain
	spare []*job
	most  int // jobs in the queue

	next  int64  // offset in plain of the next job
	ahead []byte // plain already read, from windowSize before next if there is so much
	have  int    // bytes of ahead

	cur, prev    *job    // the jobs whose tokens are given out, and the one before
	tokens, then []token // what is left of them
	joined       []byte  // for held
}

const (
	jobSize  = 256 << 10
	jobTrace = 4 << 10 // bytes in which two jobs must come to agree
	jobExtra = jobTrace + maxMatch + minLookahead
	// jobLeast: a last stretch shorter than this is left to the job before.
	jobLeast  = 2 * jobExtra
	jobBuffer = windowSize + jobSize + jobLeast
)

// reset prepares to read what in was reset for, and starts the workers. stop
// must be called afterwards.
func (p *parallel) reset(in *finder, workers int) {
	*p = parallel{
		m: in.m, in: in, most: workers + 1, todo: make(chan *job, workers+1),
		spare: p.spare, ahead: p.ahead, joined: p.joined,
	}
	if p.ahead == nil {
		p.ahead = make([]byte, windowSize+jobLeast)
	}
	for range workers {
		p.wait.Add(1)
		go func() {
			defer p.wait.Done()
			var f finder
			for j := range p.todo {
				j.search(&f, p.m)
				j.done <- struct{}{}
			}
		}()
	}
}

// stop ends the workers and waits for them.
func (p *parallel) stop() {
	close(p.todo)
	p.wait.Wait()
	for _, j := range append(p.queue, p.cur, p.prev) {
		p.recycle(j)
	}
	p.queue, p.cur, p.prev, p.in = nil, nil, nil, nil
}

func (p *parallel) recycle(j *job) {
	if j != nil {
		p.spare = append(p.spare, j)
	}
}

// feed starts jobs until the queue is full or all plain is in it.
func (p *parallel) feed() error {
	for len(p.queue) < p.most && !p.in.eof {
		var j *job
		if n := len(p.spare); n > 0 {
			j, p.spare = p.spare[n-1], p.spare[:n-1]
		} else {
			j = &job{buf: make([]byte, jobBuffer+finderPad), tokens: make([]token, jobSize+jobLeast)}
		}
		if err := p.load(j); err != nil {
			p.recycle(j)
			return err
		}
		p.queue = append(p.queue, j)
		p.todo <- j
	}
	return nil
}

// load gives a job the next stretch of plain.
func (p *parallel) load(j *job) error {
	history := int(min(p.next, windowSize))
	*j = job{
		buf: j.buf, tokens: j.tokens, head: j.head[:0], trail: j.trail[:0],
		base: p.next - int64(history), begin: history, done: make(chan struct{}, 1),
	}
	size := copy(j.buf, p.ahead[:p.have])
	for most := history + jobSize + jobLeast; size < most && !p.in.eof; {
		n, err := p.in.read(j.buf[size:most])
		size += n
		if err != nil {
			return err
		}
	}
	j.last = p.in.eof
	j.end, j.size = size, size
	if !j.last {
		j.end = history + jobSize
		j.size = j.end + jobExtra
		p.next += jobSize
		p.have = copy(p.ahead, j.buf[int(p.next-j.base)-windowSize:size])
	}
	return nil
}

func (p *parallel) run(out []token) (n int, err error) {
	for n < len(out) {
		if len(p.tokens) == 0 {
			if more, err := p.advance(); err != nil || !more {
				return n, err
			}
			continue
		}
		k := copy(out[n:], p.tokens)
		p.tokens = p.tokens[k:]
		n += k
	}
	return n, nil
}

// advance makes more tokens available, if there are more.
func (p *parallel) advance() (bool, error) {
	if len(p.then) > 0 {
		p.tokens, p.then = p.then, nil
		return true, nil
	}
	if p.cur != nil && p.cur.last {
		return false, nil
	}
	if err := p.feed(); err != nil {
		return false, err
	}
	j := p.queue[0]
	p.queue = p.queue[:copy(p.queue, p.queue[1:])]
	<-j.done
	p.recycle(p.prev)
	p.prev, p.cur = p.cur, j
	skip := 0
	if p.prev != nil {
		end := 0
		end, skip = p.prev.meets(j)
		if end < 0 {
			j.from = &p.prev.trail[len(p.prev.trail)-1]
			end, skip = j.from.tokens, 0
			var f finder
			j.search(&f, p.m)
		}
		p.tokens = p.prev.tokens[p.prev.given:end]
	}
	p.then = j.tokens[skip:j.given]
	return true, nil
}

func (p *parallel) ended() (ended, leftOver bool, err error) {
	for len(p.tokens) == 0 {
		if more, err := p.advance(); err != nil || !more {
			return err == nil, err == nil && p.cur.left, err
		}
	}
	return false, false, nil
}

func (p *parallel) held(from, n, at int64) []byte {
	if p.cur == nil || n > storedMax {
		return nil
	}
	tail := never
	if p.cur.last && p.cur.tail >= 0 {
		tail = uint64(p.cur.tail)
	}
	if at >= 0 && from < p.m.windowBase(0, at, tail) {
		return nil
	}
	if i := from - p.cur.base; i >= 0 {
		if i+n > int64(p.cur.size) {
			return nil
		}
		return p.cur.buf[i : i+n]
	}
	if p.prev == nil || from < p.prev.base || from+n > p.cur.base+int64(p.cur.size) {
		return nil
	}
	if p.joined == nil {
		p.joined = make([]byte, storedMax)
	}
	before := min(p.cur.base-from, n)
	i := from - p.prev.base
	copy(p.joined, p.prev.buf[i:i+before])
	copy(p.joined[before:n], p.cur.buf)
	return p.joined[:n]
}
