package overlay

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Plan is a switch to other layers, prepared while the view goes on.
//
// What must be done is found by asking of every name that a known node has what
// the next stack shows there. The kernel can hold nothing of a directory that it
// does not know, so no whole tree is compared. Bases, and the subvolumes of one
// overlay, are snapshots of one another: an object with the same inode number and
// change time is the same object. (With unrelated bases none is, and all that is
// known of the base is exchanged: right, but slower.)
//
//	Prepare   new layers; visit all known names       (nothing waits)
//	          visit again what changed meanwhile       (until that is little)
//	Follow    (for a plan that waited) visit what changed; snapshots come in
//	Commit    tree locked alone: visit what changed since, apply, swap the stack
//	Changes   what the kernel must be told            (nothing waits)
type Plan struct {
	u     *Union
	ctx   context.Context
	last  *stack // shown when the plan was made
	next  *stack
	shape []Upper // what next was made of
	busy  map[string]bool

	gone  map[*link]bool     // names that lead elsewhere from now on
	order []*link            // keys of gone, children before parents
	keep  map[*Node]*revised // nodes that stay but lie elsewhere, or show something else
	names []NameRef          // names that appear
}

// revised is what becomes of a node that stays.
type revised struct {
	state   uint32 // hasUpper, hasLower, synth, onTrie, multi
	claim   uint16
	ino     uint64
	attrs   bool // attributes may differ
	content bool // content (the list of names, of a directory) may differ
	upper   bool // lies in another upper
}

const placeBits = hasUpper | hasLower | synth | onTrie | multi

// NameRef is a name in a directory.
type NameRef struct {
	Parent uint64 // node id
	Child  uint64 // node that it led to, 0 if none did
	Name   string
}

// Changes are what a switch changed of what the kernel knows.
type Changes struct {
	Nodes   int       // known at that moment
	Gone    []NameRef // lead elsewhere or nowhere; children before parents
	Added   []NameRef // may have been looked up in vain before
	Content []uint64  // nodes whose content changed: directories, and files below a mount
	Attrs   []uint64  // nodes whose attributes changed
}

// Prepare opens the next layers and finds out what differs. busy are the paths of
// mount points below the view and of all above them: their names are left alone,
// since invalidating one would detach what is mounted there. Commit or Abort must
// follow; one plan at a time.
func (u *Union) Prepare(ctx context.Context, c Config, busy map[string]bool) (*Plan, error) {
	next, err := newStack(c, u.ids, u.cur)
	if err != nil {
		return nil, err
	}
	p := &Plan{u: u, ctx: ctx, last: u.cur, next: next, shape: slices.Clone(c.Uppers), busy: busy,
		gone: map[*link]bool{}, keep: map[*Node]*revised{}}
	u.tab.mu.Lock()
	u.tab.journal = map[*Node]bool{}
	u.tab.mu.Unlock()
	if err = p.visitAll(); err == nil {
		err = p.settle()
	}
	if err != nil {
		p.Abort()
		return nil, err
	}
	return p, nil
}

// settle visits what changed until little changes meanwhile.
func (p *Plan) settle() error {
	for range 20 {
		if n, err := p.catchUp(false); err != nil || n < 32 {
			return err
		}
	}
	return nil
}

// Abort gives a plan up.
func (p *Plan) Abort() {
	p.u.tab.mu.Lock()
	p.u.tab.journal = nil
	p.u.tab.mu.Unlock()
	p.next.drop(nil)
}

func (p *Plan) visitAll() error {
	u := p.u
	u.tree.RLock()
	defer u.tree.RUnlock()
	old, next := rootView(u.cur), rootView(p.next)
	defer old.close()
	defer next.close()
	p.decideDir(u.root, &old, &next, u.root.ino)
	return p.visit(u.root, "", &old, &next)
}

// rootView opens a stack's root.
func rootView(s *stack) viewOf {
	v := viewOf{stack: s, fds: [2]int{-1, -1}}
	v.state, v.claim = rootState(s)
	v.open(nil, "", "")
	return v
}

// open opens a directory's sides, by name in its parent's view or by path.
func (v *viewOf) open(parent *viewOf, name, path string) {
	if v.state&onTrie != 0 {
		v.trie = v.stack.find(path)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	sides := [2]struct {
		bit  uint32
		l    *layer
		same bool
	}{
		{hasUpper, v.stack.layer(v.claim), parent != nil && parent.claim == v.claim},
		{hasLower, v.stack.base, parent != nil},
	}
	for s, d := range sides {
		v.fds[s] = -1
		if v.state&d.bit == 0 || d.l == nil {
			continue
		}
		fd, err := -1, error(unix.ENOENT)
		if d.same && parent.fds[s] >= 0 {
			fd, err = openBeneath(parent.fds[s], name, flags, 0)
		} else {
			fd, err = d.l.open(path, flags, 0)
		}
		if err == nil {
			v.fds[s] = fd
		}
	}
	v.impure = func() bool { return v.fds[upper] < 0 || impureFD(v.fds[upper]) }
}

func (v *viewOf) close() {
	closeFD(v.fds[0])
	closeFD(v.fds[1])
}

// nameOf is a name that a node has in a directory.
type nameOf struct {
	l    *link
	n    *Node
	name string
}

func (u *Union) namesIn(dir *Node) []nameOf {
	u.tab.mu.Lock()
	defer u.tab.mu.Unlock()
	var out []nameOf
	for l := dir.kids; l != nil; l = l.next {
		out = append(out, nameOf{l, l.node, l.name})
	}
	return out
}

// visit decides about all names below a directory that stays.
// Preconditions: tree held.
func (p *Plan) visit(dir *Node, path string, old, next *viewOf) error {
	for _, k := range p.u.namesIn(dir) {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		child := joinPath(path, k.name)
		f, stays := p.decide(k, child, old, next)
		if !k.n.IsDir() {
			continue
		}
		if !stays {
			p.goneBelow(k.n)
			p.loses(k.l)
			continue
		}
		o := viewOf{stack: old.stack, state: k.n.state.Load(), claim: k.n.claim}
		o.open(old, k.name, child)
		v := viewOf{stack: next.stack, state: f.state, claim: f.claim}
		v.open(next, k.name, child)
		p.decideDir(k.n, &o, &v, f.st.Ino)
		err := p.visit(k.n, child, &o, &v)
		o.close()
		v.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// goneBelow takes all names below a directory that goes.
func (p *Plan) goneBelow(dir *Node) {
	for _, k := range p.u.namesIn(dir) {
		if k.n.IsDir() {
			p.goneBelow(k.n)
		}
		p.loses(k.l)
	}
}

func (p *Plan) loses(l *link) {
	if !p.gone[l] {
		p.gone[l] = true
		p.order = append(p.order, l)
	}
}

// decide says whether a name leads to the same node in the next stack. A
// directory that goes is left to the caller.
func (p *Plan) decide(k nameOf, path string, old, next *viewOf) (f found, stays bool) {
	n := k.n
	delete(p.gone, k.l)
	delete(p.keep, n)
	if next.look(k.name, &f) != nil || f.st.Mode&unix.S_IFMT != n.typ {
		if !n.IsDir() {
			p.loses(k.l)
		}
		return f, false
	}
	r := revised{state: f.state, claim: f.claim, ino: f.st.Ino}
	if n.IsDir() {
		return f, true // decideDir keeps it
	}
	if f.st.Nlink > 1 && f.state&hasUpper == 0 {
		r.state |= multi
	}
	same := p.sameFile(n, k.name, &f, old)
	if !same && p.busy[path] {
		r.attrs, r.content = true, true // something is mounted on it: nobody sees it change
		same = true
	}
	if !same {
		p.loses(k.l)
		return f, false
	}
	state := n.state.Load()
	if state&placeBits != r.state || n.claim != r.claim || r.content {
		p.keep[n] = &r
	}
	return f, true
}

// sameFile says whether what a node is now and what the next stack shows are one
// object, unchanged.
func (p *Plan) sameFile(n *Node, name string, f *found, old *viewOf) bool {
	s := upper
	if f.state&hasUpper == 0 {
		s = lower
	}
	if n.top() != s {
		return false
	}
	was, is := old.stack.base, p.next.base
	if s == upper {
		was, is = old.stack.layer(n.claim), p.next.layer(f.claim)
	}
	if was == is {
		return true
	}
	if was == nil || is == nil || was.over != is.over || n.ino != f.st.Ino {
		return false
	}
	var st Attr
	if old.fds[s] < 0 || (at{old.fds[s], name}).stat(&st) != nil {
		return false
	}
	return unchanged(&st, &f.st)
}

func unchanged(a, b *Attr) bool {
	return a.Ctime == b.Ctime && a.Mtime == b.Mtime && a.Size == b.Size && a.Mode == b.Mode
}

// decideDir says what becomes of a directory that stays, and which names appear
// in it.
func (p *Plan) decideDir(n *Node, old, next *viewOf, ino uint64) {
	r := revised{state: next.state, claim: next.claim, ino: ino}
	state := n.state.Load()
	moved := state&placeBits != r.state || n.claim != r.claim
	differ := false
	for s := range old.fds {
		differ = differ || sideDiffers(old, next, side(s))
	}
	if !differ && !moved && n.ino == ino && old.trie.sameKids(next.trie) {
		delete(p.keep, n)
		return
	}
	r.attrs = true
	r.upper = old.stack.layer(n.claim) != next.stack.layer(next.claim)
	if differ || moved || !old.trie.sameKids(next.trie) {
		r.content = true
		p.appearing(n, old, next)
	}
	p.keep[n] = &r
}

// sameKids says whether the same claims are in a directory, of the same layers.
func (t *trie) sameKids(o *trie) bool {
	if t == nil || o == nil {
		return (t == nil || len(t.kids) == 0) && (o == nil || len(o.kids) == 0)
	}
	if len(t.kids) != len(o.kids) {
		return false
	}
	for name, k := range t.kids {
		if q := o.kids[name]; q == nil || q.claim != k.claim || q.from != k.from {
			return false
		}
	}
	return true
}

// sideDiffers compares a directory's own object in two stacks: its list of names
// cannot change without its times.
func sideDiffers(old, next *viewOf, s side) bool {
	a, b := old.fds[s], next.fds[s]
	if a < 0 || b < 0 {
		return a >= 0 || b >= 0
	}
	if s == lower && old.stack.base == next.stack.base ||
		s == upper && old.stack.layer(old.claim) == next.stack.layer(next.claim) {
		return false
	}
	var x, y Attr
	if (at{a, ""}).stat(&x) != nil || (at{b, ""}).stat(&y) != nil {
		return true
	}
	return x.Ino != y.Ino || !unchanged(&x, &y) || x.Uid != y.Uid || x.Gid != y.Gid
}

// appearing notes the names that the next stack shows in a directory and the
// current one does not: programs may have looked for them in vain.
func (p *Plan) appearing(n *Node, old, next *viewOf) {
	was, err := old.list()
	if err != nil {
		was = &listing{}
	}
	is, err := next.list()
	if err != nil {
		return
	}
	seen := make(map[string]bool, len(was.ents))
	for i := range was.ents {
		seen[was.name(&was.ents[i])] = true
	}
	path := pathOf(n)
	for i := range is.ents {
		// Under a busy name that did not exist lies what an earlier switch had to
		// leave there.
		if name := is.name(&is.ents[i]); !seen[name] && !p.busy[joinPath(path, name)] {
			p.names = append(p.names, NameRef{Parent: n.id, Name: name})
		}
	}
}

// catchUp decides again about the nodes that changed since they were visited.
func (p *Plan) catchUp(alone bool) (int, error) {
	u := p.u
	if !alone {
		u.tree.RLock()
		defer u.tree.RUnlock()
	}
	u.tab.mu.Lock()
	journal := u.tab.journal
	u.tab.journal = map[*Node]bool{}
	u.tab.mu.Unlock()
	for n, moved := range journal {
		if err := p.ctx.Err(); err != nil {
			return 0, err
		}
		if err := p.again(n, moved); err != nil {
			return 0, err
		}
	}
	return len(journal), nil
}

// again decides about one node, and if it is a directory that moved about all
// below it. Preconditions: tree held.
func (p *Plan) again(n *Node, moved bool) (err error) {
	u := p.u
	u.tab.mu.Lock()
	var names []nameOf
	for l := &n.first; l != nil && l.parent != nil; l = l.alias {
		names = append(names, nameOf{l, n, l.name})
	}
	u.tab.mu.Unlock()
	for _, k := range names {
		dir := pathOf(k.l.parent)
		old, next, ok := p.views(dir)
		if !ok {
			// Its directory goes.
			if n.IsDir() {
				p.goneBelow(n)
			}
			p.loses(k.l)
			continue
		}
		path := joinPath(dir, k.name)
		f, stays := p.decide(k, path, &old, &next)
		if n.IsDir() {
			if stays {
				o := viewOf{stack: old.stack, state: n.state.Load(), claim: n.claim}
				o.open(&old, k.name, path)
				v := viewOf{stack: next.stack, state: f.state, claim: f.claim}
				v.open(&next, k.name, path)
				p.decideDir(n, &o, &v, f.st.Ino)
				if moved {
					err = p.visit(n, path, &o, &v)
				}
				o.close()
				v.close()
			} else {
				p.goneBelow(n)
				p.loses(k.l)
			}
		}
		old.close()
		next.close()
	}
	return err
}

// views opens a directory in both stacks.
func (p *Plan) views(path string) (old, next viewOf, ok bool) {
	old, ok = walkView(p.u.cur, path)
	if !ok {
		return old, next, false
	}
	if next, ok = walkView(p.next, path); !ok {
		old.close()
	}
	return old, next, ok
}

func walkView(s *stack, path string) (viewOf, bool) {
	v := rootView(s)
	for done := ""; path != ""; {
		var name string
		name, path, _ = strings.Cut(path, "/")
		done = joinPath(done, name)
		var f found
		if v.look(name, &f) != nil || !isDir(&f.st) {
			v.close()
			return v, false
		}
		k := viewOf{stack: s, state: f.state, claim: f.claim}
		k.open(&v, name, done)
		v.close()
		v = k
	}
	return v, true
}
