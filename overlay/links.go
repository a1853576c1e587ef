package overlay

import (
	"encoding/binary"
	"io/fs"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Hard links of the base stay links: copying one name up links all names up that
// the file has inside the claim, so that kernel overlayfs, which keeps no index
// by default, sees the same tree.

// copyUpLinks copies a file of the base with several names up. n.mu is held.
func (u *Union) copyUpLinks(n *Node, l *layer, keep int64) error {
	src, err := u.lowerFileOrNil(n)
	if err != nil {
		return err
	}
	var fd int
	if src != nil {
		defer u.fds.release(src)
		fd, err = copyFile(l, src.fd, n, keep)
	} else {
		fd, err = -1, nil
	}
	if err != nil {
		return err
	}
	done, err := u.linkAll(n, l, fd)
	defer func() {
		for _, p := range done {
			u.fds.release(p.up)
			u.forgetPath(p.dir)
		}
	}()
	if err != nil {
		for _, p := range done {
			unix.Unlinkat(p.up.fd, p.name, 0)
		}
		closeFD(fd)
		return err
	}
	n.set(hasUpper, hasLower|multi)
	if fd >= 0 {
		u.fds.release(u.fds.put(n, upper, l, fd, true))
	}
	u.fds.drop(n, lower)
	u.noteCopied(n)
	return nil
}

func (u *Union) lowerFileOrNil(n *Node) (*handle, error) {
	if n.typ != unix.S_IFREG {
		return nil, nil
	}
	return u.lowerFile(n)
}

// place is a name in an upper directory.
type place struct {
	dir  *Node
	up   *handle
	name string
}

// linkAll gives the copy of n all names that n has in the base and that show. fd
// is the copy, or -1 for an object that cannot be nameless: the first name is
// then made by copying.
func (u *Union) linkAll(n *Node, l *layer, fd int) (done []place, err error) {
	paths, err := u.baseLinks.paths(u.cur.base, n.ino>>inoLayerBits)
	if err != nil {
		return nil, err
	}
	own := pathOf(n)
	for _, path := range append([]string{own}, paths...) {
		if path == own && len(done) > 0 {
			continue
		}
		dir, name := u.parentOf(path)
		if dir == nil {
			continue
		}
		var f found
		if u.probe(dir, name, &f) != nil || f.state&hasUpper != 0 || f.st.Ino != n.ino || f.claim != n.claim {
			u.forgetPath(dir)
			continue // hidden, or outside of the claim
		}
		p := place{dir: dir, name: name}
		if err = u.copyUp(dir, wholeFile); err == nil {
			p.up, err = u.dir(dir, upper)
		}
		if err != nil {
			u.forgetPath(dir)
			return done, err
		}
		err = u.markImpure(dir, p.up)
		if err == nil {
			err = keepTimes(p.up.fd, func() error {
				switch {
				case fd >= 0:
					return linkFD(fd, at{p.up.fd, name})
				case len(done) == 0:
					_, err := u.copyOriginal(n, l, at{p.up.fd, name}, wholeFile)
					return err
				}
				return unix.Linkat(done[0].up.fd, done[0].name, p.up.fd, name, 0)
			})
		}
		if err != nil {
			u.fds.release(p.up)
			u.forgetPath(dir)
			return done, err
		}
		done = append(done, p)
	}
	if len(done) == 0 {
		return nil, unix.ESTALE
	}
	return done, nil
}

// parentOf looks up the directory of a path; each node on the way counts a
// lookup, which forgetPath takes back. It returns nil if there is none.
func (u *Union) parentOf(path string) (*Node, string) {
	dir := u.root
	for {
		name, rest, more := strings.Cut(path, "/")
		if !more {
			return dir, name
		}
		var a Attr
		n, err := u.lookup(dir, name, &a)
		if err != nil || !n.IsDir() {
			if err == nil {
				u.Forget(n, 1)
			}
			u.forgetPath(dir)
			return nil, ""
		}
		dir, path = n, rest
	}
}

func (u *Union) forgetPath(n *Node) {
	for n != nil && n != u.root {
		parent := n.first.parent
		u.Forget(n, 1)
		n = parent
	}
}

// baseLinks finds the names of a file of the base: btrfs knows them; on another
// file system the base is walked once.
type baseLinks struct {
	mu   sync.Mutex
	base *layer
	m    map[uint64][]string
}

func (b *baseLinks) paths(base *layer, ino uint64) ([]string, error) {
	if paths, err := inodePaths(base.root, ino); err == nil {
		return paths, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.base != base {
		b.base, b.m = base, map[uint64][]string{}
		if err := b.walk(base, "", base.root); err != nil {
			b.base = nil
			return nil, err
		}
	}
	return b.m[ino], nil
}

func (b *baseLinks) walk(base *layer, path string, fd int) error {
	dup, err := openBeneath(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	names, err := dirNames(dup)
	unix.Close(dup)
	if err != nil {
		return err
	}
	for _, e := range names {
		p := joinPath(path, e.name)
		if e.typ == unix.DT_DIR {
			sub, err := openBeneath(fd, e.name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err == nil {
				err = b.walk(base, p, sub)
				unix.Close(sub)
			}
			if err != nil {
				return err
			}
			continue
		}
		var st Attr
		if err := (at{fd, e.name}).stat(&st); err != nil {
			return err
		}
		if st.Nlink > 1 {
			b.m[st.Ino] = append(b.m[st.Ino], p)
		}
	}
	return nil
}

// inodePaths is BTRFS_IOC_INO_PATHS: struct btrfs_ioctl_ino_path_args {inum,
// size, reserved[4], fspath}, which fills struct btrfs_data_container
// {bytes_left, bytes_missing, elem_cnt, elem_missed u32; val u64[]}, val being
// offsets of strings from val itself.
func inodePaths(root int, ino uint64) ([]string, error) {
	const (
		btrfsIocInoPaths = 0xc0389423
		header           = 16
	)
	for size := 4096; size <= 1<<20; size *= 4 {
		buf := make([]byte, size)
		args := struct{ inum, size, r0, r1, r2, r3, fspath uint64 }{
			inum: ino, size: uint64(size), fspath: uint64(uintptr(unsafe.Pointer(&buf[0])))}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(root), btrfsIocInoPaths, uintptr(unsafe.Pointer(&args)))
		keepAlive(buf)
		if errno != 0 {
			return nil, errno
		}
		count, missed := binary.NativeEndian.Uint32(buf[8:]), binary.NativeEndian.Uint32(buf[12:])
		if missed > 0 && size < 64<<10 { // the kernel fills 64 KiB at most
			continue
		}
		if missed > 0 {
			return nil, fs.ErrInvalid
		}
		var out []string
		for i := range int(count) {
			if header+8*i+8 > size {
				return nil, fs.ErrInvalid
			}
			off := binary.NativeEndian.Uint64(buf[header+8*i:])
			if off >= uint64(size-header) {
				return nil, fs.ErrInvalid
			}
			s := buf[header+int(off):]
			for j, c := range s {
				if c == 0 {
					s = s[:j]
					break
				}
			}
			out = append(out, string(s))
		}
		return out, nil
	}
	return nil, fs.ErrInvalid
}
