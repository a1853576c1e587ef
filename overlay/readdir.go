package overlay

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Entry is one name of a directory.
type Entry struct {
	Name   string
	Ino    uint64
	Type   uint32 // DT_…
	Cookie uint64 // ReadDir goes on after this entry from here
}

// listing is the merged list of names of a directory. Names of the base come
// first, whether an upper has them now or not, then those that only the upper
// has: a file that is copied up while somebody reads the directory keeps its
// place. A cookie is the entry's position in its layer's directory (plus one),
// with the phase above: on btrfs it stays the same whatever comes and goes.
type listing struct {
	version uint32
	stack   *stack
	names   []byte
	ents    []listEnt

	// Where those are who read the files one after the other, see Union.reading.
	nextRead, sighted atomic.Int32
}

type listEnt struct {
	ino    uint64
	cookie uint32
	name   uint32 // offset in names
	len    uint8
	typ    uint8
}

const (
	phaseShift  = 29 // all cookies fit a positive 32-bit off_t
	phaseBase   = 0
	phaseUpper  = 1 << phaseShift
	phaseClaims = 2 << phaseShift

	cookieDot    = 1
	cookieDotDot = 2
)

func (l *listing) add(name string, ino uint64, typ uint8, cookie uint32) {
	l.ents = append(l.ents, listEnt{ino: ino, cookie: cookie, name: uint32(len(l.names)), len: uint8(len(name)), typ: typ})
	l.names = append(l.names, name...)
}

func (l *listing) name(e *listEnt) string {
	return string(l.names[e.name : e.name+uint32(e.len)])
}

// ReadDir calls emit with the entries after a cookie (0: from the start) until
// it returns false. A stream that started before a change may or may not see it,
// as POSIX has it; one that starts now sees all.
func (u *Union) ReadDir(n *Node, cookie uint64, emit func(*Entry) bool) error {
	l, i, err := u.start(n, cookie, emit)
	for ; err == nil && i < len(l.ents); i++ {
		e := l.entry(i)
		if !emit(&e) {
			break
		}
	}
	return err
}

// start emits the two dots, if they come after the cookie, and returns the list and
// where to go on in it: at its end if emit returned false.
func (u *Union) start(n *Node, cookie uint64, emit func(*Entry) bool) (*listing, int, error) {
	if !n.IsDir() {
		return nil, 0, unix.ENOTDIR
	}
	u.tree.RLock()
	parent := n.ino
	if p := n.first.parent; p != nil {
		parent = p.ino
	}
	l, err := u.list(n, cookie == 0)
	u.tree.RUnlock()
	if err != nil {
		return nil, 0, err
	}
	for _, e := range []Entry{{".", n.ino, unix.DT_DIR, cookieDot}, {"..", parent, unix.DT_DIR, cookieDotDot}} {
		if cookie < e.Cookie && !emit(&e) {
			return l, len(l.ents), nil
		}
	}
	return l, sort.Search(len(l.ents), func(i int) bool { return uint64(l.ents[i].cookie) > cookie }), nil
}

func (l *listing) entry(i int) Entry {
	e := &l.ents[i]
	return Entry{l.name(e), e.ino, uint32(e.typ), uint64(e.cookie)}
}

// list returns a directory's list; fresh: as it is now.
func (u *Union) list(n *Node, fresh bool) (*listing, error) {
	if n.nameless() {
		return &listing{}, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ext != nil && n.ext.listing != nil {
		l := n.ext.listing
		if !fresh || l.version == n.version.Load() && l.stack == u.cur {
			u.lists.use(n, len(l.ents))
			return l, nil
		}
	}
	version := n.version.Load()
	v := viewOf{stack: u.cur, state: n.state.Load(), claim: n.claim, fds: [2]int{-1, -1}}
	if v.state&onTrie != 0 {
		v.trie = u.cur.find(pathOf(n))
	}
	for s, bit := range [2]uint32{hasUpper, hasLower} {
		if v.state&bit == 0 {
			continue
		}
		h, err := u.dirLocked(n, side(s))
		if err != nil {
			return nil, err
		}
		defer u.fds.release(h)
		v.fds[s] = h.fd
	}
	v.impure = func() bool {
		if s := n.state.Load(); s&impureKnown != 0 {
			return s&impure != 0
		}
		return u.setImpure(n, impureFD(v.fds[upper]))
	}
	l, err := v.list()
	if err != nil {
		return nil, err
	}
	l.version, l.stack = version, u.cur
	n.extLocked().listing = l
	u.lists.use(n, len(l.ents))
	return l, nil
}

// list merges the names of a directory's sides. It moves the positions of fds.
func (v *viewOf) list() (*listing, error) {
	l := &listing{}
	var up, low []dirent
	var err error
	if v.fds[upper] >= 0 {
		if up, err = dirNames(v.fds[upper]); err != nil {
			return nil, err
		}
	}
	if v.fds[lower] >= 0 {
		if low, err = dirNames(v.fds[lower]); err != nil {
			return nil, err
		}
	}
	l.ents = make([]listEnt, 0, len(up)+len(low))
	var inUp map[string]int
	if len(up) > 0 && len(low) > 0 {
		inUp = make(map[string]int, len(up))
		for i := range up {
			inUp[up[i].name] = i
		}
	}
	lowCookie, upCookie := cookieOf(low, phaseBase), cookieOf(up, phaseUpper)
	for i := range low {
		e := &low[i]
		cookie := lowCookie(i)
		if j, ok := inUp[e.name]; ok {
			if err := v.addUpper(l, &up[j], e, cookie); err != nil {
				return nil, err
			}
			up[j].name = "" // done
			continue
		}
		if (e.typ == unix.DT_CHR || e.typ == unix.DT_UNKNOWN) && v.hidden(lower, e) {
			continue
		}
		if v.trie.child(e.name) == nil {
			l.add(e.name, viewIno(e.ino, 0), e.typ, cookie)
		}
	}
	for i := range up {
		if up[i].name == "" {
			continue
		}
		if err := v.addUpper(l, &up[i], nil, upCookie(i)); err != nil {
			return nil, err
		}
	}
	return l, v.addClaims(l)
}

// cookieOf returns how entries get their cookies: by position, or by index where
// positions do not fit (no file system but btrfs has small ascending ones).
func cookieOf(ents []dirent, phase uint32) func(i int) uint32 {
	last := int64(1)
	for i := range ents {
		if ents[i].pos <= last || ents[i].pos >= 1<<phaseShift-1 {
			return func(i int) uint32 { return phase + uint32(i) + cookieDotDot + 1 }
		}
		last = ents[i].pos
	}
	return func(i int) uint32 { return phase + uint32(ents[i].pos) + 1 }
}

// hidden stats an entry of unsure type and says if it is a whiteout.
func (v *viewOf) hidden(s side, e *dirent) bool {
	var st Attr
	if (at{v.fds[s], e.name}).stat(&st) != nil {
		return true
	}
	e.typ = uint8(st.Mode >> 12)
	return whiteout(&st)
}

// addUpper adds an entry of the upper; low is the base's entry of that name.
func (v *viewOf) addUpper(l *listing, e, low *dirent, cookie uint32) error {
	if v.trie.child(e.name) != nil {
		return nil
	}
	if (e.typ == unix.DT_CHR || e.typ == unix.DT_UNKNOWN) && v.hidden(upper, e) {
		return nil
	}
	o := at{v.fds[upper], e.name}
	num := v.stack.layer(v.claim).num
	ino := viewIno(e.ino, num)
	switch {
	case e.typ == unix.DT_DIR && low != nil && low.typ == unix.DT_DIR && !opaque(o):
		ino = viewIno(low.ino, 0)
	case v.impure():
		if g, ok := readOrigin(o); ok {
			ino = viewIno(g.ino, 0)
		}
	}
	l.add(e.name, ino, e.typ, cookie)
	return nil
}

// addClaims adds the claims in a directory and what leads to them.
func (v *viewOf) addClaims(l *listing) error {
	if v.trie == nil {
		return nil
	}
	names := make([]string, 0, len(v.trie.kids))
	for name := range v.trie.kids {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		var f found
		switch err := v.look(name, &f); err {
		case nil:
			l.add(name, f.st.Ino, uint8(f.st.Mode>>12), phaseClaims+uint32(i)+3)
		case unix.ENOENT:
		default:
			return err
		}
	}
	return nil
}

// listCache bounds the entries of all lists that are kept.
type listCache struct {
	mu    sync.Mutex
	total int
	order []*Node // least recently used first
	size  map[*Node]int
}

const maxListed = 256 << 10 // about 12 MB

func (c *listCache) init() { c.size = map[*Node]int{} }

// use notes that a node's list was used. n.mu is held.
func (c *listCache) use(n *Node, entries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, known := c.size[n]
	c.total += entries + 1 - old
	c.size[n] = entries + 1
	if k := len(c.order); k > 0 && c.order[k-1] == n {
		return
	}
	if known {
		if i := slices.Index(c.order, n); i >= 0 {
			c.order = slices.Delete(c.order, i, i+1)
		}
	}
	c.order = append(c.order, n)
	for (c.total > maxListed || len(c.order) > 256) && len(c.order) > 1 {
		victim := c.order[0]
		// Its lock comes in no order with ours or n's: leave it if it is taken.
		if !victim.mu.TryLock() {
			break
		}
		if victim.ext != nil {
			victim.ext.listing = nil
		}
		victim.mu.Unlock()
		c.dropLocked(victim)
	}
}

func (c *listCache) dropLocked(n *Node) {
	if size, ok := c.size[n]; ok {
		c.total -= size
		delete(c.size, n)
		if i := slices.Index(c.order, n); i >= 0 {
			c.order = slices.Delete(c.order, i, i+1)
		}
	}
}

// drop forgets a node that is gone.
func (c *listCache) drop(n *Node) {
	c.mu.Lock()
	c.dropLocked(n)
	c.mu.Unlock()
}
