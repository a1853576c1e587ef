package viewtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree describes every entry below a directory: type, mode, owner, links, size, times
// (as in [Result]), xattrs, content, and which names are one file. Two directories that show
// the same to programs have equal trees. Nothing below /proc/self/fd is followed; the
// depth is not limited by PATH_MAX.
func Tree(ctx context.Context, dir string) (map[string]string, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	w := &treeWalk{ctx: ctx, out: map[string]string{}, links: map[[2]uint64]int{}}
	err = w.dir(fd, "")
	return w.out, err
}

type treeWalk struct {
	ctx   context.Context
	out   map[string]string
	links map[[2]uint64]int // (dev, ino) of a file with several names → its number
}

// dir describes a directory and what is in it, and closes fd.
func (w *treeWalk) dir(fd int, path string) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := readEntries(fd, 1<<15)
	if err != nil {
		return fmt.Errorf("reading directory %q: %w", short(path), err)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	if err := w.describe(fd, ".", path, 0); err != nil {
		return err
	}
	for i, e := range entries {
		if e.name == "." || e.name == ".." {
			continue
		}
		if i > 0 && entries[i-1].name == e.name {
			return fmt.Errorf("directory %q lists %q twice", short(path), e.name)
		}
		sub := strings.TrimPrefix(path+"/"+e.name, "/")
		if e.typ == unix.DT_DIR {
			next, err := unix.Openat(fd, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("opening %q: %w", short(sub), err)
			}
			if err := w.dir(next, sub); err != nil {
				return err
			}
			continue
		}
		if err := w.describe(fd, e.name, sub, e.typ); err != nil {
			return err
		}
	}
	return nil
}

func (w *treeWalk) describe(dir int, name, path string, typ byte) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q is listed, but: %w", short(path), err)
	}
	s := statString(&st)
	if typ != 0 && uint32(typ)<<12 != st.Mode&unix.S_IFMT {
		s += fmt.Sprintf(" LISTED AS TYPE %d", typ)
	}
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		b := make([]byte, 4097)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return fmt.Errorf("readlink %q: %w", path, err)
		}
		s += " -> " + string(b[:n])
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %q: %w", short(path), err)
		}
		f := os.NewFile(uintptr(fd), path)
		h := crc32.NewIEEE()
		n, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %q: %w", short(path), err)
		}
		if n != st.Size {
			s += fmt.Sprintf(" BUT %d BYTES", n)
		}
		s += fmt.Sprintf(" #%08x", h.Sum32())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if w.links[id] == 0 {
			w.links[id] = len(w.links) + 1
		}
		s += fmt.Sprintf(" link#%d", w.links[id])
	}
	x, err := xattrs(at)
	if err != nil {
		return fmt.Errorf("xattrs of %q: %w", short(path), err)
	}
	w.out[path] = s + x
	return nil
}

func xattrs(path string) (string, error) {
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return "", err
	}
	names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	sort.Strings(names)
	var s strings.Builder
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, b)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		v := hex.EncodeToString(b[:n])
		if len(v) > 100 {
			v = fmt.Sprintf("%d:%08x", n, crc32.ChecksumIEEE(b[:n]))
		}
		fmt.Fprintf(&s, " %s=%s", name, v)
	}
	return s.String(), nil
}

var linkNumber = regexp.MustCompile(` link#\d+`)

// WithoutLinks forgets which names are one file (but not how many names it has).
func WithoutLinks(tree map[string]string) map[string]string {
	out := make(map[string]string, len(tree))
	for p, s := range tree {
		out[p] = linkNumber.ReplaceAllString(s, "")
	}
	return out
}

// DiffTrees returns one line for each difference, at most max of them.
func DiffTrees(gotName, wantName string, got, want map[string]string, max int) []string {
	paths := map[string]bool{}
	for p := range got {
		paths[p] = true
	}
	for p := range want {
		paths[p] = true
	}
	var sorted []string
	for p := range paths {
		if got[p] != want[p] {
			sorted = append(sorted, p)
		}
	}
	sort.Strings(sorted)
	var out []string
	for _, p := range sorted {
		if len(out) == max {
			return append(out, fmt.Sprintf("… and %d more", len(sorted)-max))
		}
		line := func(m map[string]string) string {
			if s, ok := m[p]; ok {
				return s
			}
			return "(missing)"
		}
		out = append(out, fmt.Sprintf("%q\n    %-9s %s\n    %-9s %s", short(p), gotName, line(got), wantName, line(want)))
	}
	return out
}
