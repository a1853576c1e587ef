package overlay

import (
	"sync"

	"golang.org/x/sys/unix"
)

// handle is a descriptor of a node in one layer. Ordinary ones are kept in an
// LRU; the pinned one of a file that was deleted while open lives as long as
// its node.
type handle struct {
	fd     int
	node   *Node
	layer  *layer // nil if pinned
	side   side
	write  bool
	pinned bool

	// Guarded by fdCache.mu.
	refs       int
	detached   bool // node does not point here any more: close at the last release
	prev, next *handle
}

// fdCache bounds the descriptors. Its mutex is a leaf: no system call but close
// happens under none of the union's locks because of it.
type fdCache struct {
	mu     sync.Mutex
	max    int
	n      int
	pinned int
	lru    handle // list head; lru.next is the most recently used
}

func (c *fdCache) init(max int) {
	c.max = max
	c.lru.prev, c.lru.next = &c.lru, &c.lru
}

func (c *fdCache) unlinkLocked(h *handle) {
	if h.next != nil {
		h.prev.next, h.next.prev = h.next, h.prev
		h.prev, h.next = nil, nil
	}
}

func (c *fdCache) frontLocked(h *handle) {
	if c.lru.next == h {
		return
	}
	c.unlinkLocked(h)
	h.prev, h.next = &c.lru, c.lru.next
	h.prev.next, h.next.prev = h, h
}

// get returns the node's descriptor with a reference, nil if there is none that
// fits: in that layer, and writable if write.
func (c *fdCache) get(n *Node, s side, l *layer, write bool) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := n.h[s]
	if h == nil || write && !h.write || h.layer != l && !h.pinned {
		return nil
	}
	h.refs++
	if !h.pinned {
		c.frontLocked(h)
	}
	return h
}

// put makes fd the node's descriptor and returns it with a reference.
func (c *fdCache) put(n *Node, s side, l *layer, fd int, write bool) *handle {
	h := &handle{fd: fd, node: n, layer: l, side: s, write: write, refs: 1}
	c.mu.Lock()
	stale := c.dropLocked(n, s)
	n.h[s] = h
	c.n++
	c.frontLocked(h)
	victim := c.evictLocked()
	c.mu.Unlock()
	closeFD(stale)
	closeFD(victim)
	return h
}

// evictLocked takes the least recently used idle descriptor out if there are
// too many.
func (c *fdCache) evictLocked() int {
	if c.n <= c.max {
		return -1
	}
	// Those in use are few (one per request): a short look back suffices.
	for h, i := c.lru.prev, 0; h != &c.lru && i < 64; h, i = h.prev, i+1 {
		if h.refs == 0 {
			return c.dropLocked(h.node, h.side)
		}
	}
	return -1
}

// dropLocked parts the node from its descriptor, which is closed by the caller
// if one is returned, or else by whoever uses it last.
func (c *fdCache) dropLocked(n *Node, s side) int {
	h := n.h[s]
	if h == nil {
		return -1
	}
	n.h[s] = nil
	c.unlinkLocked(h)
	if h.pinned {
		c.pinned--
	} else {
		c.n--
	}
	if h.refs > 0 {
		h.detached = true
		return -1
	}
	return h.fd
}

func (c *fdCache) drop(n *Node, s side) {
	c.mu.Lock()
	fd := c.dropLocked(n, s)
	c.mu.Unlock()
	closeFD(fd)
}

// forget closes what the node has.
func (c *fdCache) forget(n *Node) {
	c.mu.Lock()
	a, b, d := c.dropLocked(n, upper), c.dropLocked(n, lower), c.dropLocked(n, direct)
	c.mu.Unlock()
	closeFD(a)
	closeFD(b)
	closeFD(d)
}

func (c *fdCache) release(h *handle) {
	c.mu.Lock()
	h.refs--
	last := h.detached && h.refs == 0
	c.mu.Unlock()
	if last {
		unix.Close(h.fd)
	}
}

// pin takes the node's upper descriptor out of the LRU for good.
func (c *fdCache) pin(h *handle) {
	c.mu.Lock()
	if !h.pinned && !h.detached {
		c.unlinkLocked(h)
		h.pinned = true
		c.n--
		c.pinned++
	}
	c.mu.Unlock()
}

// unpin puts a pinned descriptor back into the LRU: its file has a name again.
func (c *fdCache) unpin(n *Node, l *layer) {
	c.mu.Lock()
	if h := n.h[upper]; h != nil && h.pinned {
		h.pinned, h.layer = false, l
		c.pinned--
		c.n++
		c.frontLocked(h)
	}
	c.mu.Unlock()
}

// sweep closes idle descriptors that keep reports as no longer wanted.
func (c *fdCache) sweep(keep func(*handle) bool) {
	for {
		var fds []int
		c.mu.Lock()
		for h := c.lru.next; h != &c.lru && len(fds) < 256; {
			next := h.next
			if h.refs == 0 && !keep(h) {
				fds = append(fds, c.dropLocked(h.node, h.side))
			}
			h = next
		}
		c.mu.Unlock()
		for _, fd := range fds {
			closeFD(fd)
		}
		if len(fds) < 256 {
			return
		}
	}
}

func (c *fdCache) counts() (n, pinned int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.pinned
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
