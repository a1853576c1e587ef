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
	Path string // from the view's root
}

// hold lets a name lead to what it leads to now. One that is held already leads to what the kernel
// knows by it.
// Preconditions: table locked.
func (t *table) hold(l *link) {
	k := linkKey{l.parent, l.name}
	if n := t.held[k]; n != nil && n.id != 0 {
		return
	}
	if t.held == nil {
		t.held = map[linkKey]*Node{}
	}
	t.held[k] = l.node
}

// heldLocked returns the node that a held name leads to, nil if it is not held, or nobody knows the node any more.
func (t *table) heldLocked(dir *Node, name string) *Node {
	if len(t.held) == 0 {
		return nil
	}
	n := t.held[linkKey{dir, name}]
	if n == nil || n.id == 0 || n.lookups == 0 {
		return nil
	}
	return n
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
	u.tree.RLock()
	defer u.tree.RUnlock()
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	var all []HeldName
	for k, n := range u.tab.held {
		if k.parent.id == 0 || n.id == 0 {
			delete(u.tab.held, k) // the kernel has forgotten it
			continue
		}
		all = append(all, HeldName{NameRef{Parent: k.parent.id, Child: n.id, Name: k.name}, u.tab.heldPath(k)})
	}
	slices.SortFunc(all, func(a, b HeldName) int {
		return cmp.Or(-cmp.Compare(strings.Count(a.Path, "/"), strings.Count(b.Path, "/")), cmp.Compare(a.Path, b.Path))
	})
	return all
}

// heldPath returns where the kernel finds a held name: below another one if the directory was taken away, too.
// Directories above may have been renamed meanwhile. It is "" if nothing leads there any more.
// Preconditions: tree held, table locked.
func (t *table) heldPath(k linkKey) string {
	if !k.parent.nameless() {
		return joinPath(pathOf(k.parent), k.name)
	}
	for above, n := range t.held {
		if n == k.parent {
			if p := t.heldPath(above); p != "" {
				return joinPath(p, k.name)
			}
		}
	}
	return ""
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
