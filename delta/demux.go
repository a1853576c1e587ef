package delta

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/btrovl/btrovl/delta/bundle"
)

// damaged says that a payload, although its hashes are right, makes no sense.
func damaged(format string, args ...any) error {
	return &bundle.DamageError{Reason: "the payload holds " + fmt.Sprintf(format, args...)}
}

// A demux takes the frames of a section apart and decompresses its streams, each in a
// goroutine that works ahead a little, so that decoding uses all processors although the
// consumer takes from the streams by turns.
//
// One goroutine, the pump, reads frames into the streams' queues: while little is
// queued, or when the consumer waits for a stream whose decoder has nothing to
// decode. So the reading never stands still as long as somebody could work, and
// never runs far ahead. The frames' order makes that enough; a payload whose order
// does not is refused (maxQueued).
//
// Lock order: there is one lock, mu.
type demux struct {
	src io.Reader

	mu      sync.Mutex
	cond    *sync.Cond
	streams [numStreams]*substream
	queued  int   // bytes in all queues
	starved bool  // the consumer waits for a stream whose decoder waits for input
	ended   bool  // the end frame was read
	err     error // of the pump: for everybody
	stop    bool  // close was called
	wg      sync.WaitGroup
}

const (
	queueAhead = 512 << 10
	maxQueued  = 24 << 20
	blockSize  = 64 << 10 // decoders hand over blocks of this size
	blockAhead = 4        // and work this many ahead
)

// A substream is the consumer's end of one stream; it is not for several goroutines.
type substream struct {
	d   *demux
	buf []byte // rest of the current block; the consumer's own
	cur []byte // the current block, to be returned

	// Guarded by d.mu.
	queue [][]byte // compressed, not yet decoded
	out   [][]byte // decoded blocks
	free  [][]byte
	idle  bool  // the decoder waits for input
	done  bool  // the decoder has ended
	err   error // why; io.EOF is the good end
}

func newDemux(src io.Reader, h *sectionHead) *demux {
	d := &demux{src: src}
	d.cond = sync.NewCond(&d.mu)
	for i := range d.streams {
		d.streams[i] = &substream{d: d}
	}
	d.wg.Add(1 + numStreams)
	go d.pump()
	for i, s := range d.streams {
		go s.decode(h.codecs[i], h.dicts[i])
	}
	return d
}

// close stops all goroutines and waits for them. The pump may be within a
// read of the source: who closes early must make that return.
func (d *demux) close() {
	d.mu.Lock()
	d.stop = true
	d.cond.Broadcast()
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *demux) pump() {
	defer d.wg.Done()
	for {
		d.mu.Lock()
		for !d.stop && d.queued >= queueAhead && !d.starved {
			d.cond.Wait()
		}
		if d.stop || d.queued > maxQueued {
			if !d.stop {
				d.err = damaged("frames in an order that needs too much memory")
			}
			d.cond.Broadcast()
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()

		i, frame, err := d.readFrame()

		d.mu.Lock()
		d.err = err
		d.ended = err == nil && frame == nil
		if frame != nil {
			s := d.streams[i]
			s.queue = append(s.queue, frame)
			s.idle = false
			d.queued += len(frame)
			d.starved = false
		}
		quit := d.err != nil || d.ended
		d.cond.Broadcast()
		d.mu.Unlock()
		if quit {
			return
		}
	}
}

// readFrame returns a nil frame at the end of the section.
func (d *demux) readFrame() (int, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(d.src, head[:]); err != nil {
		return 0, nil, short(err)
	}
	v := binary.LittleEndian.Uint32(head[:])
	if v == endFrame {
		return 0, nil, nil
	}
	i, n := int(v&0xff), int(v>>8)
	if i >= numStreams || n == 0 {
		return 0, nil, damaged("a frame of stream %d with %d bytes", i, n)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(d.src, frame); err != nil {
		return 0, nil, short(err)
	}
	return i, frame, nil
}

// short turns an end of the payload in the wrong place into damage.
func short(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return damaged("less than it should")
	}
	return err
}

// decode runs the decoder of a stream.
func (s *substream) decode(c codec, dict uint32) {
	defer s.d.wg.Done()
	err := s.run(c, dict)
	s.d.mu.Lock()
	s.done, s.err = true, err
	s.d.cond.Broadcast()
	s.d.mu.Unlock()
}

func (s *substream) run(c codec, dict uint32) error {
	in := &queueReader{s: s}
	if !in.fill() { // an empty stream has no frame, and its decoder would not even start
		return in.err
	}
	r, err := c.decoder(in, dict)
	if err != nil {
		return err
	}
	for {
		s.d.mu.Lock()
		for !s.d.stop && len(s.out) >= blockAhead {
			s.d.cond.Wait()
		}
		if s.d.stop {
			s.d.mu.Unlock()
			return io.ErrClosedPipe
		}
		var block []byte
		if n := len(s.free); n > 0 {
			block, s.free = s.free[n-1], s.free[:n-1]
		}
		s.d.mu.Unlock()
		if block == nil {
			block = make([]byte, blockSize)
		}
		n, err := io.ReadAtLeast(r, block[:blockSize], 1)
		if n > 0 {
			s.d.mu.Lock()
			s.out = append(s.out, block[:n])
			s.d.cond.Broadcast()
			s.d.mu.Unlock()
		}
		if err != nil {
			return err
		}
	}
}

// next fetches the next block for the consumer.
func (s *substream) next() error {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.cur != nil {
		s.free = append(s.free, s.cur[:cap(s.cur)])
		s.cur = nil
	}
	for len(s.out) == 0 {
		switch {
		case d.err != nil:
			return d.err
		case s.done:
			if s.err != io.EOF {
				return damaged("a stream that cannot be decompressed (%v)", s.err)
			}
			return io.EOF
		case s.idle && !d.ended:
			d.starved = true
		}
		d.cond.Broadcast()
		d.cond.Wait()
	}
	s.cur = s.out[0]
	s.buf = s.cur
	s.out = append(s.out[:0], s.out[1:]...)
	d.cond.Broadcast()
	return nil
}

func (s *substream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(s.buf) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.buf)
	s.buf = s.buf[n:]
	return n, nil
}

func (s *substream) ReadByte() (byte, error) {
	if len(s.buf) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	b := s.buf[0]
	s.buf = s.buf[1:]
	return b, nil
}

// queueReader is the decoder's end of a stream.
type queueReader struct {
	s   *substream
	buf []byte
	err error
}

// fill takes the next frame off the queue; false at the end.
func (q *queueReader) fill() bool {
	s, d := q.s, q.s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(s.queue) == 0 {
		switch {
		case d.stop:
			q.err = io.ErrClosedPipe
			return false
		case d.err != nil:
			q.err = d.err
			return false
		case d.ended:
			q.err = io.EOF
			return false
		}
		if !s.idle {
			s.idle = true
			d.cond.Broadcast()
		}
		d.cond.Wait()
	}
	q.buf = s.queue[0]
	s.queue[0] = nil
	s.queue = s.queue[1:]
	d.queued -= len(q.buf)
	d.cond.Broadcast()
	return true
}

func (q *queueReader) Read(p []byte) (int, error) {
	if len(q.buf) == 0 && (q.err != nil || !q.fill()) {
		return 0, q.err
	}
	n := copy(p, q.buf)
	q.buf = q.buf[n:]
	return n, nil
}

func (q *queueReader) ReadByte() (byte, error) {
	if len(q.buf) == 0 && (q.err != nil || !q.fill()) {
		return 0, q.err
	}
	b := q.buf[0]
	q.buf = q.buf[1:]
	return b, nil
}
