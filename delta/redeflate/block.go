package redeflate

// A blockWriter collects tokens into blocks and writes them in whichever of the
// three ways deflate has is shortest, counted as gzip and zlib count.
type blockWriter struct {
	out    bitWriter
	tokens []token // of the current block
	bytes  int64   // that they stand for

	litFreq  [litCodes]uint32
	distFreq [distCodes]uint32

	coder    coder
	lit      [litCodes]uint8 // code lengths of the current block
	dist     [distCodes]uint8
	code     [lenCodes]uint8
	runs     []lengthRun
	litCode  [288]uint16
	distCode [32]uint16
	emitLit  [256]packed // what a literal comes to
	emitLen  [256]packed // a length less 3, extra bits included
	emitDist [distCodes]packed
}

// packed is bits<<8 | how many.
type packed uint32

// blockType is the way in which a block is written, as in its header.
type blockType uint8

const (
	storedBlock  blockType = 0
	fixedBlock   blockType = 1
	dynamicBlock blockType = 2
)

const storedMax = 0xffff

// start empties the block.
func (b *blockWriter) start() {
	b.tokens = b.tokens[:0]
	b.bytes = 0
	clear(b.litFreq[:])
	clear(b.distFreq[:])
}

// count takes the tokens from number n on into the statistics.
func (b *blockWriter) count(n int) {
	bytes := 0
	for _, t := range b.tokens[n:] {
		if t.isMatch() {
			b.litFreq[257+int(lengthCode[t.low()])]++
			b.distFreq[distCode[t.dist()-1]]++
			bytes += t.length()
		} else {
			b.litFreq[t]++
			bytes++
		}
	}
	b.bytes += int64(bytes)
}

// guessEnd is GNU gzip's guess whether to end the block here: with few matches
// and much gained, the statistics are about to change. consumed is how far its
// search had come from the start of the block.
func (b *blockWriter) guessEnd(consumed int64) bool {
	out := uint64(len(b.tokens)) * 8
	matches := 0
	for i, f := range b.distFreq {
		out += uint64(f) * uint64(5+distExtra[i])
		matches += int(f)
	}
	return matches < len(b.tokens)/2 && out>>3 < uint64(consumed)/2
}

// plan builds the codes for the block and chooses how to write it. canStore says
// whether the program would still have the plain of the block in its window.
func (b *blockWriter) plan(canStore func() bool) blockType {
	b.litFreq[endOfBlock] = 1
	lits := b.coder.build(b.litFreq[:], b.lit[:], maxBits)
	dists := b.coder.build(b.distFreq[:], b.dist[:], maxBits)
	b.runs = appendRuns(b.runs[:0], b.lit[:lits])
	b.runs = appendRuns(b.runs, b.dist[:dists])
	var freq [lenCodes]uint32
	for _, r := range b.runs {
		freq[r.symbol]++
	}
	b.coder.build(freq[:], b.code[:], 7)

	best := uint64(5 + 5 + 4 + 3*b.codesSent())
	for i, f := range freq {
		best += uint64(f) * uint64(b.code[i]+codeExtra[i])
	}
	fixed := uint64(0)
	for i, f := range b.litFreq {
		extra := uint8(0)
		if i > endOfBlock {
			extra = lenExtra[i-257]
		}
		best += uint64(f) * uint64(b.lit[i]+extra)
		fixed += uint64(f) * uint64(fixedLit[i]+extra)
	}
	for i, f := range b.distFreq {
		best += uint64(f) * uint64(b.dist[i]+distExtra[i])
		fixed += uint64(f) * uint64(5+distExtra[i])
	}
	bestBytes, fixedBytes := (best+3+7)/8, (fixed+3+7)/8
	bestBytes = min(bestBytes, fixedBytes)
	switch {
	case b.bytes <= storedMax && uint64(b.bytes)+4 <= bestBytes && canStore():
		return storedBlock
	case fixedBytes == bestBytes:
		return fixedBlock
	}
	return dynamicBlock
}

// codesSent is how many lengths of the code of code lengths are written.
func (b *blockWriter) codesSent() int {
	n := lenCodes
	for n > 4 && b.code[codeOrder[n-1]] == 0 {
		n--
	}
	return n
}

// header writes the three bits that begin a block.
func (b *blockWriter) header(t blockType, last bool) {
	v := uint32(t) << 1
	if last {
		v |= 1
	}
	b.out.write(v, 3)
}

// store writes data as a stored block.
func (b *blockWriter) store(data []byte, last bool) {
	b.header(storedBlock, last)
	b.out.align()
	n := uint32(len(data))
	b.out.write(n|(^n&storedMax)<<16, 32)
	b.out.align()
	b.out.bytes(data)
}

// trees writes the header of a dynamic block as plan built it.
func (b *blockWriter) trees() {
	lits, dists := litCodes, distCodes
	for lits > 257 && b.lit[lits-1] == 0 {
		lits--
	}
	for dists > 1 && b.dist[dists-1] == 0 {
		dists--
	}
	sent := b.codesSent()
	b.out.write(uint32(lits-257)|uint32(dists-1)<<5|uint32(sent-4)<<10, 14)
	for _, i := range codeOrder[:sent] {
		b.out.write(uint32(b.code[i]), 3)
	}
	var codes [lenCodes]uint16
	assign(b.code[:], codes[:])
	for _, r := range b.runs {
		n := uint(b.code[r.symbol])
		b.out.write(uint32(codes[r.symbol])|uint32(r.extra)<<n, n+uint(codeExtra[r.symbol]))
	}
}

// body writes the tokens and the end of the block with the given code lengths.
func (b *blockWriter) body(lit, dist []uint8) {
	assign(lit, b.litCode[:])
	assign(dist, b.distCode[:])
	for i := range b.emitLit {
		b.emitLit[i] = pack(b.litCode[i], lit[i], 0, 0)
	}
	for i := range b.emitLen {
		c := int(lengthCode[i])
		base := 255
		if c < 28 {
			base = lengthBase[c]
		}
		b.emitLen[i] = 0
		if 257+c < len(lit) {
			b.emitLen[i] = pack(b.litCode[257+c], lit[257+c], i-base, lenExtra[c])
		}
	}
	for i := range b.emitDist {
		b.emitDist[i] = 0
		if i < len(dist) {
			b.emitDist[i] = pack(b.distCode[i], dist[i], 0, 0)
		}
	}
	for _, t := range b.tokens {
		if !t.isMatch() {
			e := b.emitLit[t.low()]
			b.out.write(uint32(e>>8), uint(e&0xff))
			continue
		}
		e := b.emitLen[t.low()]
		b.out.write(uint32(e>>8), uint(e&0xff))
		d := t.dist() - 1
		c := distCode[d&windowMask]
		e = b.emitDist[c]
		n := uint(e & 0xff)
		b.out.write(uint32(e>>8)|uint32(d-distBase[c])<<n, n+uint(distExtra[c]))
	}
	b.out.write(uint32(b.litCode[endOfBlock]), uint(lit[endOfBlock]))
}

func pack(code uint16, bits uint8, extra int, extraBits uint8) packed {
	return packed((uint32(code)|uint32(extra)<<bits)<<8 | uint32(bits+extraBits))
}
