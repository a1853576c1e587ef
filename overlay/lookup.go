package overlay

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// found is what a look for a name in the layers gives.
type found struct {
	st    Attr
	state uint32
	claim uint16
}

// whiteout says that an entry of a layer hides the name: kernel overlayfs's
// character device 0:0.
func whiteout(st *Attr) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev_major == 0 && st.Rdev_minor == 0
}

func isDir(st *Attr) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// Lookup finds a name in a directory. The node counts one more lookup, which
// Forget takes back.
func (u *Union) Lookup(dir *Node, name string, a *Attr) (*Node, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	if !dir.is(walked) {
		dir.set(walked, 0)
	}
	if n, err := u.lookHeld(dir, name, a); n != nil || err != nil {
		return n, err
	}
	return u.lookup(dir, name, a)
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." {
		return unix.EINVAL
	}
	if len(name) > 255 {
		return unix.ENAMETOOLONG
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return unix.EINVAL
		}
	}
	return nil
}

// lookup is Lookup with tree held.
//
// A file that nobody knew may be copied up (with the tree of a directory that is
// renamed) between the look into the layers and the moment when its node is in
// the table. So every copy counts copies on before it looks for the node to
// tell, and a node is only inserted if the count did not move since the look.
func (u *Union) lookup(dir *Node, name string, a *Attr) (*Node, error) {
	for {
		seq := u.copies.Load()
		var f found
		if err := u.probe(dir, name, &f); err != nil {
			return nil, err
		}
		if n := u.insert(dir, name, &f, seq); n != nil {
			*a = f.st
			return n, nil
		}
	}
}

// probe looks a name up in the layers of a directory.
func (u *Union) probe(dir *Node, name string, f *found) error {
	v, held, err := u.viewDir(dir)
	defer u.releaseBoth(held)
	if err != nil {
		return err
	}
	return v.look(name, f)
}

// viewDir returns a directory as the current stack shows it, and the handles of its
// sides with references, which the caller gives to releaseBoth, after an error too.
// Preconditions: tree held, for as long as the view is used.
func (u *Union) viewDir(dir *Node) (v viewOf, held [2]*handle, err error) {
	if dir.nameless() || !dir.IsDir() {
		return v, held, unix.ENOENT
	}
	v = viewOf{stack: u.cur, state: dir.state.Load(), claim: dir.claim, fds: [2]int{-1, -1}}
	if v.state&onTrie != 0 {
		v.trie = u.cur.find(pathOf(dir))
	}
	v.impure = func() bool { return u.impure(dir) }
	for s, bit := range [2]uint32{hasUpper, hasLower} {
		if v.state&bit == 0 {
			continue
		}
		h, err := u.dir(dir, side(s))
		if err != nil {
			return v, held, err
		}
		held[s], v.fds[s] = h, h.fd
	}
	return v, held, nil
}

func (u *Union) releaseBoth(held [2]*handle) {
	for _, h := range held {
		if h != nil {
			u.fds.release(h)
		}
	}
}

// viewOf is a directory as one stack shows it: the live one, or the next one
// while a switch is prepared.
type viewOf struct {
	stack  *stack
	state  uint32
	claim  uint16
	trie   *trie  // if onTrie
	fds    [2]int // descriptors of its two sides, -1 if it has none
	impure func() bool
}

// look is the rule of the union.
func (v *viewOf) look(name string, f *found) error {
	if t := v.trie.child(name); t != nil {
		return v.lookTrie(name, t, f)
	}
	f.claim = v.claim
	return v.lookPlain(name, f)
}

func (v *viewOf) lookPlain(name string, f *found) error {
	f.state = 0
	if fd := v.fds[upper]; fd >= 0 {
		o := at{fd, name}
		switch err := o.stat(&f.st); {
		case err == unix.ENOENT:
		case err != nil:
			return err
		case whiteout(&f.st):
			return unix.ENOENT
		default:
			f.state = hasUpper
			if isDir(&f.st) && v.fds[lower] >= 0 && !opaque(o) {
				var st Attr
				if err := (at{v.fds[lower], name}).stat(&st); err == nil && isDir(&st) {
					f.state |= hasLower
					f.st.Ino = viewIno(st.Ino, 0)
					return nil
				} else if err != nil && err != unix.ENOENT {
					return err
				}
			}
			l := v.stack.layer(v.claim)
			if v.impure() {
				f.st.Ino = keptIno(o, &f.st, l)
			} else {
				f.st.Ino = viewIno(f.st.Ino, l.num)
			}
			return nil
		}
	}
	if v.fds[lower] < 0 {
		return unix.ENOENT
	}
	if err := (at{v.fds[lower], name}).stat(&f.st); err != nil {
		return err
	}
	if whiteout(&f.st) {
		return unix.ENOENT
	}
	f.state = hasLower
	f.st.Ino = viewIno(f.st.Ino, 0)
	return nil
}

// lookTrie finds a claim's root or a directory that leads to one. Like a mount
// point it is there whatever the layers of the parent say.
func (v *viewOf) lookTrie(name string, t *trie, f *found) error {
	if t.claim == 0 {
		f.claim = v.claim
		if err := v.lookPlain(name, f); err == nil && isDir(&f.st) {
			f.state |= onTrie
			return nil
		}
		f.state = synth | onTrie
		if err := t.from.stat(t.path, &f.st); err != nil {
			return err
		}
		f.st.Ino = viewIno(f.st.Ino, t.from.num)
		return nil
	}
	f.claim, f.state = t.claim, onTrie
	var low Attr
	if err := v.stack.base.stat(t.path, &low); err == nil && isDir(&low) {
		f.state |= hasLower
	}
	if err := t.from.stat(t.path, &f.st); err == nil && isDir(&f.st) {
		f.state |= hasUpper
		f.st.Ino = viewIno(f.st.Ino, t.from.num)
	} else if f.state&hasLower == 0 {
		return unix.ENOENT // a read-only upper without the directory
	} else {
		f.st = low
	}
	if f.state&hasLower != 0 {
		f.st.Ino = viewIno(low.Ino, 0)
	}
	return nil
}

// Names of extended attributes of the layers. Kernel overlayfs hides all below
// trusted.overlay. and so do we.
const (
	xattrPrefix = "trusted.overlay."
	xattrOpaque = xattrPrefix + "opaque" // "y": nothing of the base shows through this directory
	xattrImpure = xattrPrefix + "impure" // "y": holds objects that were copied up, so listing needs their numbers
	xattrIno    = xattrPrefix + "btrovl.ino"
)

func opaque(o at) bool {
	var b [8]byte
	n, err := o.getxattr(xattrOpaque, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// impure says whether an upper directory may hold objects that keep a number of
// elsewhere.
func (u *Union) impure(dir *Node) bool {
	if s := dir.state.Load(); s&impureKnown != 0 {
		return s&impure != 0
	}
	h, err := u.dir(dir, upper)
	if err != nil {
		return true
	}
	defer u.fds.release(h)
	return u.setImpure(dir, impureFD(h.fd))
}

func impureFD(fd int) bool {
	var b [8]byte
	n, err := at{fd, ""}.getxattr(xattrImpure, b[:])
	return err == nil && n > 0 || err != nil && err != unix.ENODATA
}

func (u *Union) setImpure(dir *Node, yes bool) bool {
	if yes {
		dir.set(impure|impureKnown, 0)
	} else {
		dir.set(impureKnown, impure)
	}
	return yes
}

// origin is what xattrIno keeps of the object that was copied up, 20 bytes
// little-endian: inode number u64, birth time s64 seconds and u32 nanoseconds.
type origin struct {
	ino   uint64
	btime unix.StatxTimestamp
}

func (g *origin) bytes() []byte {
	b := make([]byte, 0, 20)
	b = binary.LittleEndian.AppendUint64(b, g.ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(g.btime.Sec))
	return binary.LittleEndian.AppendUint32(b, g.btime.Nsec)
}

func readOrigin(o at) (g origin, ok bool) {
	var b [32]byte
	if n, err := o.getxattr(xattrIno, b[:]); err != nil || n != 20 {
		return g, false
	}
	g.ino = binary.LittleEndian.Uint64(b[:])
	g.btime.Sec = int64(binary.LittleEndian.Uint64(b[8:]))
	g.btime.Nsec = binary.LittleEndian.Uint32(b[16:])
	return g, true
}

// keptIno returns the number of an object of an upper, which it may have brought
// from the base, and restores its birth time.
func keptIno(o at, st *Attr, l *layer) uint64 {
	if g, ok := readOrigin(o); ok {
		st.Btime = g.btime
		return viewIno(g.ino, 0)
	}
	return viewIno(st.Ino, l.num)
}

// insert finds or makes the node for what a probe found and counts a lookup. It
// returns nil if something was copied up meanwhile and the probe must be made
// again.
func (u *Union) insert(dir *Node, name string, f *found, seq uint64) *Node {
	t := &u.tab
	t.mu.Lock()
	defer u.unlockTable()
	if l := t.names[linkKey{dir, name}]; l != nil {
		n := l.node
		if n.typ == f.st.Mode&unix.S_IFMT && (n.ino == f.st.Ino || n.IsDir()) {
			n.lookups++
			return n
		}
		// Somebody changed a layer behind our back; the name means another
		// object now.
		t.dropNameLocked(l)
	}
	if u.copies.Load() != seq {
		return nil
	}
	if !isDir(&f.st) && (f.st.Nlink > 1 || len(t.links) > 0) {
		if n := t.links[f.st.Ino]; n != nil && n.typ == f.st.Mode&unix.S_IFMT {
			t.addNameLocked(n, dir, name)
			n.lookups++
			if n.is(anonymous) {
				u.attachLocked(n, f)
			}
			return n
		}
	}
	return u.makeLocked(dir, name, f)
}

// makeLocked makes a node. Preconditions: table locked.
func (u *Union) makeLocked(dir *Node, name string, f *found) *Node {
	n := u.tab.newLocked(&Node{ino: f.st.Ino, typ: f.st.Mode & unix.S_IFMT, claim: f.claim})
	state := f.state
	if n.typ == unix.S_IFREG && f.st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		state |= setID
	}
	if !n.IsDir() && f.st.Nlink > 1 {
		state |= linked
		u.tab.links[n.ino] = n
		if state&hasUpper == 0 {
			state |= multi
		}
	}
	n.state.Store(state)
	if dir != nil {
		u.tab.addNameLocked(n, dir, name)
	}
	return n
}

// attachLocked gives a file that was deleted while open, or made without a name,
// its place by name again: another name of it was found, or made.
func (u *Union) attachLocked(n *Node, f *found) {
	n.claim = f.claim
	n.set(f.state, anonymous)
	u.fds.unpin(n, u.cur.layer(n.claim))
}
