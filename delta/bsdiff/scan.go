package bsdiff

import "context"

// A region is a stretch of the new file that resembles a stretch of the old text of
// the same length. Between regions lies what no old text resembles.
type region struct {
	new, old, n int
}

// match finds the regions of p, in order, whose first bytes may lie at start in the old text.
func match(ctx context.Context, x *index, p []byte, start int) ([]region, error) {
	// bsdiff asks for 8 bytes; with 4, and dropping afterwards what does not pay,
	// patches are 5 % smaller.
	regions, err := scan(ctx, x, p, start, 4)
	if err != nil {
		return nil, err
	}
	return prune(x.text, p, regions), nil
}

// scan is the method of Colin Percival's bsdiff: walk along the new file; leave the
// current alignment (old position minus new position) only for an exact match that
// explains a few bytes (better) more than the alignment does; then let the old and the
// new alignment grow towards each other while more than half of the bytes match.
func scan(ctx context.Context, x *index, p []byte, start, better int) ([]region, error) {
	const skip = 32 // equal bytes that are not worth a search
	var out []region
	cur := region{old: start} // its length is not known yet
	at, known := 0, 0         // old[at+offset…known+offset] has been compared: score
	score := 0
	for rounds := 1; at < len(p); rounds++ {
		if rounds&0xfff == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		offset := cur.old - cur.new
		if at+offset < len(x.text) {
			if r := matchLen(x.text[at+offset:], p[at:]); r >= skip {
				at += r
				known, score = at, 0
				continue
			}
		}
		pos, n := x.longest(p[at:], at+offset)
		for ; known < at+n; known++ {
			if known+offset < len(x.text) && x.text[known+offset] == p[known] {
				score++
			}
		}
		switch {
		case n > score+better:
			next := region{new: at, old: pos}
			meet(x.text, p, &cur, &next)
			if cur.n > 0 {
				out = append(out, cur)
			}
			cur = next
			at += n
			known, score = at, 0
		case n > 0 && n == score:
			at += n
			known, score = at, 0
		default:
			if at+offset < len(x.text) && x.text[at+offset] == p[at] {
				score--
			}
			at++
			if known < at {
				known, score = at, 0
			}
		}
	}
	end := region{new: len(p), old: len(x.text)}
	meet(x.text, p, &cur, &end)
	if cur.n > 0 {
		out = append(out, cur)
	}
	return out, nil
}

// maxBack bounds how far a new alignment grows backwards over the one before. Without it, texts
// that resemble themselves everywhere take quadratic time.
const maxBack = 16 << 10

// meet sets the length of cur and moves the start of next back.
func meet(old, p []byte, cur, next *region) {
	gap := next.new - cur.new
	// How far does cur reach? To where (matches − mismatches) is greatest.
	fwd, best, score := 0, 0, 0
	for i := 0; i < gap && cur.old+i < len(old); i++ {
		if old[cur.old+i] == p[cur.new+i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, fwd = score, i+1
		}
	}
	back := 0
	if next.new < len(p) {
		best, score = 0, 0
		for i := 1; i <= min(gap, next.old, maxBack); i++ {
			if old[next.old-i] == p[next.new-i] {
				score++
			} else {
				score--
			}
			if score > best {
				best, back = score, i
			}
		}
	}
	if over := fwd + back - gap; over > 0 {
		// Both claim these bytes: cut where both together match most.
		cut, best, score := 0, 0, 0
		for i := range over {
			if p[cur.new+fwd-over+i] == old[cur.old+fwd-over+i] {
				score++
			}
			if p[next.new-back+i] == old[next.old-back+i] {
				score--
			}
			if score > best {
				best, cut = score, i+1
			}
		}
		fwd += cut - over
		back -= cut
	}
	cur.n = fwd
	next.new -= back
	next.old -= back
}
