package redeflate

// Fixes describe where a stream differs from what its model makes:
//
//	largest block        tokens in it, 0 if all blocks end as the model ends them
//	length of blocks     bytes of the next part
//	blocks               number of blocks, then for each that differs:
//	                     gap in blocks, flags, [tokens], [bits, header]
//	tokens               for each that differs: gap in tokens, then
//	                     0 (a literal) or length-2, distance
//
// flags: 1 the number of tokens follows; 2, 4, 6 the block is stored, has the
// fixed code, or has the codes of the header that follows (its length in bits,
// then the bits from the numbers of codes up to the first token).
const (
	fixEnd  = 1
	fixForm = 6

	formStored  = 2
	formFixed   = 4
	formDynamic = 6

	maxHeaderBits = 14 + 19*3 + (286+32)*(7+7)
)

// A blockFix is the entry of one block.
type blockFix struct {
	tokens int // or -1
	form   byte
	header []byte
	bits   int
}

// A replay carries out fixes, as it reads them. It is a fixer and a blockFixer.
type replay struct {
	max int // of largest block

	blocks  recipeReader
	count   int
	blockAt int // the block that entry is of; -1 at the end
	entry   blockFix
	list    recipeReader
	tokenAt uint64
}

// newReplay reads fixes that stand at offset at of a recipe.
func newReplay(b []byte, at int) (*replay, error) {
	r := &replay{list: recipeReader{b: b, origin: at}, blockAt: -1}
	largest, err := r.list.number(maxBlockTokens)
	if err != nil {
		return nil, err
	}
	r.max = int(largest)
	part, err := r.list.bytes()
	if err != nil {
		return nil, err
	}
	r.blocks = recipeReader{b: part, origin: at + r.list.next - len(part)}
	if largest > 0 {
		n, err := r.blocks.number(1 << 40)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, r.blocks.fail("there are no blocks")
		}
		r.count = int(min(n, 1<<29))
		if err := r.nextBlock(0); err != nil {
			return nil, err
		}
	}
	r.tokenAt, err = r.nextToken(0)
	return r, err
}

func (r *replay) hasBlocks() bool { return r.max > 0 }
func (r *replay) largest() int64  { return int64(r.max) }

// nextToken returns the number of the next token to fix, counting from from.
func (r *replay) nextToken(from uint64) (uint64, error) {
	if r.list.done() {
		return never, nil
	}
	gap, err := r.list.number(1 << 62)
	return from + gap, err
}

func (r *replay) token(n uint64, t token, ahead int) (token, uint64, error) {
	if n < r.tokenAt {
		return t, r.tokenAt, nil
	}
	code, err := r.list.number(maxMatch - 2)
	if err != nil {
		return t, 0, err
	}
	fixed := token(0)
	if code > 0 {
		dist, err := r.list.number(windowSize)
		if err != nil {
			return t, 0, err
		}
		if dist == 0 || int(code)+2 > ahead {
			return t, 0, r.list.fail("a match does not fit")
		}
		fixed = match(int(code)+2, int(dist))
	} else {
		fixed = noMatch
	}
	r.tokenAt, err = r.nextToken(n + 1)
	return fixed, r.tokenAt, err
}

func (r *replay) nextBlock(from int) error {
	r.blockAt = -1
	if r.blocks.done() {
		return nil
	}
	gap, err := r.blocks.number(uint64(r.count))
	if err != nil {
		return err
	}
	flags, err := r.blocks.byte()
	if err != nil {
		return err
	}
	if flags&^(fixEnd|fixForm) != 0 {
		return r.blocks.fail("a fix is of an unknown kind")
	}
	r.blockAt = from + int(gap)
	r.entry = blockFix{tokens: -1, form: flags & fixForm}
	if flags&fixEnd != 0 {
		n, err := r.blocks.number(uint64(r.max))
		if err != nil {
			return err
		}
		r.entry.tokens = int(n)
	}
	if r.entry.form == formDynamic {
		n, err := r.blocks.number(maxHeaderBits)
		if err != nil {
			return err
		}
		r.entry.bits = int(n)
		if r.entry.header, err = r.blocks.bytes(); err != nil {
			return err
		}
		if len(r.entry.header) != (r.entry.bits+7)/8 {
			return r.blocks.fail("a header has the wrong length")
		}
	}
	return nil
}

func (r *replay) tokens(i int) (int, error) {
	if i == r.blockAt {
		return r.entry.tokens, nil
	}
	return -1, nil
}

func (r *replay) ended(i, guess int, _, atEnd bool) (bool, error) {
	// Blocks that are not described bring tokens, or there is no end of them.
	if i+1 < r.count && i != r.blockAt && guess == 0 {
		return false, r.blocks.fail("there are too many blocks")
	}
	if !atEnd && i+1 >= r.count {
		return false, r.blocks.fail("there are too few blocks")
	}
	return i+1 >= r.count, nil
}

func (r *replay) write(i int, b *blockWriter, plan blockType, data func() []byte, last bool) (bool, error) {
	if i != r.blockAt {
		return false, nil
	}
	entry := r.entry
	if err := r.nextBlock(i + 1); err != nil {
		return false, err
	}
	switch entry.form {
	case formStored:
		return true, b.writeAs(storedBlock, data, last)
	case formFixed:
		return true, b.writeAs(fixedBlock, data, last)
	case formDynamic:
		return true, b.writeWith(entry.header, entry.bits, last)
	}
	return false, nil
}

// writeWith writes the block with the codes that header describes.
func (b *blockWriter) writeWith(header []byte, n int, last bool) error {
	// Padded, so that reading the code lengths cannot run out of bits.
	d := inflater{data: append(append([]byte(nil), header...), make([]byte, 16)...)}
	if err := d.trees(); err != nil || d.offset() != int64(n) {
		return errBlock
	}
	b.header(dynamicBlock, last)
	for i := 0; i < n; i += 8 {
		width := min(n-i, 8)
		b.out.write(uint32(header[i/8])&(1<<width-1), uint(width))
	}
	b.body(d.lengths[:d.lits], d.lengths[d.lits:d.lits+d.dists])
	return b.out.err
}
