package reset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// Change is one path that an overlay shows differently from the base: what a
// reset would lose.
type Change struct {
	Path         string `json:"path"` // absolute, as the view shows it
	Kind         string `json:"kind"` // "added", "changed" or "deleted"
	MetadataOnly bool   `json:"metadata_only"`
}

// Changes compares the upper directory of a deployment's overlay with the base and
// calls fn for every difference, in walk order. A whiteout is a deletion; what an
// opaque directory hides of the base is deleted, path by path. A file that was
// copied up and is like the base's again is no difference; a directory is one only
// if its own attributes differ, not because something in it does.
func Changes(ctx context.Context, p *subvolumes.Pool, d *subvolumes.Deployment, overlay string, fn func(Change) error) error {
	ref := d.Overlay(overlay)
	if ref == nil {
		return &subvolumes.UnknownError{Kind: "overlay", Name: overlay, Known: names(d)}
	}
	if ref.Subvolume == "" {
		return nil // collected: it is made anew, empty, when it is used
	}
	base, err := p.OpenBase(d.Base)
	if err != nil {
		return err
	}
	defer base.Close()
	dir, err := p.OpenOverlay(*ref)
	if err != nil {
		return err
	}
	defer dir.Close()
	upper, err := openBeneath(dir, "upper", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer upper.Close()
	c := &comparison{base: base, upper: upper, claims: ref.Paths, fn: fn}
	if err := tree.Walk(ctx, upper, func(e *tree.Entry, open tree.Opener) error { return c.entry(ctx, e, open) }); err != nil {
		return fmt.Errorf("cannot compare overlay %q with base %s: %w", overlay, d.Base, err)
	}
	return nil
}

type comparison struct {
	base, upper *os.File
	claims      []string
	fn          func(Change) error
}

// claimed tells whether a path of the upper directory belongs to the overlay;
// the parents of a claim are only the way to it.
func (c *comparison) claimed(rel string) bool {
	for _, claim := range c.claims {
		claim = strings.TrimPrefix(path.Clean(claim), "/")
		if claim == "" || rel == claim || strings.HasPrefix(rel, claim+"/") {
			return true
		}
	}
	return false
}

func (c *comparison) entry(ctx context.Context, e *tree.Entry, open tree.Opener) error {
	if !c.claimed(e.Path) {
		return nil
	}
	lower, err := lookup(c.base, e.Path)
	if err != nil {
		return err
	}
	switch {
	case whiteout(e):
		if lower == nil {
			return nil // hides nothing (any more)
		}
		return c.deleted(ctx, e.Path, lower)
	case lower == nil:
		return c.tell(e.Path, "added", false)
	case e.Mode&unix.S_IFMT != lower.Mode&unix.S_IFMT:
		if lower.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := c.below(ctx, e.Path, "deleted"); err != nil {
				return err
			}
		}
		return c.tell(e.Path, "changed", false)
	case e.Mode&unix.S_IFMT == unix.S_IFDIR:
		if err := c.sameAttributes(e, lower, true); err != nil {
			return err
		}
		if opaque(e) {
			return c.below(ctx, e.Path, "hidden")
		}
		return nil
	}
	same, err := c.sameContent(e, lower, open)
	if err != nil {
		return err
	}
	if !same {
		return c.tell(e.Path, "changed", false)
	}
	return c.sameAttributes(e, lower, false)
}

func (c *comparison) tell(rel, kind string, metadataOnly bool) error {
	return c.fn(Change{Path: "/" + rel, Kind: kind, MetadataOnly: metadataOnly})
}

// deleted tells that a path of the base is gone, and everything below it.
func (c *comparison) deleted(ctx context.Context, rel string, st *unix.Stat_t) error {
	if err := c.tell(rel, "deleted", false); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return c.below(ctx, rel, "deleted")
}

// below tells of what the base holds below a directory and the view does not
// show: all of it, or ("hidden") what the upper directory does not bring back.
func (c *comparison) below(ctx context.Context, rel, how string) error {
	dir, err := openBeneath(c.base, rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	return tree.Walk(ctx, dir, func(e *tree.Entry, _ tree.Opener) error {
		if e.Path == "" {
			return nil
		}
		full := path.Join(rel, e.Path)
		if how == "hidden" {
			up, err := lookup(c.upper, full)
			if err != nil {
				return err
			}
			if up != nil {
				return nil // its own entry tells; a directory's lower content is hidden as well
			}
		}
		return c.tell(full, "deleted", false)
	})
}

// sameAttributes tells of a path whose owner, mode, time or attributes differ. The
// time of a directory says only that something in it changed.
func (c *comparison) sameAttributes(e *tree.Entry, lower *unix.Stat_t, dir bool) error {
	same := e.Mode == lower.Mode && e.UID == lower.Uid && e.GID == lower.Gid
	if !dir {
		same = same && e.Mtime.Sec == int64(lower.Mtim.Sec) && e.Mtime.Nsec == int32(lower.Mtim.Nsec)
	}
	if same {
		attrs, err := xattrs(c.base, e.Path)
		if err != nil {
			return err
		}
		same = sameXattrs(e, attrs)
	}
	if same {
		return nil
	}
	return c.tell(e.Path, "changed", true)
}

func (c *comparison) sameContent(e *tree.Entry, lower *unix.Stat_t, open tree.Opener) (bool, error) {
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if e.Size != lower.Size {
			return false, nil
		}
		b, err := openBeneath(c.base, e.Path, unix.O_RDONLY)
		if err != nil {
			return false, err
		}
		defer b.Close()
		u, err := open()
		if err != nil {
			return false, err
		}
		defer u.Close()
		return equal(b, u)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		parent, err := openBeneath(c.base, path.Dir(e.Path), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return false, err
		}
		defer parent.Close()
		n, err := unix.Readlinkat(int(parent.Fd()), path.Base(e.Path), buf)
		return err == nil && string(buf[:n]) == e.Target, err
	case unix.S_IFBLK, unix.S_IFCHR:
		return e.Rdev == uint64(lower.Rdev), nil
	}
	return true, nil
}

func equal(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 128<<10), make([]byte, 128<<10)
	for {
		n, err := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return true, nil
		case err != nil:
			return false, err
		case err2 != nil:
			return false, err2
		}
	}
}

// whiteout tells whether an entry of an upper directory stands for a deletion.
func whiteout(e *tree.Entry) bool {
	return e.Mode&unix.S_IFMT == unix.S_IFCHR && e.Rdev == 0
}

// overlayXattr begins the attributes that overlayfs keeps for itself.
const overlayXattr = "trusted.overlay."

func opaque(e *tree.Entry) bool {
	for _, x := range e.Xattrs {
		if x.Name == overlayXattr+"opaque" && string(x.Value) == "y" {
			return true
		}
	}
	return false
}

func sameXattrs(e *tree.Entry, lower map[string]string) bool {
	n := 0
	for _, x := range e.Xattrs {
		if strings.HasPrefix(x.Name, overlayXattr) {
			continue
		}
		n++
		if v, ok := lower[x.Name]; !ok || v != string(x.Value) {
			return false
		}
	}
	return n == len(lower)
}

// openBeneath opens a path below root without following symbolic links.
func openBeneath(root *os.File, rel string, flags int) (*os.File, error) {
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(int(root.Fd()), rel, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path.Join(root.Name(), rel), Err: err}
	}
	return os.NewFile(uintptr(fd), path.Join(root.Name(), rel)), nil
}

// lookup returns the attributes of a path below root, nil if there is nothing.
func lookup(root *os.File, rel string) (*unix.Stat_t, error) {
	f, err := openBeneath(root, rel, unix.O_PATH)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil // ELOOP: a parent is a symbolic link there, so it has nothing below
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st := new(unix.Stat_t)
	if err := unix.Fstat(int(f.Fd()), st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, nil
}

// xattrs reads the attributes of a path of the base.
func xattrs(root *os.File, rel string) (map[string]string, error) {
	f, err := openBeneath(root, rel, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// A path descriptor takes no f*xattr calls, and its entry in /proc is a link
	// that must be followed, whatever it leads to.
	proc := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(proc, buf)
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: f.Name(), Err: err}
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		if len(name) == 0 || strings.HasPrefix(string(name), overlayXattr) {
			continue
		}
		m, err := unix.Getxattr(proc, string(name), value)
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: f.Name(), Err: err}
		}
		out[string(name)] = string(value[:m])
	}
	return out, nil
}
