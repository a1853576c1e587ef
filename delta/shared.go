package delta

import (
	"context"
	"crypto/sha256"

	"github.com/btrovl/btrovl/delta/redeflate"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// A bundle from several bases holds for each of them the listing and what only this base
// needs. What several bases lack in the same way is in a shared section: new files that
// none of them has an earlier version of, and files whose earlier version is the same
// in all of them. There it is held once.
//
// A shared section is a section like others, but has no listing. Its sources are those of the
// bases that it is for, which number their files differently: so they are named, at
// their first use. New sources are files of the same section.

// leastShared is how much content is worth a section: streams of their own compress worse.
const leastShared = 64 << 10

// A sharing plan says which new files are left to which section.
type sharingPlan struct {
	groups map[uint64]map[int]bool // by the bases that they are for
	owner  map[int]uint64          // the same, by file
	lack   map[int]uint64          // the bases that do not have a file's content
}

// own is the plan of the section of one base.
func (s *sharingPlan) own(which int) partPlan {
	p := partPlan{kind: partBase, bases: 1 << which}
	if s != nil {
		p.skip = func(i int) bool { return s.owner[i]>>which&1 != 0 }
	}
	return p
}

// planShared groups the new files.
func planShared(olds []*inventory, news *inventory, least int64) *sharingPlan {
	s := &sharingPlan{groups: make(map[uint64]map[int]bool), owner: make(map[int]uint64), lack: make(map[int]uint64)}
	type base struct {
		*inventory
		keep  []int
		match *matcher
	}
	var bases []base
	for _, o := range olds {
		bases = append(bases, base{o, kept(o.listing, news.listing), newMatcher(o, false)})
	}
	for i := range news.entries {
		e := &news.entries[i]
		if !e.isRegular() || e.link >= 0 || e.size == 0 {
			continue
		}
		alike := make(map[string]uint64) // bases by what they have of the file
		for b, o := range bases {
			if k := o.keep[i]; k >= 0 && o.sums[k] == news.sums[i] && o.entries[k].size == e.size {
				continue // nothing is missing
			}
			if _, ok := o.match.same(news.sums[i], e.path); ok {
				continue // a copy costs nothing
			}
			key := ""
			if c := o.match.byPath(e.path, 1); len(c) > 0 && shape(o.entries[c[0]].path) == shape(e.path) {
				key = o.entries[c[0]].path + "\x00" + o.sums[c[0]].String()
			}
			alike[key] |= 1 << b
			s.lack[i] |= 1 << b
		}
		for _, mask := range alike {
			if mask&(mask-1) != 0 { // several; of two such groups the file is in the greater or the first
				s.owner[i] |= mask
				s.put(i, mask)
			}
		}
	}
	s.archives(news)
	s.dropSmall(news, least)
	return s
}

func (s *sharingPlan) put(i int, mask uint64) {
	if s.groups[mask] == nil {
		s.groups[mask] = make(map[int]bool)
	}
	s.groups[mask][i] = true
}

// together reports whether two files are in the same groups.
func (s *sharingPlan) together(i, k int) bool {
	for _, g := range s.groups {
		if g[i] != g[k] {
			return false
		}
	}
	return true
}

// leave gives a file back to the sections of the bases.
func (s *sharingPlan) leave(i int) {
	for _, g := range s.groups {
		delete(g, i)
	}
	delete(s.owner, i)
}

// archives keeps archives and those of their members that are new files together:
// sources of a section are made in it.
func (s *sharingPlan) archives(news *inventory) {
	bySum := make(map[tree.Sum][]int)
	for i := range s.lack {
		bySum[news.sums[i]] = append(bySum[news.sums[i]], i)
	}
	for i := range news.entries {
		if s.lack[i] == 0 || !archiveIn(news, i) {
			continue
		}
		members := make(map[tree.Sum]bool)
		memberSums(members, news, i)
		apart := false
		for sum := range members {
			for _, k := range bySum[sum] {
				apart = apart || !s.together(i, k) && (s.owner[k] != 0 || s.lack[k]&s.owner[i] != 0)
			}
		}
		if !apart {
			continue
		}
		s.leave(i)
		for sum := range members {
			for _, k := range bySum[sum] {
				s.leave(k)
			}
		}
	}
}

// memberSums adds the digests of the members of an archive to sums.
func memberSums(sums map[tree.Sum]bool, inv *inventory, i int) {
	data, err := inv.content(i)
	if err != nil {
		return // reading it will fail again, and be reported
	}
	redeflate.Members(data, func(_ string, p []byte) { sums[tree.Sum(sha256.Sum256(p))] = true })
}

// dropSmall leaves groups to the bases that are not worth a section.
func (s *sharingPlan) dropSmall(news *inventory, least int64) {
	for mask, g := range s.groups {
		var n int64
		for i := range g {
			n += news.entries[i].size
		}
		if n >= least {
			continue
		}
		for i := range g {
			if s.owner[i] &^= mask; s.owner[i] == 0 {
				delete(s.owner, i)
			}
		}
		delete(s.groups, mask)
	}
}

// common is the inventory of those files that all bases of a mask have, with the same
// content at the same path: what a shared section may use.
func common(olds []*inventory, mask uint64) *inventory {
	var all []*inventory
	for b, o := range olds {
		if mask>>b&1 != 0 {
			all = append(all, o)
		}
	}
	first := all[0]
	inv := &inventory{listing: &listing{}, root: first.root, maps: first.maps}
	for i := range first.entries {
		e := first.entries[i]
		if !e.isRegular() || e.link >= 0 {
			continue
		}
		same := true
		for _, o := range all[1:] {
			k, ok := o.byPath[e.path]
			same = same && ok && o.entries[k].isRegular() && o.entries[k].size == e.size && o.sums[k] == first.sums[i]
		}
		if same {
			inv.entries = append(inv.entries, e)
			inv.sums = append(inv.sums, first.sums[i])
		}
	}
	inv.index()
	return inv
}

// makeShared makes the shared sections.
func (s *sharingPlan) make(ctx context.Context, o *MakeOptions, olds []*inventory, news *inventory, report *Report) ([]*section, error) {
	var out []*section
	for _, mask := range sortedKeys(s.groups) {
		g := s.groups[mask]
		made, err := makeSection(ctx, o, common(olds, mask), news, report, partPlan{kind: partShared, bases: mask, only: func(i int) bool { return g[i] }})
		if err != nil {
			return out, err
		}
		out = append(out, made)
	}
	return out, nil
}
