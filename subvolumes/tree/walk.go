package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Walk calls fn for every entry below root and for root itself, in the order that
// the package comment fixes. If fn returns [fs.SkipDir] for a directory, its entries
// are left out; any other error ends the walk and is returned as it is. An entry that
// vanishes meanwhile is left out.
func Walk(ctx context.Context, root *os.File, fn func(*Entry, Opener) error) error {
	return walk(ctx, root, func(e *Entry, open func() (int, error)) error {
		return fn(e, func() (*os.File, error) {
			fd, err := open()
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), join(root.Name(), e.Path)), nil
		})
	})
}

// walk is Walk with bare descriptors, which cost a digest of many small files less.
func walk(ctx context.Context, root *os.File, fn func(*Entry, func() (int, error)) error) error {
	w := &walker{ctx: ctx, fn: fn, root: root.Name(), links: map[inode]string{}}
	fd, err := openat(int(root.Fd()), ".", unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("open %s: %w", root.Name(), err)
	}
	runtime.KeepAlive(root)
	defer unix.Close(fd)
	e, dev, err := w.stat(fd, "", "")
	if err != nil {
		return err
	}
	w.dev = dev
	err = fn(e, func() (int, error) { return w.open(fd, ".", e) })
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil {
		return err
	}
	return w.dir(fd, "")
}

type inode struct{ dev, ino uint64 }

type walker struct {
	ctx   context.Context
	fn    func(*Entry, func() (int, error)) error
	root  string // name for messages
	dev   uint64
	links map[inode]string // first paths of inodes with several links
	xattr xattrReader
	n     int // entries seen, for looking at ctx now and then
}

// name returns the path of an entry for messages.
func (w *walker) name(path string) string { return join(w.root, path) }

func join(root, path string) string {
	if path == "" {
		return root
	}
	return root + "/" + path
}

// dir walks the entries of the directory fd, which it does not close.
func (w *walker) dir(fd int, path string) error {
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("list %s: %w", w.name(path), err)
	}
	slices.Sort(names)
	prefix := path
	if prefix != "" {
		prefix += "/"
	}
	for _, name := range names {
		if w.n++; w.n%256 == 0 {
			if err := w.ctx.Err(); err != nil {
				return err
			}
		}
		if err := w.entry(fd, name, prefix+name); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(dir int, name, path string) error {
	e, dev, err := w.stat(dir, name, path)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	isDir := e.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && e.Nlink > 1 {
		// Not directories: their link count is no number of names.
		key := inode{dev, e.Ino}
		if first, ok := w.links[key]; ok {
			e.Link = first
		} else {
			w.links[key] = path
		}
	}
	err = w.fn(e, func() (int, error) { return w.open(dir, name, e) })
	if !isDir || err != nil {
		if isDir && errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	if dev != w.dev {
		return nil
	}
	fd, err := openat(dir, name, unix.O_DIRECTORY)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("open %s: %w", w.name(path), err)
	}
	defer unix.Close(fd)
	return w.dir(fd, path)
}

// open opens an entry for reading.
func (w *walker) open(dir int, name string, e *Entry) (int, error) {
	flags := 0
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		flags = unix.O_DIRECTORY
	default:
		return -1, fmt.Errorf("open %s: neither a regular file nor a directory", w.name(e.Path))
	}
	fd, err := openat(dir, name, flags)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", w.name(e.Path), err)
	}
	return fd, nil
}

// stat reads the metadata of an entry; name "" means the directory itself.
func (w *walker) stat(dir int, name, path string) (*Entry, uint64, error) {
	e, dev, err := lstat(dir, name)
	if err != nil {
		return nil, 0, fmt.Errorf("stat %s: %w", w.name(path), err)
	}
	e.Path = path
	if e.Mode&unix.S_IFMT == unix.S_IFLNK {
		if e.Target, err = readlink(dir, name); err != nil {
			return nil, 0, fmt.Errorf("read link %s: %w", w.name(path), err)
		}
		e.Size = int64(len(e.Target))
	}
	if e.Xattrs, err = w.xattr.read(dir, name); err != nil {
		return nil, 0, fmt.Errorf("read extended attributes of %s: %w", w.name(path), err)
	}
	return e, dev, nil
}

// lstat fills an Entry but for path, target and attributes, and returns its device. It uses statx, whose
// times have 64 bits on 32-bit machines too.
func lstat(dir int, name string) (*Entry, uint64, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	for {
		err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		break
	}
	e := &Entry{
		Mode:  uint32(st.Mode),
		UID:   st.Uid,
		GID:   st.Gid,
		Mtime: Time{st.Mtime.Sec, int32(st.Mtime.Nsec)},
		Ino:   st.Ino,
		Nlink: st.Nlink,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = int64(st.Size)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	}
	if name != "" && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return e, mounted, nil // perhaps of the same device, by a bind mount
	}
	return e, unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// mounted stands for the device of what is mounted over an entry; none has this number.
const mounted = 0

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		if len(buf) >= 1<<16 {
			return "", unix.ENAMETOOLONG
		}
		buf = make([]byte, 4*len(buf))
	}
}

// openat opens one name below dir for reading, without following it and, where the
// kernel allows, without changing its access time.
func openat(dir int, name string, flags int) (int, error) {
	// O_NONBLOCK: a FIFO that takes the place of a file must not block.
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
		if err == unix.EPERM {
			fd, err = unix.Openat(dir, name, flags, 0)
		}
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readNames returns all names in the directory fd, from its start.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		for p := buf[:n]; len(p) > 0; {
			var used int
			used, _, names = unix.ParseDirent(p, -1, names)
			if used <= 0 {
				break
			}
			p = p[used:]
		}
	}
}
