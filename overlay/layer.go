package overlay

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// layer is one directory tree: the base, or the upper/ of an overlay.
type layer struct {
	name string // Name of the *os.File that brought it in, for reports
	over string // the overlay's name, "" for the base
	root int    // descriptor of its root directory
	dev  uint64
	ino  uint64 // of the subvolume: two layers with the same are one
	num  uint8  // 0 for the base; part of the inode numbers that the view shows
	ro   bool
	work *workdir // nil for the base and for read-only uppers

	// users counts the stack that shows the layer and the detached nodes that
	// still read from it; at 0 the descriptors are closed.
	users atomic.Int64
}

func (l *layer) retain() { l.users.Add(1) }

// release returns true if that was the last use.
func (l *layer) release() bool {
	if l.users.Add(-1) != 0 {
		return false
	}
	unix.Close(l.root)
	l.work.close()
	return true
}

// open opens a path of the layer ("" is its root). Paths longer than PATH_MAX
// are walked in pieces.
func (l *layer) open(path string, flags int, mode uint32) (int, error) {
	dir, err := l.walk(&path)
	if err != nil {
		return -1, err
	}
	if dir != l.root {
		defer unix.Close(dir)
	}
	return openBeneath(dir, path, flags, mode)
}

// stat stats a path of the layer.
func (l *layer) stat(path string, st *Attr) error {
	fd, err := l.open(path, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return at{fd, ""}.stat(st)
}

const pathPiece = 4000 // PATH_MAX is 4096

// walk opens leading directories until what is left of the path is short; the
// caller closes the result unless it is the root. An empty path becomes ".".
func (l *layer) walk(path *string) (int, error) {
	dir := l.root
	for len(*path) > pathPiece {
		i := strings.LastIndexByte((*path)[:pathPiece], '/')
		if i < 0 {
			break
		}
		fd, err := openBeneath(dir, (*path)[:i], unix.O_PATH|unix.O_DIRECTORY, 0)
		if dir != l.root {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir, *path = fd, (*path)[i+1:]
	}
	if *path == "" {
		*path = "."
	}
	return dir, nil
}

func newLayer(f *os.File, over string) (*layer, error) {
	var st Attr
	fd, err := openBeneath(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := (at{fd, ""}).stat(&st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &layer{name: f.Name(), over: over, root: fd, ino: st.Ino,
		dev: unix.Mkdev(st.Dev_major, st.Dev_minor)}, nil
}

// newUpper opens an overlay's subvolume; it makes upper/ and work/ where they
// are missing.
func newUpper(u *Upper) (*layer, error) {
	sub := int(u.Dir.Fd())
	l, err := newLayer(u.Dir, u.Name)
	if err != nil {
		return nil, err
	}
	l.ro = u.ReadOnly
	if !l.ro {
		if err := unix.Mkdirat(sub, "upper", 0o755); err != nil && err != unix.EEXIST {
			unix.Close(l.root)
			return nil, errors.Join(errors.New("cannot make upper/"), err)
		}
	}
	root, err := openBeneath(sub, "upper", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	unix.Close(l.root)
	if err != nil {
		return nil, err
	}
	l.root = root
	if !l.ro {
		if l.work, err = newWorkdir(sub); err != nil {
			unix.Close(root)
			return nil, err
		}
	}
	return l, nil
}

func (l *layer) same(f *os.File) bool {
	var st Attr
	if (at{int(f.Fd()), ""}).stat(&st) != nil {
		return false
	}
	return st.Ino == l.ino && unix.Mkdev(st.Dev_major, st.Dev_minor) == l.dev
}
