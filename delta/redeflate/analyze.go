package redeflate

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// A hint is what a container says about the encoder; 0 where it says nothing.
type hint struct {
	level  int  // 1, 6 or 9
	family byte // the family to try first
}

// found is how a stream can be made again.
type found struct {
	model   modelID
	fixes   []byte
	differs int // tokens
}

func (f found) name() string {
	if f.fixes == nil {
		return f.model.String()
	}
	return f.model.String() + " with fixes"
}

// An analyzer finds the model of a stream.
type analyzer struct {
	enc  encoder
	last modelID // of the stream before: the next one is likely alike
}

const (
	probeTokens = 12000 // compared with what each model would choose
	probeSteps  = 1024
	// fixShare is the share of the stream that fixes may be as long as.
	fixShare = 4
)

var errTooMany = errors.New("too many differences")

// find finds out how stream, whose content is in.plain[from:], was made.
func (a *analyzer) find(stream []byte, in *inflated, from int, h hint) (found, bool) {
	plain := in.plain[from:]
	best, fewest := modelID(0), -1
	for _, id := range a.candidates(in, h) {
		m, _ := newModel(id)
		n := 0
		if m.piece == 0 {
			n = a.probe(m, in.tokens, plain, fewest)
		}
		if n == 0 && a.exact(m, stream, plain) {
			a.last = id
			return found{model: id}, true
		}
		if m.piece == 0 && (fewest < 0 || n < fewest) {
			best, fewest = id, n
		}
	}
	m, _ := newModel(best)
	fixes, n, ok := a.record(m, stream, plain)
	if !ok || len(fixes) > len(stream)/fixShare {
		return found{}, false
	}
	a.last = best
	return found{model: best, fixes: fixes, differs: n}, true
}

// candidates lists the models in the order in which they are likely.
func (a *analyzer) candidates(in *inflated, h hint) []modelID {
	families := []byte{familyGNU, familyZlib, familyZlib9}
	if h.family != familyGNU {
		families = []byte{h.family, familyZlib, familyZlib9, familyGNU}
	}
	if len(in.blocks) > 1 && in.blocks[0].form != storedBlock {
		// The length of a full block gives the family away.
		switch n := in.blocks[0].tokens; {
		case n == 1<<14-1:
			families = []byte{familyZlib, familyPigz, familyPigzI}
		case n%guessStep == 0:
			families = []byte{familyGNU, familyZlib9, familyZlib, familyPigz}
		default:
			families = append(families, familyPigz, familyPigzI)
		}
	} else if len(in.blocks) > 1 {
		families = append(families, familyPigz, familyPigzI)
	}
	levels := []int{6, 9, 1, 2, 3, 4, 5, 7, 8}
	if h.level > 0 {
		levels = append([]int{h.level}, levels...)
	}
	var out []modelID
	seen := map[modelID]bool{}
	add := func(id modelID) {
		if id != 0 && !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	for _, f := range families {
		if modelID(f) == a.last>>4 {
			add(a.last)
		}
	}
	for _, l := range levels {
		for _, f := range families {
			add(modelID(f)<<4 | modelID(l))
		}
	}
	return out
}

// probe counts how many of the first tokens a model gets wrong; it gives up
// when there are more than most (-1: never).
func (a *analyzer) probe(m model, tokens []token, plain []byte, most int) int {
	r := recorder{actual: tokens, most: most}
	if most < 0 {
		r.most = len(tokens)
	}
	a.enc.f.reset(m, bytes.NewReader(plain), int64(len(plain)), nil, &r)
	var out [probeSteps]token
	for {
		n, err := a.enc.f.run(out[:])
		if err != nil || n < len(out) {
			return len(r.fixed)
		}
	}
}

// exact reports whether a model makes exactly this stream.
func (a *analyzer) exact(m model, stream, plain []byte) bool {
	c := compareWriter{want: stream}
	err := a.enc.encode(&c, m, bytes.NewReader(plain), int64(len(plain)), nil, nil, nil)
	return err == nil && len(c.want) == 0
}

// record finds the fixes that make m produce stream.
func (a *analyzer) record(m model, stream, plain []byte) (fixes []byte, differs int, ok bool) {
	in, err := inflate(stream, nil, int64(len(plain)), len(stream)*8)
	if err != nil {
		return nil, 0, false
	}
	r := recorder{actual: in.tokens, most: len(stream) / fixShare / 2, blocks: in.blocks}
	a.enc.f.reset(m, bytes.NewReader(plain), int64(len(plain)), nil, &r)
	var out [probeSteps]token
	for {
		n, err := a.enc.f.run(out[:])
		if err != nil {
			return nil, 0, false
		}
		if n < len(out) {
			break
		}
	}
	list := r.appendTo(nil)

	// With the tokens right, see which blocks the model would write otherwise.
	again, err := newReplay(append([]byte{0, 0}, list...), 0)
	if err != nil {
		return nil, 0, false
	}
	b := blockRecorder{stream: stream, blocks: in.blocks, counts: r.counts}
	c := compareWriter{want: stream}
	err = a.enc.encode(&c, m, bytes.NewReader(plain), int64(len(plain)), nil, again, &b)
	if err != nil || len(c.want) > 0 {
		return nil, 0, false
	}
	largest, part := b.appendTo(nil)
	fixes = binary.AppendUvarint(nil, uint64(largest))
	fixes = binary.AppendUvarint(fixes, uint64(len(part)))
	fixes = append(fixes, part...)
	return append(fixes, list...), len(r.fixed), true
}
