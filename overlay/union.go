package overlay

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Union is a live union of one base and its overlays.
type Union struct {
	// gate is held shared by all that changes something, from before its first
	// step to after its last; Freeze holds it alone.
	gate sync.RWMutex
	// tree is held shared by every operation, alone by what changes paths or
	// layers: rename and the moment of a switch.
	tree sync.RWMutex
	cur  *stack   // guarded by tree
	ids  claimIDs // guarded by tree

	tab  table
	fds  fdCache
	root *Node

	// copies counts objects copied up; see Lookup.
	copies        atomic.Uint64
	detachedCount atomic.Int64
	lists         listCache
	scout         scout
	baseLinks     baseLinks

	// Released is told the name of each layer (the Name of the *os.File that
	// brought it in) that a switch took away, once nothing of it is used.
	// Set it before the union is used.
	Released func(name string)

	retired retired
}

// retired are layers that a switch took away while detached nodes read them.
type retired struct {
	mu sync.Mutex
	m  map[*layer]string
}

// New opens the layers and returns their union. It makes missing directories of
// claims in the uppers and removes what dead processes left in work/.
func New(c Config) (*Union, error) {
	u := &Union{ids: claimIDs{}}
	u.retired.m = map[*layer]string{}
	u.fds.init(8192)
	u.lists.init()
	s, err := newStack(c, u.ids, nil)
	if err != nil {
		return nil, err
	}
	u.cur = s
	u.root = &Node{typ: unix.S_IFDIR}
	u.tab.init(u.root)
	u.setRoot()
	return u, nil
}

// setRoot sets what the root is in the current stack.
func (u *Union) setRoot() {
	state, claim := rootState(u.cur)
	u.root.claim = claim
	u.root.ino = viewIno(u.cur.base.rootIno(), 0)
	u.root.set(state, hasUpper|hasLower|synth|onTrie|defACL|defACLKnown|impure|impureKnown)
}

func rootState(s *stack) (state uint32, claim uint16) {
	state = hasLower
	if s.trie.hasBelow() {
		state |= onTrie
	}
	if s.trie.claim != 0 {
		state |= hasUpper
	}
	return state, s.trie.claim
}

func (l *layer) rootIno() uint64 {
	var st Attr
	if (at{l.root, ""}).stat(&st) != nil {
		return 256
	}
	return st.Ino
}

// Root returns the root directory, which is always known.
func (u *Union) Root() *Node { return u.root }

// SetMaxFDs bounds the cached descriptors; those of files that were deleted
// while open come on top.
func (u *Union) SetMaxFDs(n int) {
	u.fds.mu.Lock()
	u.fds.max = max(n, 16)
	u.fds.mu.Unlock()
}

// Close releases all descriptors. Nothing may use the union any more.
func (u *Union) Close() error {
	u.scout.close()
	u.tree.Lock()
	defer u.tree.Unlock()
	u.fds.sweep(func(*handle) bool { return false })
	u.tab.mu.Lock()
	nodes := append([]*Node(nil), u.tab.ids...)
	u.tab.mu.Unlock()
	for _, n := range nodes {
		if n != nil {
			u.fds.forget(n)
			u.letGo(n)
		}
	}
	u.cur.drop(nil)
	return nil
}

// Freeze returns when no change is under way, and holds back all later ones
// until Thaw.
func (u *Union) Freeze(ctx context.Context) error {
	got := make(chan struct{})
	go func() {
		u.gate.Lock()
		close(got)
	}()
	select {
	case <-got:
		return nil
	case <-ctx.Done():
		go func() { // the lock cannot be taken back: let it go when it comes
			<-got
			u.gate.Unlock()
		}()
		return ctx.Err()
	}
}

// Thaw ends a Freeze.
func (u *Union) Thaw() { u.gate.Unlock() }

func (u *Union) releaseLayer(l *layer) {
	if l.release() {
		u.layerGone(l)
	}
}

func (u *Union) layerGone(l *layer) {
	u.retired.mu.Lock()
	delete(u.retired.m, l)
	u.retired.mu.Unlock()
	if u.Released != nil {
		u.Released(l.name)
	}
}

// Counts are sizes for reports.
type Counts struct {
	Nodes, FDs, Pinned, Detached int
	Retired                      []string // layers of earlier stacks still in use
}

func (u *Union) Counts() Counts {
	var c Counts
	u.tab.mu.Lock()
	c.Nodes = u.tab.count
	u.tab.mu.Unlock()
	c.FDs, c.Pinned = u.fds.counts()
	c.Detached = int(u.detachedCount.Load())
	u.retired.mu.Lock()
	for _, name := range u.retired.m {
		c.Retired = append(c.Retired, name)
	}
	u.retired.mu.Unlock()
	return c
}
