package overlay

import (
	"golang.org/x/sys/unix"
)

// layerOf returns the layer in which that side of a node lies.
// Preconditions: tree held.
func (u *Union) layerOf(n *Node, s side) *layer {
	switch {
	case s == upper:
		return u.cur.layer(n.claim)
	case n.is(detached):
		return n.ext.where.layer
	case n.is(synth):
		if t := u.cur.find(pathOf(n)); t != nil {
			return t.from
		}
	}
	return u.cur.base
}

// dir returns a directory's descriptor in a layer, with a reference.
// Preconditions: tree held; n.mu not held.
func (u *Union) dir(n *Node, s side) (*handle, error) {
	l := u.layerOf(n, s)
	if h := u.fds.get(n, s, l, false); h != nil {
		return h, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.dirLocked(n, s)
}

// dirLocked is dir with n.mu held.
func (u *Union) dirLocked(n *Node, s side) (*handle, error) {
	l := u.layerOf(n, s)
	if h := u.fds.get(n, s, l, false); h != nil {
		return h, nil
	}
	if l == nil || n.is(anonymous) {
		return nil, unix.ENOENT
	}
	fd, err := u.openNode(n, s, l, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return u.fds.put(n, s, l, fd, false), nil
}

// openNode opens a node's object by name.
// Preconditions: tree held, n.mu held.
func (u *Union) openNode(n *Node, s side, l *layer, flags int) (int, error) {
	o, h, err := u.placeLocked(n, s, l)
	if err != nil {
		return -1, err
	}
	if h == nil {
		return l.open(o.name, flags, 0)
	}
	defer u.fds.release(h)
	return openBeneath(o.fd, o.name, flags, 0)
}

// placeLocked says where a node's object lies: by name in its parent's directory,
// whose descriptor is returned with a reference; or, if that is nil, at a path of
// the layer.
// Preconditions: tree held, n.mu held (so that the name stays).
func (u *Union) placeLocked(n *Node, s side, l *layer) (at, *handle, error) {
	if n.is(detached) {
		return at{l.root, n.ext.where.path}, nil, nil
	}
	p := n.first.parent
	if p == nil {
		if n != u.root {
			return at{}, nil, unix.ENOENT
		}
		return at{l.root, ""}, nil, nil
	}
	// A claim's root, and what leads to it, may lie in a layer that shows
	// nothing of the parent.
	if n.is(onTrie|synth) && (s == upper && p.claim != n.claim || s == lower && !p.is(hasLower) || n.is(synth)) {
		return at{l.root, pathOf(n)}, nil, nil
	}
	h, err := u.dir(p, s)
	if err != nil {
		return at{}, nil, err
	}
	return at{h.fd, n.first.name}, h, nil
}

// top is the side whose attributes and content the view shows.
func (n *Node) top() side {
	if n.is(hasUpper | anonymous) {
		return upper
	}
	return lower
}

// file returns the descriptor of a regular file, with a reference; for writing
// the file must have been copied up.
// Preconditions: tree held; n.mu not held.
func (u *Union) file(n *Node, write bool) (*handle, error) {
	s := n.top()
	if h := u.fds.get(n, s, u.layerOf(n, s), write); h != nil {
		return h, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.fileLocked(n, write)
}

func (u *Union) fileLocked(n *Node, write bool) (*handle, error) {
	if n.typ != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	s := n.top()
	l := u.layerOf(n, s)
	if h := u.fds.get(n, s, l, write); h != nil {
		return h, nil
	}
	if n.is(anonymous) || l == nil {
		return nil, unix.EIO
	}
	// Files of an upper are opened for writing at once: whoever reads may write
	// next. Immutable ones cannot.
	rw := s == upper && !l.ro
	flags := unix.O_RDONLY
	if rw {
		flags = unix.O_RDWR
	}
	fd, err := u.openNode(n, s, l, flags)
	if rw && !write && (err == unix.EPERM || err == unix.EACCES || err == unix.EROFS || err == unix.ETXTBSY) {
		rw = false
		fd, err = u.openNode(n, s, l, unix.O_RDONLY)
	}
	if err != nil {
		return nil, err
	}
	return u.fds.put(n, s, l, fd, rw), nil
}

// with calls fn with a reference to the node's object on its top side: an open
// descriptor if there is one, or the name.
// Preconditions: tree held; n.mu not held.
func (u *Union) with(n *Node, fn func(o at) error) error {
	s := n.top()
	if h := u.fds.get(n, s, u.layerOf(n, s), false); h != nil {
		defer u.fds.release(h)
		return fn(at{h.fd, ""})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return u.withLocked(n, fn)
}

func (u *Union) withLocked(n *Node, fn func(o at) error) error {
	s := n.top()
	l := u.layerOf(n, s)
	if h := u.fds.get(n, s, l, false); h != nil {
		defer u.fds.release(h)
		return fn(at{h.fd, ""})
	}
	if n.is(anonymous) || l == nil {
		return unix.EIO
	}
	o, h, err := u.placeLocked(n, s, l)
	if err != nil {
		return err
	}
	if h != nil {
		defer u.fds.release(h)
		return fn(o)
	}
	if o.name == "" {
		return fn(o)
	}
	fd, err := l.open(o.name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(at{fd, ""})
}
