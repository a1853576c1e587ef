package overlay

import (
	"cmp"
	"slices"
	"strings"
)

// HeldName is a name that a switch took away or gave to another object while something was
// mounted on it, or below it. The kernel keeps it, because to drop it would detach the mount; so it goes on
// leading to the old object, for lookups and in lists, too, until [Union.ReleaseName].
type HeldName struct {
	NameRef
	Path string // from the view's root, when the name was taken
}

type held struct {
	node *Node
	path string
}

// hold lets a name lead to what it leads to now. One that is held already leads to what the kernel
// knows by it.
// Preconditions: table locked.
func (t *table) hold(l *link, path string) {
	k := linkKey{l.parent, l.name}
	if h, ok := t.held[k]; ok && h.node.id != 0 {
		return
	}
	if t.held == nil {
		t.held = map[linkKey]held{}
	}
	t.held[k] = held{l.node, path}
}

// heldLocked returns the node that a held name leads to, nil if it is not held, or nobody knows the node any more.
func (t *table) heldLocked(dir *Node, name string) *Node {
	if len(t.held) == 0 {
		return nil
	}
	h, ok := t.held[linkKey{dir, name}]
	if !ok || h.node.id == 0 || h.node.lookups == 0 {
		return nil
	}
	return h.node
}

// lookHeld is a lookup of a held name.
// Preconditions: tree held.
func (u *Union) lookHeld(dir *Node, name string, a *Attr) (*Node, error) {
	u.tab.mu.Lock()
	n := u.tab.heldLocked(dir, name)
	if n != nil {
		n.lookups++
	}
	u.tab.mu.Unlock()
	if n == nil {
		return nil, nil
	}
	if err := u.getattr(n, a); err != nil {
		u.Forget(n, 1)
		return nil, err
	}
	return n, nil
}

// HeldNames returns the held names, those that lie deepest first.
func (u *Union) HeldNames() []HeldName {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	var all []HeldName
	for k, h := range u.tab.held {
		if k.parent.id == 0 || h.node.id == 0 {
			delete(u.tab.held, k) // the kernel has forgotten it
			continue
		}
		all = append(all, HeldName{NameRef{Parent: k.parent.id, Child: h.node.id, Name: k.name}, h.path})
	}
	slices.SortFunc(all, func(a, b HeldName) int {
		return cmp.Or(-cmp.Compare(strings.Count(a.Path, "/"), strings.Count(b.Path, "/")), cmp.Compare(a.Path, b.Path))
	})
	return all
}

// ReleaseName lets a name lead to what the layers have, because nothing is mounted there any more, or because it
// was removed or became another object's. It says whether it was held. The kernel must be told.
func (u *Union) ReleaseName(dir *Node, name string) bool {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	k := linkKey{dir, name}
	_, ok := u.tab.held[k]
	delete(u.tab.held, k)
	return ok
}
