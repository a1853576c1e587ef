package delta

import (
	"fmt"
	"path"
	"sort"
	"strings"

	"github.com/btrovl/btrovl/subvolumes/tree"
)

// A matcher proposes old files that a new file may have come from. It only
// proposes: what is used is decided by size.
type matcher struct {
	olds     *inventory
	bySum    map[tree.Sum][]int
	byShape  map[string][]int // path with its numbers made equal
	byName   map[string][]int // the same of the last component, with its directory's last
	sketches sketches

	samePathOnly bool // for measuring
}

func newMatcher(olds *inventory, samePathOnly bool) *matcher {
	m := &matcher{olds: olds, samePathOnly: samePathOnly, bySum: make(map[tree.Sum][]int), byShape: make(map[string][]int), byName: make(map[string][]int)}
	for i := range olds.entries {
		e := &olds.entries[i]
		if !e.isRegular() || e.link >= 0 || e.size == 0 {
			continue
		}
		m.bySum[olds.sums[i]] = append(m.bySum[olds.sums[i]], i)
		s := shape(e.path)
		m.byShape[s] = append(m.byShape[s], i)
		n := path.Base(s)
		m.byName[n] = append(m.byName[n], i)
	}
	return m
}

// shape makes all numbers of a path equal: two versions of a library or of a
// directory of kernel modules then have the same one.
//
//	usr/lib/modules/6.1.0-50-amd64/x.ko → usr/lib/modules/#-amd64/x.ko
//	usr/lib/libfoo.so.1.2.3             → usr/lib/libfoo.so.#
func shape(p string) string {
	var b strings.Builder
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	for i := 0; i < len(p); i++ {
		if !digit(p[i]) {
			b.WriteByte(p[i])
			continue
		}
		b.WriteByte('#')
		for i+1 < len(p) {
			if digit(p[i+1]) {
				i++
			} else if i+2 < len(p) && strings.IndexByte(".-+~_:", p[i+1]) >= 0 && digit(p[i+2]) {
				i += 2
			} else {
				break
			}
		}
	}
	return b.String()
}

// same returns an old file with equal content, the one with the likest path.
func (m *matcher) same(sum tree.Sum, p string) (int, bool) {
	all := m.bySum[sum]
	if len(all) == 0 {
		return 0, false
	}
	return nearest(m.olds, all, p, 1)[0], true
}

// byPath returns at most n old files whose path says that they are earlier versions.
func (m *matcher) byPath(p string, n int) []int {
	if i, ok := m.olds.byPath[p]; ok {
		e := &m.olds.entries[i]
		if e.link >= 0 {
			i = e.link
			e = &m.olds.entries[i]
		}
		if e.isRegular() && e.size > 0 {
			return []int{i}
		}
	}
	if m.samePathOnly {
		return nil
	}
	s := shape(p)
	if c := m.byShape[s]; len(c) > 0 {
		return nearest(m.olds, c, p, n)
	}
	return nearest(m.olds, m.byName[path.Base(s)], p, n)
}

// nearest picks the n entries whose paths share most with p.
func nearest(inv *inventory, all []int, p string, n int) []int {
	if len(all) <= 1 {
		return all
	}
	type scored struct{ i, score int }
	s := make([]scored, 0, len(all))
	for _, i := range all {
		q := inv.entries[i].path
		pre, suf := 0, 0
		for pre < len(p) && pre < len(q) && p[pre] == q[pre] {
			pre++
		}
		for suf < len(p)-pre && suf < len(q)-pre && p[len(p)-1-suf] == q[len(q)-1-suf] {
			suf++
		}
		s = append(s, scored{i, pre + suf})
	}
	sort.SliceStable(s, func(a, b int) bool { return s[a].score > s[b].score })
	out := make([]int, 0, n)
	for _, c := range s[:min(n, len(s))] {
		out = append(out, c.i)
	}
	return out
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
