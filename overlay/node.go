package overlay

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// side is one of the two places where an object of the union may lie.
type side uint8

const (
	upper side = iota
	lower
	direct // the top side once more, for reads past the page cache
)

// What is known of a node, in Node.state.
const (
	hasUpper    uint32 = 1 << iota // it lies in the upper of its claim
	hasLower                       // it lies in the base, and shows (directories: is merged in)
	synth                          // a directory that only leads to a claim: its attributes come from that claim's upper
	onTrie                         // a claim starts at or below it
	detached                       // it has no name any more; it lies at where.path of where.layer
	anonymous                      // it has no name any more; its pinned descriptor is all there is of it
	linked                         // in table.links
	setID                          // may have set-id bits
	multi                          // its base file has several names
	defACL                         // (directories) has a default ACL …
	defACLKnown                    // … if this is set
	impure                         // (directories) its upper holds copied-up objects …
	impureKnown                    // … if this is set
	noCaps                         // (files) has no security.capability: the kernel asks before every first write
	capsTaken                      // (files) … and had until a moment ago
	noXattrs                       // has no extended attributes that show
	listed                         // (directories) its list was read
	fsynced                        // by somebody who has it open
	walked                         // (directories) somebody looked a name up since a part of the list was sent without nodes
)

// Node is an object that somebody (the kernel) knows: it has one identity, and
// its pages and attributes are cached, for as long as it is known. A node has
// one name, several (hard links), or none (deleted while open, O_TMPFILE, or
// replaced by a switch).
type Node struct {
	id    uint64 // slot in table.ids, and the slot's generation above
	ino   uint64 // inode number that the view shows
	state atomic.Uint32
	typ   uint16 // S_IFMT bits
	claim uint16 // claim that it belongs to, 0 if none; changes under tree.Lock only

	// mu is held while the object is copied up, deleted, opened by name or
	// listed. A child's comes before its parent's.
	mu sync.Mutex

	version atomic.Uint32 // (directories) counts changes of its list of names

	h [3]*handle // guarded by fdCache.mu

	// Guarded by table.mu; parent and name of first change under tree.Lock only,
	// or with mu held.
	lookups uint64
	first   link
	kids    *link

	ext *ext // what few nodes have; guarded by mu
}

type ext struct {
	listing *listing // (directories) names as last read
	where   where    // if detached
}

// where is the last place of a detached node. The base does not change and an
// upper that a switch took away is not written any more, so a path is enough
// and costs no descriptor.
type where struct {
	layer *layer
	path  string
}

// link is a name of a node.
type link struct {
	name       string
	parent     *Node
	node       *Node
	prev, next *link // other names in parent
	alias      *link // next name of node
}

func (n *Node) ID() uint64       { return n.id }
func (n *Node) Ino() uint64      { return n.ino }
func (n *Node) Type() uint32     { return uint32(n.typ) }
func (n *Node) IsDir() bool      { return n.typ == unix.S_IFDIR }
func (n *Node) is(s uint32) bool { return n.state.Load()&s != 0 }

func (n *Node) set(on, off uint32) {
	for {
		old := n.state.Load()
		if n.state.CompareAndSwap(old, old&^off|on) {
			return
		}
	}
}

func (n *Node) extLocked() *ext {
	if n.ext == nil {
		n.ext = &ext{}
	}
	return n.ext
}

// nameless says that no path leads to the node.
func (n *Node) nameless() bool { return n.is(detached | anonymous) }

const inoLayerBits = 7

// viewIno makes the inode number that the view shows: the layer's number lies in
// the low bits, so that no two layers' files share one and numbers stay below
// 2^32 (for programs with a 32-bit ino_t) up to 2^25 files in a layer.
func viewIno(ino uint64, layer uint8) uint64 { return ino<<inoLayerBits | uint64(layer) }

// fromBase says that an object with this number was copied up from the base.
func fromBase(ino uint64) bool { return ino&(1<<inoLayerBits-1) == 0 }

type linkKey struct {
	parent *Node
	name   string
}

// table knows all nodes. Its mutex is held for moments, never over a system call.
type table struct {
	mu    sync.Mutex
	ids   []*Node
	gens  []uint32
	free  []uint32
	names map[linkKey]*link
	held  map[linkKey]*Node // names that lead elsewhere for the sake of a mount
	links map[uint64]*Node  // by inode number: nodes that have or had several names
	count int
	dead  []*Node // freed, with descriptors still to be closed

	// journal collects the nodes that changed while a switch is prepared, true
	// for directories that moved; nil outside of it.
	journal map[*Node]bool
}

func (t *table) init(root *Node) {
	t.ids = []*Node{nil, root}
	t.gens = []uint32{0, 0}
	t.names = map[linkKey]*link{}
	t.links = map[uint64]*Node{}
	root.id, root.lookups = 1, 1
	t.count = 1
}

// Node returns the node with an id that Lookup or a create call gave out, nil
// if there is none.
func (u *Union) Node(id uint64) *Node {
	t := &u.tab
	t.mu.Lock()
	defer t.mu.Unlock()
	slot := id & (1<<32 - 1)
	if slot >= uint64(len(t.ids)) || t.ids[slot] == nil || t.ids[slot].id != id {
		return nil
	}
	return t.ids[slot]
}

// newLocked makes a node known, with one lookup.
func (t *table) newLocked(n *Node) *Node {
	var slot uint32
	if k := len(t.free); k > 0 {
		slot, t.free = t.free[k-1], t.free[:k-1]
	} else {
		slot = uint32(len(t.ids))
		t.ids, t.gens = append(t.ids, nil), append(t.gens, 0)
	}
	n.id = uint64(t.gens[slot])<<32 | uint64(slot)
	t.ids[slot] = n
	t.count++
	n.lookups = 1
	return n
}

func (t *table) noteLocked(n *Node) {
	if t.journal != nil {
		t.journal[n] = t.journal[n]
	}
}

func (t *table) noteMovedLocked(n *Node) {
	if t.journal != nil {
		t.journal[n] = true
	}
}

// addNameLocked gives the node a (further) name.
func (t *table) addNameLocked(n, parent *Node, name string) {
	l := &n.first
	if l.parent != nil {
		l = &link{alias: n.first.alias}
		n.first.alias = l
	}
	l.name, l.parent, l.node = name, parent, n
	t.insertLocked(l)
	t.noteLocked(n)
}

func (t *table) insertLocked(l *link) {
	t.names[linkKey{l.parent, l.name}] = l
	l.prev, l.next = nil, l.parent.kids
	if l.next != nil {
		l.next.prev = l
	}
	l.parent.kids = l
}

func (t *table) takeLocked(l *link) {
	delete(t.names, linkKey{l.parent, l.name})
	if l.prev != nil {
		l.prev.next = l.next
	} else {
		l.parent.kids = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	}
	l.prev, l.next = nil, nil
}

// dropNameLocked takes a name from its node. If it was the last, first keeps it
// for the record, but first.parent is nil.
func (t *table) dropNameLocked(l *link) {
	n, parent := l.node, l.parent
	t.takeLocked(l)
	if l == &n.first {
		if a := n.first.alias; a != nil {
			t.takeLocked(a)
			n.first.name, n.first.parent, n.first.alias = a.name, a.parent, a.alias
			t.insertLocked(&n.first)
			a.parent = nil
		} else {
			n.first.parent = nil
		}
	} else {
		for p := &n.first; p.alias != nil; p = p.alias {
			if p.alias == l {
				p.alias = l.alias
				break
			}
		}
		l.parent = nil
	}
	t.noteLocked(n)
	t.noteLocked(parent) // the name may show something else in the next stack
	t.reapLocked(parent)
}

// reapLocked frees a node that nobody knows: not the kernel, and no child.
func (t *table) reapLocked(n *Node) {
	for n != nil && n.lookups == 0 && n.kids == nil && n.id != 1 && n.id != 0 {
		slot := uint32(n.id)
		t.ids[slot] = nil
		t.gens[slot]++
		t.free = append(t.free, slot)
		t.count--
		if n.is(linked) && t.links[n.ino] == n {
			delete(t.links, n.ino)
		}
		delete(t.journal, n)
		n.id = 0
		t.dead = append(t.dead, n)
		parent := n.first.parent
		for parent != nil && n.first.alias != nil {
			a := n.first.alias
			n.first.alias = a.alias
			t.takeLocked(a)
			if a.parent != parent {
				t.reapLocked(a.parent)
			}
		}
		if parent != nil {
			t.takeLocked(&n.first)
			n.first.parent = nil
		}
		n = parent
	}
}

// Forget takes back count lookups; at 0 the node is gone.
func (u *Union) Forget(n *Node, count uint64) {
	t := &u.tab
	t.mu.Lock()
	if n.lookups < count {
		count = n.lookups
	}
	n.lookups -= count
	t.reapLocked(n)
	u.unlockTable()
}

// unlockTable unlocks the table and closes what nodes had that were freed.
func (u *Union) unlockTable() {
	dead := u.tab.dead
	u.tab.dead = nil
	u.tab.mu.Unlock()
	for _, n := range dead {
		u.fds.forget(n)
		u.lists.drop(n)
		u.letGo(n)
	}
}

// letGo gives up a detached node's use of its layer. Nobody uses the node any more.
func (u *Union) letGo(n *Node) {
	if n.is(detached) && n.ext != nil && n.ext.where.layer != nil {
		l := n.ext.where.layer
		n.ext.where.layer = nil
		u.detachedCount.Add(-1)
		u.releaseLayer(l)
	}
}

// pathOf returns the node's path from the view's root.
// Preconditions: tree held, and the node has a name.
func pathOf(n *Node) string {
	size := 0
	for m := n; m.first.parent != nil; m = m.first.parent {
		size += len(m.first.name) + 1
	}
	if size == 0 {
		return ""
	}
	buf := make([]byte, size)
	i := size
	for m := n; m.first.parent != nil; m = m.first.parent {
		i -= len(m.first.name)
		copy(buf[i:], m.first.name)
		i--
		buf[i] = '/'
	}
	return string(buf[1:])
}

// Parent returns the directory of a node's name, nil if it has none.
func (u *Union) Parent(n *Node) *Node {
	u.tree.RLock()
	defer u.tree.RUnlock()
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	if n == u.root {
		return n
	}
	return n.first.parent
}

// Remember counts one more lookup of a node.
func (u *Union) Remember(n *Node) {
	u.tab.mu.Lock()
	n.lookups++
	u.tab.mu.Unlock()
}

// Nameless says that an object was deleted, or replaced by a switch.
func (u *Union) Nameless(n *Node) bool { return n.nameless() }
