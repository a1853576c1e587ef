package delta

import (
	"bytes"
	"context"
	"sort"

	"github.com/btrovl/btrovl/delta/redeflate"
)

// An image (squashfs) travels as what is compressed again does (methodRestore), with two sources: what is inside of the
// old image, and the old image as it is. Most blocks of the new one stand there, compressed, and are copied; what is
// inside of the others is patched from what is inside of those that are gone.
//
//	sources    inside of the old image │ the old image
//	plain      superblock │ kept blocks … │ content │ kept blocks … │ content │ tables
//	made from  inside       old image       inside    old image       inside
//
// The device expands no more of the old image than is read (redeflate.Image), and compresses
// no more of the new one than is new.

// image reports whether a record is such an image. Where it is not, what its first source expands to is held in a file.
func (r *record) image() bool {
	return r.method == methodRestore && len(r.sources) == 2 && r.sources[0].expanded && r.sources[1] == (source{index: r.sources[0].index, new: r.sources[0].new})
}

// imageIn looks whether a file is an image.
func imageIn(inv *inventory, i int) bool {
	f, _, err := openRegular(inv.root, inv.entries[i].path)
	if err != nil {
		return false // reading it will fail again, and be reported
	}
	defer f.Close()
	var head [96]byte
	_, err = f.ReadAt(head[:], 0)
	return err == nil && redeflate.IsImage(head[:])
}

// maxImageRest bounds what is held of an image: what is new in it, and what is gone from the old one.
const maxImageRest = 512 << 20

// image looks whether a file is best made as an image.
func (m *maker) image(ctx context.Context, data []byte, cands []candidate, f *made) error {
	if f.info.Method != "" || m.o.without(stepUnpack) || !redeflate.IsImage(data) {
		return nil
	}
	for _, c := range cands {
		if !redeflate.IsImage(c.data) {
			continue
		}
		u, err := redeflate.UnpackImage(data, redeflate.Options{Old: c.data, MaxPlain: min(maxImageRest, m.o.Work/6), Memory: restoreLimit(m.o.Memory)})
		if err != nil {
			continue // another way is found
		}
		if need, err := redeflate.Memory(u.Recipe, 2); err != nil || need > restoreLimit(m.o.Memory) {
			continue
		}
		return m.imageAfter(ctx, c, u, f)
	}
	return nil
}

// imageAfter makes an image of an old one.
func (m *maker) imageAfter(ctx context.Context, c candidate, u *redeflate.UnpackedImage, f *made) error {
	inside, err := redeflate.OpenImage(bytes.NewReader(c.data), int64(len(c.data)))
	if err != nil {
		return err
	}
	patch, err := diffActions(ctx, u.Rest, sourcesOf(u.Old))
	if err != nil {
		return err
	}
	places := newPartMap(u.Parts)
	patch = nearby(patch, u.Rest, places, inside)
	var actions []action
	at := int64(0) // in Rest
	take := func(until int64) {
		var next []action
		next, patch = split(patch, until-at)
		at = until
		for _, a := range next {
			actions = places.place(actions, a)
		}
	}
	for _, k := range u.Kept {
		take(k.Offset)
		actions = append(actions, action{op: op{kind: opCopy, length: k.Length, pos: inside.Size() + k.Old}})
	}
	take(int64(len(u.Rest)))
	f.rec.method, f.rec.cloned = methodRestore, false
	f.rec.sources = []source{{index: c.index, expanded: true}, {index: c.index}}
	f.rec.plain, f.rec.recipe = u.Plain(), int64(len(u.Recipe))
	f.actions, f.recipe, f.written = actions, u.Recipe, f.rec.size
	f.info.Method, f.info.Source, f.info.Why = methodNames[methodRestore], m.olds.entries[c.index].path, c.why
	f.info.Bytes = m.cost(actions) + int64(len(u.Recipe))
	return nil
}

// farLeast is how long a run must be that is worth expanding a block for that the device does not hold any more: so, P7's
// blocks are expanded 1.3 times, not five times, and its bundle is a thousand bytes larger.
const farLeast = 32

// nearby replaces short runs from blocks that a device does not hold by their bytes.
func nearby(patch []action, new []byte, places *partMap, old *redeflate.Image) []action {
	out := patch[:0]
	held := make(map[int]int) // blocks, and when they were read
	at := int64(0)
	for clock, a := range patch {
		begin := at
		at += a.length
		blocks := places.blocks(a, old)
		missing := 0
		for _, b := range blocks {
			if _, ok := held[b]; !ok {
				missing++
			}
		}
		if missing > 0 && a.length < farLeast {
			if n := len(out) - 1; n >= 0 && out[n].kind == opInsert {
				out[n].length += a.length
				out[n].data = new[at-out[n].length : at]
			} else {
				out = append(out, action{op: op{kind: opInsert, length: a.length}, data: new[begin:at]})
			}
			continue
		}
		for _, b := range blocks {
			if _, ok := held[b]; !ok && len(held) >= old.Holds() {
				oldest := b
				for k, used := range held {
					if oldest == b || used < held[oldest] {
						oldest = k
					}
				}
				delete(held, oldest)
			}
			held[b] = clock
		}
		out = append(out, a)
	}
	return out
}

// blocks returns the blocks of the image that an action reads.
func (m *partMap) blocks(a action, old *redeflate.Image) (blocks []int) {
	if a.kind != opCopy && a.kind != opAdd {
		return nil
	}
	a.data = nil
	for _, p := range m.place(nil, a) {
		for at := p.pos; at < p.pos+p.length; {
			b, end := old.Block(at)
			if b >= 0 {
				blocks = append(blocks, b)
			}
			at = end
		}
	}
	return blocks
}

// A partMap is where the parts of an old image, one behind the other, are in what is inside of it.
type partMap struct {
	parts []redeflate.Part
	ends  []int64 // of each, in the row
}

func newPartMap(parts []redeflate.Part) *partMap {
	m := &partMap{parts: parts}
	end := int64(0)
	for _, p := range parts {
		end += p.Length
		m.ends = append(m.ends, end)
	}
	return m
}

// place appends an action on the row as actions on the inside.
func (m *partMap) place(to []action, a action) []action {
	if a.kind != opCopy && a.kind != opAdd {
		return append(to, a)
	}
	i := sort.Search(len(m.ends), func(i int) bool { return m.ends[i] > a.pos })
	for ; a.length > 0; i++ {
		n := min(a.length, m.ends[i]-a.pos)
		p := a
		p.length, p.pos = n, m.parts[i].Offset+a.pos-(m.ends[i]-m.parts[i].Length)
		if a.data != nil {
			p.data = a.data[:n:n]
		}
		to = append(to, p)
		a = a.cut(n)
	}
	return to
}
