package redeflate

import (
	"errors"
	"io"
)

// An encoder turns tokens into a stream. Its buffers are used again.
type encoder struct {
	f     finder
	p     parallel
	b     blockWriter
	model model

	workers int // finders to use where that is possible
	src     source
	start   int64 // offset in plain of the current block
}

// A source gives the tokens of a plain: one finder, or several side by side.
type source interface {
	// run fills out; it returns fewer tokens only at the end of the piece or
	// of the data.
	run(out []token) (int, error)
	// ended reports whether the end is reached, and whether the last token was
	// a byte that had waited for a match until then. It may have to read.
	ended() (ended, leftOver bool, err error)
	// held returns n bytes of plain from an offset, or nil if the program,
	// being about to search at offset at, has no longer all of them in its
	// window. With at < 0 it is what this source still has that counts.
	held(from, n, at int64) []byte
}

// A blockFixer replaces decisions about blocks that the model gets wrong.
type blockFixer interface {
	// tokens returns how many tokens block i has, or -1 if the model knows.
	tokens(i int) (int, error)
	// ended is told after how many tokens the model would have ended block i,
	// and whether because it was full; atEnd says that no plain is left. It
	// returns whether this is the last block.
	ended(i, guess int, full, atEnd bool) (last bool, err error)
	// write may write the block in its own way; plan is the model's choice.
	// Else it returns false.
	write(i int, b *blockWriter, plan blockType, data func() []byte, last bool) (bool, error)
}

var errBlock = errors.New("block does not fit its description")

const (
	guessStep = 4096
	// maxBlockTokens bounds blocks of encoders that keep longer ones than ours.
	maxBlockTokens = 1 << 20
)

// encode writes the deflate stream that m makes of the next left bytes of plain
// (-1: of all), as corrected by tokens and blocks, which may be nil. sum sees plain.
func (e *encoder) encode(w io.Writer, m model, plain io.Reader, left int64, sum func([]byte), tokens fixer, blocks blockFixer) error {
	e.model, e.start = m, 0
	e.f.reset(m, plain, left, sum, tokens)
	e.src = &e.f
	if e.workers > 1 && left > 2*jobSize && m.lazy && m.piece == 0 && tokens == nil && blocks == nil {
		e.p.reset(&e.f, e.workers)
		defer e.p.stop()
		e.src = &e.p
	}
	e.b.out.reset(w)
	for {
		if err := e.blocks(blocks); err != nil {
			return err
		}
		if m.piece == 0 {
			break
		}
		more, err := e.f.more()
		if err != nil {
			return err
		}
		if err := e.endPiece(!more); err != nil {
			return err
		}
		if !more {
			break
		}
		e.f.nextPiece()
	}
	return e.b.out.flush()
}

// blocks writes all blocks of the data, or of a piece all but what is left over.
func (e *encoder) blocks(fix blockFixer) error {
	for i := 0; ; i++ {
		want, guess := -1, -1
		if fix != nil {
			var err error
			if want, err = fix.tokens(i); err != nil {
				return err
			}
		}
		e.b.start()
		full := false // the model has ended the block because of its size
		for want < 0 && guess < 0 || len(e.b.tokens) < want {
			n := len(e.b.tokens)
			room := guessStep - n%guessStep
			if n < e.model.tokens {
				room = min(room, e.model.tokens-n)
			}
			if want >= 0 {
				room = min(room, want-n)
			}
			k, err := e.extend(room)
			if err != nil {
				return err
			}
			_, leftOver, err := e.src.ended()
			if err != nil {
				return err
			}
			if guess < 0 && k == room && !leftOver && e.full() {
				guess, full = len(e.b.tokens), true
			}
			if k < room || leftOver {
				break
			}
		}
		n := len(e.b.tokens)
		atEnd, _, err := e.src.ended()
		if err != nil {
			return err
		}
		if want >= 0 && n != want {
			return errBlock
		}
		if guess < 0 && atEnd {
			guess = n
		}
		if e.model.piece > 0 && atEnd && !full {
			return nil // endPiece knows whether it is the last
		}
		last := atEnd && !full
		if fix != nil {
			if last, err = fix.ended(i, guess, full, atEnd); err != nil {
				return err
			}
		}
		if err := e.write(i, fix, last, full && n == guess); err != nil {
			return err
		}
		if last {
			return nil
		}
	}
}

// extend adds up to room tokens to the block.
func (e *encoder) extend(room int) (int, error) {
	n := len(e.b.tokens)
	if n+room > maxBlockTokens {
		return 0, errBlock
	}
	if cap(e.b.tokens) < n+room {
		grown := make([]token, n, min(max(2*n, 1<<15), maxBlockTokens))
		copy(grown, e.b.tokens)
		e.b.tokens = grown
	}
	k, err := e.src.run(e.b.tokens[n : n+room])
	e.b.tokens = e.b.tokens[:n+k]
	if err != nil {
		return k, err
	}
	e.b.count(n)
	return k, nil
}

// full reports whether the model ends the block after its last token.
func (e *encoder) full() bool {
	n := len(e.b.tokens)
	if n == 0 {
		return false
	}
	if n == e.model.tokens {
		return true
	}
	if !e.model.guess || n%guessStep != 0 {
		return false
	}
	return e.b.guessEnd(e.searched() - e.start)
}

// searched is the offset in plain that the search was at when it gave out the
// last token: the token's start, or the position after it in lazy matching.
func (e *encoder) searched() int64 {
	at := e.start + e.b.bytes - int64(e.b.tokens[len(e.b.tokens)-1].length())
	if e.model.lazy {
		at++
	}
	return at
}

// write writes block i. byFull says that the model ended it because it was full.
func (e *encoder) write(i int, fix blockFixer, last, byFull bool) error {
	start, bytes := e.start, e.b.bytes
	at := start + bytes
	if byFull {
		at = e.searched()
	}
	e.start += bytes
	plan := e.b.plan(func() bool { return e.src.held(start, bytes, at) != nil })
	data := func() []byte { return e.src.held(start, bytes, -1) }
	if fix != nil {
		if done, err := fix.write(i, &e.b, plan, data, last); err != nil || done {
			return err
		}
	}
	return e.b.writeAs(plan, data, last)
}

// writeAs writes the block with the codes that plan has built.
func (b *blockWriter) writeAs(t blockType, data func() []byte, last bool) error {
	switch t {
	case storedBlock:
		d := data()
		if d == nil {
			return errBlock
		}
		b.store(d, last)
	case fixedBlock:
		b.header(t, last)
		b.body(fixedLit[:], fixedDist[:])
	default:
		b.header(t, last)
		b.trees()
		b.body(b.lit[:], b.dist[:])
	}
	return b.out.err
}

// endPiece writes what is left of a piece. pigz ends all but the last one on a
// byte, with empty blocks of 10 bits if they get there and else an empty stored
// block; pieces that stand alone are marked by two of the latter.
func (e *encoder) endPiece(last bool) error {
	if last || len(e.b.tokens) > 0 {
		if err := e.write(0, nil, last, false); err != nil {
			return err
		}
		e.b.start()
	}
	if last {
		return nil
	}
	out := &e.b.out
	if out.n%2 == 1 || !e.model.linked {
		e.b.store(nil, false)
	}
	if !e.model.linked {
		e.b.store(nil, false)
		return out.err
	}
	for out.n%8 != 0 {
		out.write(uint32(fixedBlock)<<1, 3+7)
	}
	return out.err
}
