package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/tree"
)

// entry is what a bundle says of one file, directory or other node: everything
// but the content of regular files.
type entry struct {
	path   string // relative, "" is the root
	mode   uint32 // st_mode, type included
	uid    uint32
	gid    uint32
	sec    int64 // mtime
	nsec   int32
	rdev   uint64
	target string // of a symbolic link
	link   int    // index of the first entry with the same inode, -1 if it is the first or only one
	xattrs []tree.Xattr

	size int64 // regular files; not part of the encoding (the new size travels with the content)
}

func (e *entry) isDir() bool     { return e.mode&unix.S_IFMT == unix.S_IFDIR }
func (e *entry) isRegular() bool { return e.mode&unix.S_IFMT == unix.S_IFREG }
func (e *entry) isDevice() bool {
	t := e.mode & unix.S_IFMT
	return t == unix.S_IFCHR || t == unix.S_IFBLK
}

// sameMeta compares what is set on an inode after it was made.
func (e *entry) sameMeta(o *entry) bool {
	return e.mode == o.mode && e.uid == o.uid && e.gid == o.gid && e.sec == o.sec && e.nsec == o.nsec && e.sameXattrs(o)
}

func (e *entry) sameXattrs(o *entry) bool {
	if len(e.xattrs) != len(o.xattrs) {
		return false
	}
	for i := range e.xattrs {
		if e.xattrs[i].Name != o.xattrs[i].Name || !bytes.Equal(e.xattrs[i].Value, o.xattrs[i].Value) {
			return false
		}
	}
	return true
}

// A listing is a whole tree: entries[0] is the root, every directory comes
// before what it holds, names of one directory ascend bytewise.
type listing struct {
	entries []entry
	byPath  map[string]int
}

func (l *listing) index() {
	l.byPath = make(map[string]int, len(l.entries))
	for i := range l.entries {
		l.byPath[l.entries[i].path] = i
	}
}

// find returns the entry of a path, or nil.
func (l *listing) find(path string) *entry {
	if i, ok := l.byPath[path]; ok {
		return &l.entries[i]
	}
	return nil
}

// list walks a tree.
func list(ctx context.Context, root *os.File) (*listing, error) {
	var l listing
	links := make(map[string]int)
	err := tree.Walk(ctx, root, func(e *tree.Entry, _ tree.Opener) error { return l.add(e, links) })
	if err != nil {
		return nil, err
	}
	if !l.sorted() {
		return nil, errors.New("the entries of a tree came out of order")
	}
	l.index()
	return &l, nil
}

// add appends an entry of a walk. links remembers the first names of inodes with several.
func (l *listing) add(e *tree.Entry, links map[string]int) error {
	n := entry{path: e.Path, mode: e.Mode, uid: e.UID, gid: e.GID, sec: e.Mtime.Sec, nsec: e.Mtime.Nsec,
		target: e.Target, link: -1, xattrs: e.Xattrs, size: e.Size}
	if n.isDevice() {
		n.rdev = e.Rdev
	}
	if e.Link != "" {
		first, ok := links[e.Link]
		if !ok {
			return fmt.Errorf("%s is a hard link of %s, which was not seen", e.Path, e.Link)
		}
		n.link = first
	} else if e.Nlink > 1 && !n.isDir() {
		links[e.Path] = len(l.entries)
	}
	l.entries = append(l.entries, n)
	return nil
}

// sorted reports whether the order is that of the encoding; tree.Walk's is.
func (l *listing) sorted() bool {
	for i := 1; i < len(l.entries); i++ {
		if !pathLess(l.entries[i-1].path, l.entries[i].path) {
			return false
		}
	}
	return true
}

// pathLess orders a directory's content right behind it: '/' sorts below every
// byte that a name can hold.
func pathLess(a, b string) bool {
	n := min(len(a), len(b))
	for i := 0; i < n; i++ {
		if a[i] != b[i] {
			if a[i] == '/' {
				return true
			}
			if b[i] == '/' {
				return false
			}
			return a[i] < b[i]
		}
	}
	return len(a) < len(b)
}

// The encoding of a listing is made to be diffed against that of another
// listing: names nested by directory, so that a renamed directory changes one
// name, and every attribute in a column of its own with fixed width.
//
//	u32 entries, u32 symlinks, u32 devices, u32 links, u32 entries with xattrs
//	names    root's content: "name\0" for what is not a directory, "name/" … "\0" for one
//	modes    u16 each      (st_mode)
//	uids     u32 each
//	gids     u32 each
//	seconds  i64 each      (mtime)
//	nanos    u32 each
//	targets  "target\0" per symbolic link
//	rdevs    u64 per device
//	links    u32 entry, u32 entry of the same inode, per further link
//	xattrs   u32 entry, u32 count, count × (u16 length, name, u32 length, value)
//
// All integers are little endian.
func (l *listing) encode() []byte {
	var symlinks, devices, links, attrs uint32
	for i := range l.entries {
		e := &l.entries[i]
		if e.link >= 0 {
			links++
		}
		if e.target != "" {
			symlinks++
		}
		if e.isDevice() {
			devices++
		}
		if len(e.xattrs) > 0 {
			attrs++
		}
	}
	le := binary.LittleEndian
	b := make([]byte, 0, 48*len(l.entries)+64)
	for _, n := range []uint32{uint32(len(l.entries)), symlinks, devices, links, attrs} {
		b = le.AppendUint32(b, n)
	}
	b = l.appendNames(b)
	for i := range l.entries {
		b = le.AppendUint16(b, uint16(l.entries[i].mode))
	}
	for i := range l.entries {
		b = le.AppendUint32(b, l.entries[i].uid)
	}
	for i := range l.entries {
		b = le.AppendUint32(b, l.entries[i].gid)
	}
	for i := range l.entries {
		b = le.AppendUint64(b, uint64(l.entries[i].sec))
	}
	for i := range l.entries {
		b = le.AppendUint32(b, uint32(l.entries[i].nsec))
	}
	for i := range l.entries {
		if t := l.entries[i].target; t != "" {
			b = append(append(b, t...), 0)
		}
	}
	for i := range l.entries {
		if l.entries[i].isDevice() {
			b = le.AppendUint64(b, l.entries[i].rdev)
		}
	}
	for i := range l.entries {
		if l.entries[i].link >= 0 {
			b = le.AppendUint32(b, uint32(i))
			b = le.AppendUint32(b, uint32(l.entries[i].link))
		}
	}
	for i := range l.entries {
		if x := l.entries[i].xattrs; len(x) > 0 {
			b = le.AppendUint32(b, uint32(i))
			b = le.AppendUint32(b, uint32(len(x)))
			for _, a := range x {
				b = le.AppendUint16(b, uint16(len(a.Name)))
				b = append(b, a.Name...)
				b = le.AppendUint32(b, uint32(len(a.Value)))
				b = append(b, a.Value...)
			}
		}
	}
	return b
}

func (l *listing) appendNames(b []byte) []byte {
	depth := 0 // of the directory that is open
	for i := range l.entries[1:] {
		e := &l.entries[i+1]
		d := strings.Count(e.path, "/")
		for ; depth > d; depth-- {
			b = append(b, 0)
		}
		b = append(b, e.path[strings.LastIndexByte(e.path, '/')+1:]...)
		if e.isDir() {
			b = append(b, '/')
			depth++
		} else {
			b = append(b, 0)
		}
	}
	for ; depth >= 0; depth-- {
		b = append(b, 0)
	}
	return b
}

var errListing = errors.New("the list of files is malformed")

// Bounds on what a listing may say, whoever signed it.
const (
	maxName    = 255
	maxPath    = 4095
	maxEntries = 1 << 26
)

// listingReader takes bounded pieces off an encoded listing.
type listingReader struct {
	b   []byte
	err error
}

func (r *listingReader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.b)) {
		r.err = errListing
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *listingReader) u16() uint32 {
	if p := r.take(2); p != nil {
		return uint32(binary.LittleEndian.Uint16(p))
	}
	return 0
}

func (r *listingReader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *listingReader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// text takes what stands before the next delimiter, at most limit bytes, and
// returns the delimiter too.
func (r *listingReader) text(delims string, limit int) (string, byte) {
	i := bytes.IndexAny(r.b[:min(len(r.b), limit+1)], delims)
	if r.err != nil || i < 0 {
		r.err = errListing
		return "", 0
	}
	s, d := string(r.b[:i]), r.b[i]
	r.b = r.b[i+1:]
	return s, d
}

// decodeListing checks everything that later steps rely on: names are single
// components and unique, types are known and agree with the nesting, a link's target is an
// earlier entry that is not a directory, nothing is left over.
func decodeListing(b []byte) (*listing, error) {
	r := &listingReader{b: b}
	n, symlinks, devices, links, attrs := r.u32(), r.u32(), r.u32(), r.u32(), r.u32()
	// The smallest entry has 2 bytes of name and 22 of columns.
	if r.err != nil || n == 0 || n > maxEntries || uint64(n-1)*24 > uint64(len(b)) {
		return nil, errListing
	}
	l := &listing{entries: make([]entry, 1, n)}
	l.entries[0].mode = unix.S_IFDIR
	l.readNames(r, int(n))
	for i := range l.entries {
		e := &l.entries[i]
		dir := e.isDir()
		e.link = -1
		e.mode = r.u16()
		if dir != e.isDir() {
			r.err = errListing
		}
	}
	for i := range l.entries {
		l.entries[i].uid = r.u32()
	}
	for i := range l.entries {
		l.entries[i].gid = r.u32()
	}
	for i := range l.entries {
		l.entries[i].sec = int64(r.u64())
	}
	for i := range l.entries {
		nsec := r.u32()
		if nsec >= 1e9 {
			r.err = errListing
		}
		l.entries[i].nsec = int32(nsec)
	}
	if r.err != nil {
		return nil, r.err
	}
	for i := range l.entries {
		e := &l.entries[i]
		switch e.mode & unix.S_IFMT {
		case unix.S_IFLNK:
			e.target, _ = r.text("\x00", maxPath)
			if e.target == "" {
				r.err = errListing
			}
			symlinks--
		case unix.S_IFREG, unix.S_IFDIR, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		default:
			r.err = errListing
		}
	}
	for i := range l.entries {
		if l.entries[i].isDevice() {
			l.entries[i].rdev = r.u64()
			devices--
		}
	}
	l.readLinks(r, links)
	l.readXattrs(r, attrs)
	if r.err != nil || len(r.b) != 0 || symlinks != 0 || devices != 0 {
		return nil, errListing
	}
	l.index()
	return l, nil
}

func (l *listing) readNames(r *listingReader, n int) {
	dir := ""          // path of the open directory with its slash
	var last string    // name before in that directory
	var above []string // last names of the directories above
	for r.err == nil {
		name, d := r.text("\x00/", maxName)
		if r.err != nil {
			return
		}
		if name == "" {
			if d != 0 {
				r.err = errListing
				return
			}
			if dir == "" {
				break
			}
			dir = dir[:strings.LastIndexByte(dir[:len(dir)-1], '/')+1]
			last = above[len(above)-1]
			above = above[:len(above)-1]
			continue
		}
		if name == "." || name == ".." || name <= last || len(dir)+len(name) > maxPath || len(l.entries) == n {
			r.err = errListing
			return
		}
		last = name
		e := entry{path: dir + name}
		if d == '/' {
			e.mode = unix.S_IFDIR
			dir += name + "/"
			above = append(above, last)
			last = ""
		}
		l.entries = append(l.entries, e)
	}
	if len(l.entries) != n {
		r.err = errListing
	}
}

func (l *listing) readLinks(r *listingReader, n uint32) {
	last := 0
	for ; n > 0 && r.err == nil; n-- {
		i, first := r.u32(), r.u32()
		if i >= uint32(len(l.entries)) || int(i) <= last || first >= i {
			r.err = errListing
			return
		}
		e, f := &l.entries[i], &l.entries[first]
		if e.isDir() || f.link >= 0 || e.mode != f.mode || e.target != f.target || e.rdev != f.rdev {
			r.err = errListing
			return
		}
		last, e.link = int(i), int(first)
	}
}

func (l *listing) readXattrs(r *listingReader, n uint32) {
	last := -1
	for ; n > 0 && r.err == nil; n-- {
		i, count := r.u32(), r.u32()
		if i >= uint32(len(l.entries)) || int(i) <= last || count == 0 || uint64(count)*6 > uint64(len(r.b)) {
			r.err = errListing
			return
		}
		last = int(i)
		for ; count > 0 && r.err == nil; count-- {
			name := string(r.take(uint64(r.u16())))
			value := r.take(uint64(r.u32()))
			if name == "" || len(name) > maxName || strings.IndexByte(name, 0) >= 0 || len(value) > math.MaxUint16+1 {
				r.err = errListing
				return
			}
			l.entries[i].xattrs = append(l.entries[i].xattrs, tree.Xattr{Name: name, Value: bytes.Clone(value)})
		}
	}
}
