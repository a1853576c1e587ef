package overlay

import (
	"context"
	"slices"
)

// Follow makes a plan that has waited ready for Commit: it looks at what changed
// since. c are the layers to show in the end: those that the plan was prepared for,
// but in the place of an overlay there may be a snapshot of it (Upper.Snapshot),
// which did not exist then. If c or busy are anything else, or the union shows other
// layers than it did, Follow returns false, and the plan can only be given up.
//
// So the search for differences, which takes long, comes before the freeze in which
// overlays are snapshotted, and only this comes into it.
func (p *Plan) Follow(ctx context.Context, c Config, busy map[string]bool) (bool, error) {
	if !p.fits(&c) || !sameKeys(p.busy, busy) {
		return false, nil
	}
	p.ctx = ctx
	for i := range c.Uppers {
		if l := p.next.uppers[i]; !l.sub(&c.Uppers[i]) {
			if err := p.next.exchange(l, &c.Uppers[i]); err != nil {
				return false, err
			}
		}
	}
	return true, p.settle()
}

// fits says whether c differs from what was prepared by snapshots at most.
func (p *Plan) fits(c *Config) bool {
	u := p.u
	u.tree.RLock()
	cur := u.cur
	u.tree.RUnlock()
	if cur != p.last || c.Base == nil || !p.next.base.same(c.Base) || len(c.Uppers) != len(p.shape) {
		return false
	}
	for i := range c.Uppers {
		is, was, l := &c.Uppers[i], &p.shape[i], p.next.uppers[i]
		if is.Name != was.Name || is.ReadOnly != was.ReadOnly || !slices.Equal(is.Paths, was.Paths) {
			return false
		}
		if !l.sub(is) && !(is.Snapshot && cur.has(l)) {
			return false
		}
	}
	return true
}

// exchange puts a snapshot in the place of the layer that it was taken of.
// Preconditions: nobody else knows the stack yet.
func (s *stack) exchange(l *layer, u *Upper) error {
	snap, err := newUpper(u)
	if err != nil {
		return &ConfigError{u.Name, "cannot open " + u.Dir.Name() + ": " + err.Error()}
	}
	snap.num = l.num
	snap.retain()
	for _, list := range [][]*layer{s.uppers, s.up} {
		for i := range list {
			if list[i] == l {
				list[i] = snap
			}
		}
	}
	s.trie.exchange(l, snap)
	l.release() // the stack that is shown uses it, so this was not the last use
	return nil
}

func (t *trie) exchange(old, l *layer) {
	if t.from == old {
		t.from = l
	}
	for _, k := range t.kids {
		k.exchange(old, l)
	}
}

func sameKeys(a, b map[string]bool) bool {
	if len(a) != len(b) {
		return false
	}
	for k := range a {
		if !b[k] {
			return false
		}
	}
	return true
}
