package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// placer makes entries below a root directory. It is the one way by which Copy and
// Extract reach the destination: every path is opened name by name, no symbolic link
// is followed and no name is "..", so nothing outside the root can be reached.
type placer struct {
	root *os.File

	// The directory opened last; archives and walks name its entries in a row.
	dirPath string
	dirFD   int // -1 if none

	// dirs holds the directories whose metadata is set at the end.
	dirs map[string]*Entry
}

func newPlacer(root *os.File) *placer {
	return &placer{root: root, dirFD: -1, dirs: map[string]*Entry{}}
}

func (p *placer) close() {
	if p.dirFD >= 0 {
		unix.Close(p.dirFD)
		p.dirFD = -1
	}
	runtime.KeepAlive(p.root)
}

// openDir opens the directory path below root, without following anything.
func (p *placer) openDir(path string) (int, error) {
	const flags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(p.root.Fd()), ".", flags|unix.O_RDONLY, 0)
	if err != nil {
		return -1, err
	}
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next, err := unix.Openat(fd, name, flags|unix.O_RDONLY, 0)
		unix.Close(fd)
		if err != nil {
			if err == unix.ENOTDIR || err == unix.ELOOP {
				return -1, fmt.Errorf("%q in the path %q is no directory: %w", name, path, unix.ENOTDIR)
			}
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// dir returns the directory path, which stays open until the next call.
func (p *placer) dir(path string) (int, error) {
	if p.dirFD >= 0 && p.dirPath == path {
		return p.dirFD, nil
	}
	fd, err := p.openDir(path)
	if err != nil {
		return -1, err
	}
	p.close()
	p.dirPath, p.dirFD = path, fd
	return fd, nil
}

// create makes a regular file that nobody else may open yet.
func (p *placer) create(path string) (int, error) {
	parent, name := splitPath(path)
	dir, err := p.dir(parent)
	if err != nil {
		return -1, err
	}
	return unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
}

// make makes a directory, symbolic link, device node, FIFO or socket with all its
// metadata, but for a directory's, which is kept for finishDirs. The root is there.
func (p *placer) make(e *Entry) error {
	if e.Path == "" {
		p.dirs[""] = e
		return nil
	}
	parent, name := splitPath(e.Path)
	dir, err := p.dir(parent)
	if err != nil {
		return err
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return err
		}
		p.dirs[e.Path] = e
		return nil
	case unix.S_IFLNK:
		if err := unix.Symlinkat(e.Target, dir, name); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		if e.Rdev > 1<<32-1 {
			return fmt.Errorf("device number %#x is out of range", e.Rdev)
		}
		// The kernel takes a 32-bit number; int is no wider on 32-bit machines.
		if err := unix.Mknodat(dir, name, e.Mode&unix.S_IFMT|0o600, int(uint32(e.Rdev))); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown file type %#o", e.Mode&unix.S_IFMT)
	}
	return setMetadata(dir, name, e)
}

// link makes path a further name of the file target.
func (p *placer) link(path, target string) error {
	tp, tn := splitPath(target)
	from, err := p.openDir(tp)
	if err != nil {
		return fmt.Errorf("link to %s: %w", target, err)
	}
	defer unix.Close(from)
	parent, name := splitPath(path)
	dir, err := p.dir(parent)
	if err != nil {
		return err
	}
	if err := unix.Linkat(from, tn, dir, name, 0); err != nil {
		return fmt.Errorf("link to %s: %w", target, err)
	}
	return nil
}

// finishDirs gives the directories their metadata, inner ones first.
func (p *placer) finishDirs(ctx context.Context) error {
	paths := make([]string, 0, len(p.dirs))
	for path := range p.dirs {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	slices.Reverse(paths)
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		fd, err := p.openDir(path)
		if err == nil {
			err = setMetadata(fd, "", p.dirs[path])
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("set metadata of directory %s: %w", join(p.root.Name(), path), err)
		}
	}
	return nil
}

// setMetadata gives a new file owner, mode, attributes and times. It is the entry
// name of the directory fd, or fd itself if name is "". The order matters: chown
// clears set-id bits and capabilities, an ACL changes the mode's group bits to the
// same value, and everything changes times.
func setMetadata(fd int, name string, e *Entry) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Fchownat(fd, name, int(e.UID), int(e.GID), flags); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", e.UID, e.GID, err)
	}
	if e.Mode&unix.S_IFMT != unix.S_IFLNK {
		var err error
		if name == "" {
			err = unix.Fchmod(fd, e.Mode&0o7777)
		} else {
			// Without following: name was made by this process a moment ago, and is no link.
			err = unix.Fchmodat(fd, name, e.Mode&0o7777, 0)
		}
		if err != nil {
			return fmt.Errorf("set mode %#o: %w", e.Mode&0o7777, err)
		}
	}
	for _, x := range e.Xattrs {
		err := setXattr(fd, name, x)
		if errors.Is(err, unix.EOPNOTSUPP) && strings.HasPrefix(x.Name, "btrfs.") && !isBtrfs(fd) {
			continue // a property of another file system's storage
		}
		if err != nil {
			return fmt.Errorf("set attribute %s: %w", x.Name, err)
		}
	}
	if err := setMtime(fd, name, flags, e.Mtime); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func isBtrfs(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && uint32(st.Type) == unix.BTRFS_SUPER_MAGIC
}

// CopyMetadata gives dst the owner, mode, attributes and modification time of src,
// but not the attributes of overlayfs ("trusted.overlay.*"), which speak of a place
// and not of a file.
func CopyMetadata(dst, src *os.File) error {
	e, _, err := lstat(int(src.Fd()), "")
	if err == nil {
		var x xattrReader
		e.Xattrs, err = x.read(int(src.Fd()), "")
	}
	if err != nil {
		return fmt.Errorf("read metadata of %s: %w", src.Name(), err)
	}
	e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x Xattr) bool { return strings.HasPrefix(x.Name, "trusted.overlay.") })
	err = setMetadata(int(dst.Fd()), "", e)
	runtime.KeepAlive(src)
	runtime.KeepAlive(dst)
	if err != nil {
		return fmt.Errorf("set metadata of %s: %w", dst.Name(), err)
	}
	return nil
}
