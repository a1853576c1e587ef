package bsdiff

// What it costs to say something, in tenths of a byte of compressed streams; chosen by
// measuring libraries and kernel modules of Debian 12 and its security updates (xz -9e).
const (
	costRegion = 50 // another region: a seek and lengths
	costInsert = 5  // a byte of Extra
	costChange = 10 // a byte of Diff that is not zero
	maxPruned  = 200
)

// prune drops regions that cost more than they save: scan takes every exact match that is
// a little longer than what it has, and in large texts there is always one. It is given
// regions in order, changes them, and returns those that stay.
func prune(old, p []byte, in []region) []region {
	var out []region
	for i, r := range in {
		if r.n == 0 {
			continue // joined with the one before
		}
		if len(out) == 0 || r.n > maxPruned {
			out = append(out, r)
			continue
		}
		before := &out[len(out)-1]
		end := before.new + before.n
		after := region{new: len(p), old: len(old)}
		if i+1 < len(in) {
			after = in[i+1]
		}
		gap := after.new - end
		if gap > 4*maxPruned {
			out = append(out, r)
			continue
		}
		keep := costRegion + costInsert*(gap-r.n) + costChange*changes(old[r.old:], p[r.new:r.new+r.n])
		o := before.old + before.n
		if i+1 < len(in) && after.old-o == gap {
			// Without r, its neighbours are one region.
			if costChange*changes(old[o:], p[end:after.new])-costRegion <= keep {
				before.n += gap + after.n
				in[i+1].n = 0
				continue
			}
			out = append(out, r)
			continue
		}
		fwd, saved := reach(gap, func(k int) bool { return o+k < len(old) }, func(k int) bool { return old[o+k] == p[end+k] })
		back := 0
		if i+1 < len(in) {
			var more int
			back, more = reach(gap-fwd, func(k int) bool { return k < after.old }, func(k int) bool { return old[after.old-1-k] == p[after.new-1-k] })
			saved += more
		}
		if costInsert*gap-saved > keep {
			out = append(out, r)
			continue
		}
		before.n += fwd
		if i+1 < len(in) {
			in[i+1] = region{after.new - back, after.old - back, after.n + back}
		}
	}
	return out
}

// changes counts where a and b differ, along b.
func changes(a, b []byte) (n int) {
	a = a[:len(b)]
	for i, c := range b {
		if a[i] != c {
			n++
		}
	}
	return n
}

// reach returns how many of at most n bytes are worth to be taken from a source instead
// of being inserted, and what that saves.
func reach(n int, exists, equal func(int) bool) (taken, saved int) {
	sum := 0
	for k := 0; k < n && exists(k); k++ {
		sum += costInsert
		if !equal(k) {
			sum -= costChange
		}
		if sum > saved {
			taken, saved = k+1, sum
		}
	}
	return taken, saved
}
