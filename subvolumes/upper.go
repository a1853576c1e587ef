package subvolumes

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/tree"
)

// fillUpper makes the directories of the claimed paths in upper, which stands for "/"
// of the view. A directory that the base has gets the base's owner, mode, attributes
// and time, because in a union the upper directory's are shown; others get root's and
// 0755. What is there already stays, but for upper itself. base may be nil.
func fillUpper(upper, base *os.File, def OverlayDef) error {
	root := &claimNode{sub: map[string]*claimNode{}}
	for _, p := range def.Paths {
		n := root
		for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
			if name == "" {
				continue // the claim of "/"
			}
			if n.sub[name] == nil {
				n.sub[name] = &claimNode{sub: map[string]*claimNode{}}
			}
			n = n.sub[name]
		}
	}
	if base == nil {
		return root.fill(upper, nil, def.Name, "/", false)
	}
	return root.fill(upper, base, def.Name, "/", true)
}

// claimNode is a directory on the way to claimed paths.
type claimNode struct{ sub map[string]*claimNode }

// fill fills dir, which stands for the directory from of the base (nil if it has
// none), and then gives it from's metadata if it is fresh.
func (n *claimNode) fill(dir, from *os.File, overlay, at string, fresh bool) error {
	for name, sub := range n.sub {
		if err := sub.enter(dir, from, overlay, path.Join(at, name), name); err != nil {
			return err
		}
	}
	if fresh && from != nil {
		if err := tree.CopyMetadata(dir, from); err != nil {
			return err
		}
	}
	return nil
}

// enter makes dir/name and fills it.
func (n *claimNode) enter(dir, from *os.File, overlay, at, name string) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var base *os.File
	if from != nil {
		fd, err := unix.Openat(int(from.Fd()), name, flags, 0)
		switch {
		case err == nil:
			base = os.NewFile(uintptr(fd), from.Name()+"/"+name)
			defer base.Close()
		case errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			target, err := readlinkat(from, name)
			if err == nil {
				return &ClaimError{overlay, at, fmt.Sprintf("in the base it is a symbolic link to %q; claim the directory itself", target)}
			}
			return &ClaimError{overlay, at, "in the base it is no directory; claim the one that it lies in"}
		default:
			return fmt.Errorf("open %s/%s: %w", from.Name(), name, err)
		}
	}
	fresh := true
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err == unix.EEXIST {
		fresh = false
	} else if err != nil {
		return fmt.Errorf("make %s/%s: %w", dir.Name(), name, err)
	}
	fd, err := unix.Openat(int(dir.Fd()), name, flags, 0)
	if err != nil {
		if !fresh && (errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)) {
			return nil // a restored overlay holds something else there, and is right
		}
		return fmt.Errorf("open %s/%s: %w", dir.Name(), name, err)
	}
	sub := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	defer sub.Close()
	if fresh && base == nil {
		if err := sub.Chmod(0o755); err != nil { // whatever the umask
			return fmt.Errorf("make %s: %w", sub.Name(), err)
		}
	}
	return n.fill(sub, base, overlay, at, fresh)
}

func readlinkat(dir *os.File, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
