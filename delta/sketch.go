package delta

import (
	"context"
	"hash/fnv"
	"slices"
	"sort"
	"sync"
)

// A sketch is a handful of a content's features: hashes of windows at places that the
// content itself chooses, the smallest of them. Two files that share much text share some,
// wherever in the files it stands.
const (
	sketchFeatures = 48
	sketchWindow   = 32
	sketchEvery    = 6       // bits: one place in 64
	sketchMax      = 4 << 20 // of a file is looked at
	sketchCommon   = 64      // a feature of more files says nothing
)

// sketches answers which old files resemble a content. The index is made when first
// asked: few updates need it.
type sketches struct {
	once  sync.Once
	err   error
	index map[uint64][]int32
}

func (s *sketches) features(b []byte) []uint64 {
	b = b[:min(len(b), sketchMax)]
	var all []uint64
	var roll uint32
	for i := 0; i+sketchWindow <= len(b); i++ {
		roll = roll<<1 + uint32(b[i])*0x9e3779b1
		if roll>>(32-sketchEvery) == 0 {
			h := fnv.New64a()
			h.Write(b[i : i+sketchWindow])
			all = append(all, h.Sum64())
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	return all[:min(len(all), sketchFeatures)]
}

// build reads all old files.
func (s *sketches) build(ctx context.Context, olds *inventory) {
	s.index = make(map[uint64][]int32)
	for i := range olds.entries {
		e := &olds.entries[i]
		if !e.isRegular() || e.link >= 0 || e.size < 1<<10 || e.size > maxObject {
			continue
		}
		if s.err = ctx.Err(); s.err != nil {
			return
		}
		b, err := olds.content(i)
		if err != nil {
			s.err = err
			return
		}
		for _, f := range s.features(b) {
			if l := s.index[f]; len(l) < sketchCommon {
				s.index[f] = append(l, int32(i))
			}
		}
	}
}

// alike returns the n old files that share most features with a content.
func (s *sketches) alike(ctx context.Context, olds *inventory, b []byte, n int) ([]int, error) {
	s.once.Do(func() { s.build(ctx, olds) })
	if s.err != nil {
		return nil, s.err
	}
	count := make(map[int32]int)
	for _, f := range s.features(b) {
		for _, i := range s.index[f] {
			count[i]++
		}
	}
	var found []int
	for i, c := range count {
		if c >= 2 {
			found = append(found, int(i))
		}
	}
	sort.Slice(found, func(a, b int) bool {
		ca, cb := count[int32(found[a])], count[int32(found[b])]
		return ca > cb || ca == cb && found[a] < found[b]
	})
	return found[:min(n, len(found))], nil
}
