package overlay

// What a list with nodes costs is a stat for each entry, and a node in the kernel's
// memory and ours. A walk would ask for each by a lookup of its own, which costs four
// times as much; a program that wants names only never asks. In a directory of
// ordinary size the nodes come with the list. In a larger one they come with its first
// part, and with a further one if somebody looked a name up meanwhile: one entry in
// probeEvery comes without its node, so that whoever wants all must ask.
const (
	plusMax    = 4096
	probeEvery = 64
	plusBatch  = 16 // entries for which the tree is locked once
)

// ReadDirPlus is ReadDir that also finds the entries' nodes, where that is likely to
// save lookups: after emit took an entry, fill may be called with its node, which
// counts one more lookup. It is not called for a node that is known already: whoever
// knows it has its attributes.
func (u *Union) ReadDirPlus(n *Node, cookie uint64, emit func(*Entry) bool, fill func(*Node, *Attr)) error {
	l, i, err := u.start(n, cookie, emit)
	if err != nil {
		return err
	}
	if cookie == 0 {
		u.walking(n, l)
	}
	small := len(l.ents) <= plusMax
	plus := small || cookie == 0 || n.is(walked)
	n.set(0, walked)
	for more := true; more && i < len(l.ents); {
		if !plus {
			e := l.entry(i)
			more = emit(&e)
			i++
			continue
		}
		more, err = u.plusBatch(n, l, i, small, emit, fill)
		i += plusBatch
	}
	return err
}

// plusBatch emits some entries, with nodes.
func (u *Union) plusBatch(n *Node, l *listing, i int, all bool, emit func(*Entry) bool, fill func(*Node, *Attr)) (more bool, err error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	v, held, err := u.viewDir(n)
	defer u.releaseBoth(held)
	if err != nil {
		return false, err
	}
	for end := min(i+plusBatch, len(l.ents)); i < end; i++ {
		e := l.entry(i)
		if !emit(&e) {
			return false, nil
		}
		if !all && i%probeEvery == probeEvery-1 || u.isKnown(n, e.Name) {
			continue
		}
		for {
			seq := u.copies.Load() // see lookup
			var f found
			if v.look(e.Name, &f) != nil {
				break // removed meanwhile, or a lookup will tell why not
			}
			if k := u.insert(n, e.Name, &f, seq); k != nil {
				fill(k, &f.st)
				break
			}
		}
	}
	return true, nil
}

// isKnown says that the kernel knows what a name leads to, or is not to learn it yet.
func (u *Union) isKnown(dir *Node, name string) bool {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	l := u.tab.names[linkKey{dir, name}]
	return l != nil && l.node.lookups > 0 || u.tab.heldLocked(dir, name) != nil
}
