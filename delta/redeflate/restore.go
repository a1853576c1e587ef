package redeflate

import (
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"
	"slices"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// Restorer is Restore with buffers that are used again; its zero value is
// ready. It must not be used by two goroutines at once.
type Restorer struct {
	// Workers is how many goroutines may search for matches at once. More than
	// one makes long streams of levels 4 to 9 faster, and costs memory: see
	// Memory. 0 is 1.
	Workers int
	// Old is the file that Options.Old was, or nil.
	Old io.ReaderAt
	// Moves are what Options.Moves were, and Priors what Options.Priors were.
	Moves  []Move
	Priors *Priors

	learned *oldStream // of Old: by Learn for the next Restore, or during one
	carried *Priors    // of opFollows
	enc     encoder
	space   relz.Workspace
	packed  limitedBuffer
}

// A learner says what of an old file is needed.
type learner struct {
	old   *oldStream
	moves []Move
}

// Learn is [Contents] of r.Old, a file of size bytes, and prepares r to Restore this recipe
// next: the old file is decompressed once for both.
func (r *Restorer) Learn(w io.Writer, size int64, recipe []byte) ([]Segment, error) {
	old, err := oldOf(recipe)
	if err != nil {
		return nil, err
	}
	e := newExpander(w, r.Old, size)
	if old != nil {
		e.learn = &learner{old, r.Moves}
	}
	if err := e.run(); err != nil {
		return nil, err
	}
	r.learned = nil
	if old != nil && old.history != nil {
		r.learned = old
	}
	return e.contents, nil
}

// SetMoves sets r.Moves when the old file was learned from before they were known; r.Moves must
// not have been nil then.
func (r *Restorer) SetMoves(moves []Move) {
	r.Moves = moves
	if r.learned != nil {
		r.learned.history.SetMoves(moves)
	}
}

// NeedsOld reports whether a recipe refers to an old file.
func NeedsOld(recipe []byte) bool {
	old, err := oldOf(recipe)
	return err == nil && old != nil
}

// oldOf returns the stream of the old file to which a recipe refers first; nil if to none.
func oldOf(recipe []byte) (*oldStream, error) {
	in := recipeReader{b: recipe}
	if err := in.open(); err != nil {
		return nil, err
	}
	for {
		o, err := in.operation()
		if err == io.EOF {
			return nil, nil
		}
		if err != nil || o.old != nil {
			return o.old, err
		}
	}
}

// Restore is the function of the same name.
func (r *Restorer) Restore(w io.Writer, plain io.Reader, recipe []byte) error {
	in := recipeReader{b: recipe}
	if err := in.open(); err != nil {
		return err
	}
	defer func() { r.learned, r.carried = nil, nil }()
	for {
		o, err := in.operation()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.run(w, plain, o); err != nil {
			if err == errBlock || err == relz.ErrRecipe {
				return in.fail("what it says does not fit the plain")
			}
			return err
		}
	}
}

// run carries out one operation.
func (r *Restorer) run(w io.Writer, plain io.Reader, o operation) error {
	switch o.op & opMask {
	case opLiteral:
		_, err := w.Write(o.data)
		return err
	case opCopy:
		if o.length == restOfAll {
			_, err := io.Copy(w, plain)
			return err
		}
		_, err := io.CopyN(w, plain, o.length)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	switch o.op & opMask {
	case opLzma, opZstd:
		return r.decided(w, plain, o)
	case opXz:
		return r.xz(w, plain, o)
	}
	return r.deflate(w, plain, o)
}

// decided writes a stream that is made by decisions.
func (r *Restorer) decided(w io.Writer, plain io.Reader, o operation) error {
	if o.length == restOfAll {
		return relz.ErrRecipe
	}
	history, err := r.history(o)
	if err != nil {
		return err
	}
	if o.op&opMask == opZstd {
		return r.space.RebuildZstd(w, plain, o.length, o.fixes, history)
	}
	return r.space.Rebuild(w, plain, o.length, o.fixes, history, nil)
}

// history returns what is to be known of the old file for an operation, nil if that is nothing.
func (r *Restorer) history(o operation) (*relz.History, error) {
	if o.old == nil {
		return nil, nil
	}
	if r.Old == nil {
		return nil, ErrOld
	}
	if l := r.learned; l == nil || l.at != o.old.at || l.op != o.old.op || l.stream != o.old.stream {
		r.learned = nil // not beside the next
		if err := o.old.learn(nil, r.Old, r.Moves); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrOld, err)
		}
		r.learned = o.old
	}
	switch kind := o.op & opMask; {
	case o.old.follows:
		if r.carried == nil || r.carried.Zstd() != (kind == opZstd) {
			r.carried = relz.NewPriors(kind == opZstd)
		}
		r.learned.history.Train(r.carried)
	case kind != opLzma:
		r.learned.history.SetPriors(r.Priors)
	}
	return r.learned.history, nil
}

func (r *Restorer) deflate(w io.Writer, plain io.Reader, o operation) error {
	var sum func([]byte)
	crc, length := uint32(0), uint32(0)
	adler := adler32.New()
	switch {
	case o.op&opGzip != 0:
		sum = func(p []byte) {
			crc = crc32.Update(crc, crc32.IEEETable, p)
			length += uint32(len(p))
		}
	case o.op&opZlib != 0:
		sum = func(p []byte) { adler.Write(p) }
	}
	var tokens fixer
	var blocks blockFixer
	if o.fixes != nil {
		f, err := newReplay(o.fixes, o.at)
		if err != nil {
			return err
		}
		tokens = f
		if f.hasBlocks() {
			blocks = f
		}
	}
	r.enc.workers = r.Workers
	if err := r.enc.encode(w, o.model, plain, o.length, sum, tokens, blocks); err != nil {
		return err
	}
	switch {
	case o.op&opGzip != 0:
		trailer := binary.LittleEndian.AppendUint32(nil, crc)
		_, err := w.Write(binary.LittleEndian.AppendUint32(trailer, length))
		return err
	case o.op&opZlib != 0:
		_, err := w.Write(adler.Sum(nil))
		return err
	}
	return nil
}

// fixedMemory is for the encoder's tables and io.Copy's buffer.
const fixedMemory = 128 << 10

// Memory returns an upper bound of what a Restore of recipe allocates, by a
// Restorer with this number of workers.
func Memory(recipe []byte, workers int) (int64, error) {
	in := recipeReader{b: recipe}
	if err := in.open(); err != nil {
		return 0, err
	}
	const (
		fixed   = fixedMemory
		buffers = finderBuffer + finderPad + 2*windowSize + 4<<16 + bitBufferSize
	)
	need, follows := int64(fixed), int64(0)
	for {
		o, err := in.operation()
		if err == io.EOF {
			return need + follows, nil
		}
		if err != nil {
			return 0, err
		}
		if kind := o.op & opMask; decided(kind) {
			var old relz.Stream
			if o.old != nil {
				if old = o.old.stream; o.old.follows {
					follows = relz.PriorsMemory
				}
			}
			var n int64
			if kind == opZstd {
				n, err = relz.MemoryZstd(o.fixes, old)
			} else {
				n, err = relz.Memory(o.fixes, o.length, old)
			}
			if err != nil {
				return 0, in.fail(err.Error())
			}
			if kind == opXz {
				_, blocks, err := relz.Describes(o.fixes)
				if err != nil {
					return 0, in.fail(err.Error())
				}
				n += int64(2 * mostPacked(slices.Max(blocks))) // the buffer, while it grows
			}
			need = max(need, fixed+n)
		}
		if o.op&opMask != opDeflate {
			continue
		}
		if workers > 1 && o.model.lazy && o.length > 2*jobSize {
			jobs := int64(workers + 3)
			need = max(need, fixed+buffers+3<<17+jobs*(jobBuffer+4*(jobSize+jobLeast)+2*40*jobTrace)+int64(workers)*(4<<16+2*windowSize))
		}
		tokens := int64(1 << 15)
		if o.fixes != nil {
			f, err := newReplay(o.fixes, o.at)
			if err != nil {
				return 0, err
			}
			tokens = max(tokens, f.largest())
		}
		// While the list of tokens grows, the old one is still there.
		need = max(need, fixed+buffers+3*4*tokens)
	}
}
