package redeflate

import "fmt"

// A model is one encoder with all its parameters: given a plain it has exactly
// one output. Both families descend from Jean-loup Gailly's deflate of 1992 and
// still share the search (hash chains over three bytes, lazy matching) and the
// building of codes. They have drifted apart in what the source of neither
// mentions as a format, and what therefore has to be repeated here:
//
//	                       GNU gzip                      zlib
//	near the end of data   matches run past the end, are  matches are limited by what is left,
//	                       cut afterwards; the bytes      before they compete
//	                       there are two zeros, then
//	                       what the window held before
//	end of a block         32,767 tokens, or a guess      2^(memLevel+6) - 1 tokens
//	                       every 4,096 that it pays
//	last 262 bytes         not searched if the window     always searched
//	                       cannot slide any more
//	hash                   15 bits                        memLevel + 7 bits
//
// The facts come from reading gzip 1.6 and zlib 1.2.13 and from comparing with
// the programs (TestOracle…).
type model struct {
	id       modelID
	gnu      bool
	lazy     bool // evaluates the next position before it takes a match (levels 4-9)
	good     int  // with a previous match this long, search a quarter of the chain
	maxLazy  int  // with a previous match this long, do not search; !lazy: longest match whose inside is hashed
	nice     int  // stop searching at this length
	chain    int  // candidates to look at
	hashBits uint
	shift    uint
	tokens   int   // a block is full with so many tokens
	guess    bool  // GNU gzip's guess every 4,096 tokens (levels 3-9)
	piece    int64 // pigz: data is compressed in pieces of this size; 0: in one
	linked   bool  // pigz: a piece sees the 32 KiB before it
}

// modelID is what a recipe says of a model: family<<4 | level.
type modelID byte

const (
	familyGNU   = 0 // GNU gzip
	familyZlib  = 1 // zlib, memLevel 8: the default of nearly everyone
	familyZlib9 = 2 // zlib, memLevel 9: perl's IO::Compress, some archivers
	familyPigz  = 3 // pigz: zlib memLevel 8 in pieces of 128 KiB, linked
	familyPigzI = 4 // pigz -i: the same, not linked
)

func (id modelID) String() string {
	level := id & 15
	switch id >> 4 {
	case familyGNU:
		return fmt.Sprintf("GNU gzip -%d", level)
	case familyZlib:
		return fmt.Sprintf("zlib -%d", level)
	case familyZlib9:
		return fmt.Sprintf("zlib -%d memLevel 9", level)
	case familyPigz:
		return fmt.Sprintf("pigz -%d", level)
	case familyPigzI:
		return fmt.Sprintf("pigz -i -%d", level)
	}
	return fmt.Sprintf("unknown encoder %d", byte(id))
}

const (
	windowSize   = 1 << 15
	windowMask   = windowSize - 1
	minMatch     = 3
	maxMatch     = 258
	minLookahead = maxMatch + minMatch + 1
	maxDist      = windowSize - minLookahead
	tooFar       = 4096 // a match of length 3 at a larger distance is not worth its bits
	pieceSize    = 128 << 10
)

// newModel returns the model that id names, or false.
func newModel(id modelID) (model, bool) {
	level := int(id & 15)
	if level < 1 || level > 9 {
		return model{}, false
	}
	// The effort of the nine levels is the same in both families.
	effort := [...]struct{ good, lazy, nice, chain int }{
		1: {4, 4, 8, 4},
		2: {4, 5, 16, 8},
		3: {4, 6, 32, 32},
		4: {4, 4, 16, 16},
		5: {8, 16, 32, 32},
		6: {8, 16, 128, 128},
		7: {8, 32, 128, 256},
		8: {32, 128, 258, 1024},
		9: {32, 258, 258, 4096},
	}[level]
	m := model{
		id: id, lazy: level >= 4,
		good: effort.good, maxLazy: effort.lazy, nice: effort.nice, chain: effort.chain,
		hashBits: 15, shift: 5, tokens: 1<<14 - 1,
	}
	switch id >> 4 {
	case familyGNU:
		m.gnu, m.tokens, m.guess = true, 1<<15-1, level > 2
	case familyZlib:
	case familyZlib9:
		m.hashBits, m.shift, m.tokens = 16, 6, 1<<15-1
	case familyPigz:
		m.piece, m.linked = pieceSize, true
	case familyPigzI:
		m.piece = pieceSize
	default:
		return model{}, false
	}
	return m, true
}
