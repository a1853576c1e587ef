package delta

import (
	"bytes"
	"context"

	"github.com/btrovl/btrovl/delta/exe"
)

// The content of a linked program or library (methodProgram) is made in three steps:
// its head, compared with that of the source; then the source is brought up to date along the
// record's moves (package exe); then the rest, in pieces:
//
//	a move            compared with its old bytes; expected position at its start: theirs
//	between moves     what no old text resembles
//
// Operations are those of objects.
type programBuilder struct {
	src, dst []byte
	head     int64
	moves    []exe.Move
	pieces   []piecePair
	pieceCursor
	ready bool // the source is brought up to date
}

const maxMoves = 1 << 20

func newProgramBuilder(src, dst []byte, head int64, moves []exe.Move) (*programBuilder, error) {
	size := int64(len(dst))
	if head <= 0 || head > size || head > int64(len(src)) {
		return nil, damaged("a program with a head of %d bytes", head)
	}
	pieces, err := programPieces(head, size, int64(len(src)), moves)
	if err != nil {
		return nil, err
	}
	b := &programBuilder{src: src, dst: dst, head: head, moves: moves}
	b.pieces = append([]piecePair{{span{0, head}, span{0, head}}}, pieces...)
	return b, nil
}

// programPieces cuts what is behind the head of a program of size bytes into pieces.
func programPieces(head, size, source int64, moves []exe.Move) (pieces []piecePair, err error) {
	at := head
	for _, m := range moves {
		if m.Old < 0 || m.Length <= 0 || m.Length > source-m.Old || m.New < 0 || m.Length > size-m.New {
			return nil, damaged("a move of %d bytes from %d to %d", m.Length, m.Old, m.New)
		}
		end := m.New + m.Length
		if end <= head {
			continue
		}
		from := max(m.New, head)
		if from < at {
			return nil, damaged("moves that overlap")
		}
		if from > at {
			pieces = append(pieces, piecePair{span{at, from}, span{}})
		}
		old := m.Old + from - m.New
		pieces = append(pieces, piecePair{span{from, end}, span{old, old + end - from}})
		at = end
	}
	if at < size {
		pieces = append(pieces, piecePair{span{at, size}, span{}})
	}
	return pieces, nil
}

// do runs one action, which must stay within a piece.
func (b *programBuilder) do(c action) error {
	if c.ends() {
		return nil
	}
	if len(b.pieces) == 0 {
		return damaged("more operations than a program has pieces")
	}
	at := b.at
	if err := b.take(&c, b.pieces[0].new.to, int64(len(b.src))); err != nil {
		return err
	}
	c.write(b.dst[at:b.at], b.src)
	if b.at == b.pieces[0].new.to {
		if b.pieces = b.pieces[1:]; len(b.pieces) > 0 && b.pieces[0].old.to > 0 {
			b.pos = b.pieces[0].old.from
		}
		if !b.ready {
			b.ready = true
			exe.Rewrite(b.src, b.dst[:b.head], append([]exe.Move(nil), b.moves...))
		}
	}
	return nil
}

func (b *programBuilder) content() ([]byte, bool) { return b.dst, len(b.pieces) == 0 }

// diffProgram finds the actions of a program; ok is false for what is none.
func diffProgram(ctx context.Context, new, old []byte) (actions []action, head int64, moves []exe.Move, ok bool, err error) {
	head = int64(exe.HeadSize(new))
	if head == 0 || head > int64(len(old)) || max(len(new), len(old)) > maxProgram {
		return nil, 0, nil, false, nil
	}
	moves, err = exe.Match(ctx, old, new)
	if err != nil {
		return nil, 0, nil, false, err
	}
	if len(moves) == 0 || len(moves) > maxMoves {
		return nil, 0, nil, false, nil
	}
	p, err := newProgramBuilder(bytes.Clone(old), make([]byte, len(new)), head, moves)
	if err != nil {
		return nil, 0, nil, false, nil
	}
	for len(p.pieces) > 0 {
		piece := p.pieces[0]
		text := new[piece.new.from:piece.new.to]
		for _, a := range pieceActions(text, p.src[piece.old.from:piece.old.to]) {
			actions = append(actions, a)
			if err := p.do(a); err != nil {
				return nil, 0, nil, false, err
			}
		}
	}
	if !bytes.Equal(p.dst, new) {
		return nil, 0, nil, false, nil
	}
	return append(actions, action{op: op{kind: opRaw}}), head, moves, true, nil
}

// pieceActions compares a piece with old bytes of the same length, or none, in place.
func pieceActions(text, old []byte) []action {
	if len(old) == 0 {
		return rawInserts([]action{{op: op{kind: opInsert, length: int64(len(text))}, data: text}})
	}
	var actions []action
	add := func(from, to int) {
		if from == to {
			return
		}
		d := make([]byte, to-from)
		for i := range d {
			d[i] = text[from+i] - old[from+i]
		}
		actions = append(actions, action{op: op{kind: opAdd, length: int64(to - from)}, data: d})
	}
	const minCopy = 24
	from := 0
	for i := 0; i < len(text); {
		n := commonPrefix(text[i:], old[i:])
		switch {
		case i+n == len(text) && n > 0:
			add(from, i)
			actions = append(actions, action{op: op{kind: opCopy}}) // to the end
			from = len(text)
		case n >= minCopy:
			add(from, i)
			actions = append(actions, action{op: op{kind: opCopy, length: int64(n)}})
			from = i + n
		}
		i += n + 1
	}
	add(from, len(text))
	return actions
}
