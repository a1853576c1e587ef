package overlay

import (
	"slices"
	"time"
)

// Commit makes the plan's layers the union's. It waits until no change is under
// way, unless the union is frozen already, and returns what changed and for how
// long requests had to wait.
func (p *Plan) Commit(frozen bool) (Changes, time.Duration, error) {
	u := p.u
	start := time.Now()
	if !frozen {
		u.gate.Lock()
		defer u.gate.Unlock()
	}
	u.tree.Lock()
	if _, err := p.catchUp(true); err != nil {
		u.tree.Unlock()
		p.Abort()
		return Changes{}, 0, err
	}
	last := u.cur
	c := p.apply()
	u.tree.Unlock()
	paused := time.Since(start)
	u.retire(last, p.next)
	return c, paused, nil
}

// apply changes the table and swaps the stack.
// Preconditions: gate and tree held alone.
func (p *Plan) apply() Changes {
	u := p.u
	t := &u.tab
	t.mu.Lock()
	defer u.unlockTable()
	t.journal = nil
	c := Changes{Nodes: t.count, Added: p.stillMissing()}
	// What is taken out must remember where it was; paths of what lies below it
	// are made of its name, so they come first. Of several names of a file the
	// first goes last: another one would take its place in the node, and not be
	// found here any more.
	for _, first := range []bool{false, true} {
		for _, l := range p.order {
			if p.gone[l] && l.parent != nil && l.node.id != 0 && (l == &l.node.first) == first {
				p.unname(l, &c)
			}
		}
	}
	for n, r := range p.keep {
		if n.id != 0 && !n.nameless() {
			p.revise(n, r, &c)
		}
	}
	u.cur = p.next
	state, claim := rootState(u.cur)
	u.root.claim = claim
	u.root.set(state, placeBits&^state)
	return c
}

// stillMissing returns the names that appear without those that somebody made
// since, and that lead to the same object in the next stack.
// Preconditions: table locked.
func (p *Plan) stillMissing() []NameRef {
	t := &p.u.tab
	return slices.DeleteFunc(p.names, func(r NameRef) bool {
		slot := r.Parent & (1<<32 - 1)
		if slot >= uint64(len(t.ids)) || t.ids[slot] == nil || t.ids[slot].id != r.Parent {
			return true // its directory is gone
		}
		l := t.names[linkKey{t.ids[slot], r.Name}]
		return l != nil && !p.gone[l] || t.heldLocked(t.ids[slot], r.Name) != nil
	})
}

// unname takes a name from its node, which is detached with the last one.
func (p *Plan) unname(l *link, c *Changes) {
	u, n := p.u, l.node
	ref := NameRef{Parent: l.parent.id, Child: n.id, Name: l.name}
	path := joinPath(pathOf(l.parent), l.name)
	if p.busy[path] {
		u.tab.hold(l)
	} else {
		c.Gone = append(c.Gone, ref)
	}
	if l != &n.first || n.first.alias != nil {
		u.tab.dropNameLocked(l)
		return
	}
	w := where{layer: u.layerOf(n, n.top()), path: path}
	u.tab.dropNameLocked(l)
	if w.layer == nil {
		return
	}
	u.detach(n, w.layer, w.path)
	u.fds.drop(n, upper)
	c.Attrs = append(c.Attrs, n.id)
	if n.IsDir() {
		c.Content = append(c.Content, n.id)
	}
}

// revise gives a node that stays its new place.
func (p *Plan) revise(n *Node, r *revised, c *Changes) {
	n.claim = r.claim
	if n.ino != r.ino {
		if n.is(linked) && p.u.tab.links[n.ino] == n {
			delete(p.u.tab.links, n.ino)
			p.u.tab.links[r.ino] = n
		}
		n.ino = r.ino
	}
	off := placeBits &^ r.state
	if r.upper {
		off |= defACL | defACLKnown | impure | impureKnown
	}
	n.set(r.state, off)
	if r.content {
		n.version.Add(1)
		c.Content = append(c.Content, n.id)
	}
	if r.attrs {
		n.set(0, noXattrs)
		c.Attrs = append(c.Attrs, n.id)
	}
}

// retire gives back the last stack's layers and closes idle descriptors in them.
func (u *Union) retire(last, next *stack) {
	u.retired.mu.Lock()
	for _, l := range append([]*layer{last.base}, last.uppers...) {
		if !next.has(l) {
			u.retired.m[l] = l.name
		}
	}
	u.retired.mu.Unlock()
	u.fds.sweep(func(h *handle) bool { return next.has(h.layer) })
	last.drop(u.layerGone)
}

func (s *stack) has(l *layer) bool {
	if l == s.base {
		return true
	}
	for _, o := range s.uppers {
		if o == l {
			return true
		}
	}
	return false
}
