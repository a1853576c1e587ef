package relz

import "io"

// A window holds the bytes of a stream from some way back up to some way ahead.
//
//	     |<-- keep: the dictionary -->|<------ room ------>|pad|
//	buf  |............................|.............|......|...|
//	  start                                        end
type window struct {
	buf   []byte
	keep  int
	start int64 // offset in the stream of buf[0]
	end   int64 // offset behind the last byte that is there
	floor int64 // offset before which no match may look, of a guide's window
}

const (
	windowRoom = maxChunk + 256<<10
	// windowPad zeros follow the last byte, so that comparing and hashing need
	// no care at the end.
	windowPad = maxLength + 64
)

// newWindow makes a window for a stream of size bytes with a dictionary of
// keep. It is small if the stream is.
func newWindow(keep int, size int64) *window {
	return &window{buf: make([]byte, windowSize(keep, size)), keep: keep}
}

func windowSize(keep int, size int64) int {
	return int(min(int64(keep)+windowRoom, size)) + windowPad
}

// restart empties it for another stream.
func (w *window) restart(keep int) {
	*w = window{buf: w.buf, keep: keep}
	clear(w.buf)
}

// at returns what is there from an offset on, with the padding.
func (w *window) at(pos int64) []byte { return w.buf[pos-w.start:] }

// room reports whether there is room for n bytes behind end.
func (w *window) room(n int) bool { return int(w.end-w.start)+n+windowPad <= len(w.buf) }

// slide makes room for n bytes behind end, n being at most windowRoom, and
// forgets what is more than keep before pos.
func (w *window) slide(pos int64, n int) bool {
	if w.room(n) {
		return true
	}
	drop := pos - int64(w.keep) - w.start
	if drop <= 0 {
		return false
	}
	copy(w.buf, w.buf[drop:w.end-w.start])
	w.start += drop
	return w.room(n)
}

// read appends n bytes from r; slide has made room.
func (w *window) read(r io.Reader, n int) error {
	_, err := io.ReadFull(r, w.buf[w.end-w.start:][:n])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	w.end += int64(n)
	clear(w.buf[w.end-w.start:][:windowPad])
	return err
}
