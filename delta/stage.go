package delta

import (
	"errors"
	"fmt"
	"os"
	"sort"

	"golang.org/x/sys/unix"
)

// kept returns for every new entry the old entry whose inode stays in place, or
// -1 where a new inode is made. Maker and device must agree on it: every new regular file that is
// not kept has a record.
//
// An inode stays if path and type are the same, the target or device number of what is neither file nor
// directory too, and if it is linked to the same first path as before.
func kept(olds, news *listing) []int {
	keep := make([]int, len(news.entries))
	for i := range news.entries {
		keep[i] = -1
		e := &news.entries[i]
		k, ok := olds.byPath[e.path]
		if !ok {
			continue
		}
		o := &olds.entries[k]
		if (e.mode^o.mode)&unix.S_IFMT != 0 || e.target != o.target || e.rdev != o.rdev || (e.link >= 0) != (o.link >= 0) {
			continue
		}
		if e.link >= 0 && (keep[e.link] < 0 || keep[e.link] != o.link) {
			continue
		}
		keep[i] = k
	}
	return keep
}

// A stage is the tree that is being turned from the old listing into the new one.
type stage struct {
	root *os.File
	olds *listing
	news *listing
	keep []int
	dirs parents
	// touched marks new entries whose times (and, for files, attributes) no longer are
	// those of the old entry.
	touched []bool
}

func newStage(root *os.File, olds, news *listing) *stage {
	return &stage{root: root, olds: olds, news: news, keep: kept(olds, news), dirs: parents{root: root}, touched: make([]bool, len(news.entries))}
}

// touchParent says that a name in the parent of path was added or removed.
func (s *stage) touchParent(path string) {
	dir := ""
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			dir = path[:i]
			break
		}
	}
	if i, ok := s.news.byPath[dir]; ok {
		s.touched[i] = true
	}
}

// clear removes what the new tree does not have, or has as something else, and
// makes the new directories.
func (s *stage) clear() error {
	stays := make([]bool, len(s.olds.entries))
	for _, k := range s.keep {
		if k >= 0 {
			stays[k] = true
		}
	}
	for i := len(s.olds.entries) - 1; i > 0; i-- {
		e := &s.olds.entries[i]
		if stays[i] {
			continue
		}
		fd, name, err := s.dirs.of(e.path)
		if err != nil {
			return err
		}
		flags := 0
		if e.isDir() {
			flags = unix.AT_REMOVEDIR
		}
		if err := unix.Unlinkat(fd, name, flags); err != nil {
			return &os.PathError{Op: "remove", Path: e.path, Err: err}
		}
		s.touchParent(e.path)
	}
	for i := range s.news.entries {
		e := &s.news.entries[i]
		if i == 0 || s.keep[i] >= 0 {
			continue
		}
		s.touchParent(e.path) // already here, so that workers need not write to touched
		if !e.isDir() {
			continue
		}
		fd, name, err := s.dirs.of(e.path)
		if err != nil {
			return err
		}
		if err := unix.Mkdirat(fd, name, 0o700); err != nil {
			return &os.PathError{Op: "mkdir", Path: e.path, Err: err}
		}
		s.touched[i] = true
	}
	return nil
}

// nodes makes what has no content: symbolic links, devices, FIFOs, sockets, and hard links.
func (s *stage) nodes() error {
	for i := range s.news.entries {
		e := &s.news.entries[i]
		if s.keep[i] >= 0 || e.isDir() || e.isRegular() && e.link < 0 {
			continue
		}
		if err := s.node(e); err != nil {
			return fmt.Errorf("cannot make %s: %w", e.path, err)
		}
		s.touched[i] = true
	}
	return nil
}

func (s *stage) node(e *entry) error {
	if e.link >= 0 {
		from, err := openBeneath(s.root, s.news.entries[e.link].path, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer from.Close()
		fd, name, err := s.dirs.of(e.path)
		if err != nil {
			return err
		}
		return unix.Linkat(int(from.Fd()), "", fd, name, unix.AT_EMPTY_PATH)
	}
	fd, name, err := s.dirs.of(e.path)
	if err != nil {
		return err
	}
	if e.target != "" {
		return unix.Symlinkat(e.target, fd, name)
	}
	return unix.Mknodat(fd, name, e.mode&^0o7777|0o600, int(e.rdev))
}

// attributes sets what differs from the old entry on entry i, which is neither a further
// link nor changed afterwards.
func (s *stage) attributes(i int, p *parents) error {
	e := &s.news.entries[i]
	var o *entry
	if k := s.keep[i]; k >= 0 {
		o = &s.olds.entries[k]
		if !s.touched[i] && e.sameMeta(o) {
			return nil
		}
	}
	var err error
	switch {
	case e.isDir() || e.isRegular():
		err = s.byHandle(e, o, s.touched[i])
	default:
		err = s.byName(e, p)
	}
	if err != nil {
		return fmt.Errorf("cannot set the attributes of %s: %w", e.path, err)
	}
	return nil
}

// allAttributes does the rest, from the leaves to the root: setting a name's
// attributes does not change its directory's times, but making it did.
func (s *stage) allAttributes(done []bool) error {
	for i := len(s.news.entries) - 1; i >= 0; i-- {
		if s.news.entries[i].link >= 0 || done[i] {
			continue
		}
		if err := s.attributes(i, &s.dirs); err != nil {
			return err
		}
	}
	return nil
}

// byHandle sets everything on a file or directory. o is what it was, nil for a new inode.
func (s *stage) byHandle(e, o *entry, touched bool) error {
	f, err := openBeneath(s.root, e.path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return setAttributes(f, e, o, touched)
}

func setAttributes(f *os.File, e, o *entry, touched bool) error {
	fd := int(f.Fd())
	// Order: chown clears set-id bits and capabilities, chmod changes an ACL's mask.
	owned := o != nil && o.uid == e.uid && o.gid == e.gid
	if !owned {
		if err := unix.Fchown(fd, int(e.uid), int(e.gid)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, e.mode&0o7777); err != nil {
		return err
	}
	// Writing to a file and changing its owner take capabilities away: then all are set again.
	if o == nil || !owned || touched || !e.sameXattrs(o) {
		if err := setXattrs(fd, e, o); err != nil {
			return err
		}
	}
	return setMtime(fd, "", e)
}

func setXattrs(fd int, e, o *entry) error {
	have, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range have {
		if !e.hasXattr(name) {
			if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	for _, x := range e.xattrs {
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
	}
	return nil
}

func (e *entry) hasXattr(name string) bool {
	i := sort.Search(len(e.xattrs), func(i int) bool { return e.xattrs[i].Name >= name })
	return i < len(e.xattrs) && e.xattrs[i].Name == name
}

func listXattrs(fd int) ([]string, error) {
	var small [256]byte
	buf := small[:]
	n, err := unix.Flistxattr(fd, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10)
		n, err = unix.Flistxattr(fd, buf)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for b := buf[:n]; len(b) > 0; {
		i := 0
		for i < len(b) && b[i] != 0 {
			i++
		}
		names = append(names, string(b[:i]))
		b = b[min(i+1, len(b)):]
	}
	return names, nil
}

// byName sets everything on a node that cannot be opened. The name is a single
// component below an open directory.
func (s *stage) byName(e *entry, p *parents) error {
	fd, name, err := p.of(e.path)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, name, int(e.uid), int(e.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.target == "" {
		if err := unix.Fchmodat(fd, name, e.mode&0o7777, 0); err != nil {
			return err
		}
	}
	through := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	for _, x := range e.xattrs {
		if err := unix.Lsetxattr(through, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
	}
	return setMtime(fd, name, e)
}
