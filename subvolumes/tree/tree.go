// Package tree reads, digests, copies and compares trees of files with all their
// metadata: owners, modes, times to the nanosecond, extended attributes
// (capabilities, ACLs, labels), hard links, holes, device nodes.
//
// A tree is a directory handle. Everything below is opened relative to it by
// single names without following symbolic links, so a tree that changes meanwhile
// may be read inconsistently but never leads outside. A walk stays on the root's
// device: another subvolume or mount appears as an empty directory.
//
// # Order
//
// A walk gives a directory before its entries, and siblings in the order of their
// names' bytes. So it is a function of the tree's content alone.
//
// # Digest
//
// The digest of a tree is the SHA-256 over the following bytes, integers in
// little-endian order:
//
//	"btrovl tree 1\n"
//	for every entry in walk order, the root (path "") first:
//	  u32 length, path                        "/" between names, none in front
//	  u32 st_mode                             type and permission bits
//	  u32 uid, u32 gid
//	  i64 seconds, u32 nanoseconds            of mtime
//	  u32 number of extended attributes, and in the order of their names:
//	    u32 length, name;  u32 length, value
//	  u32 length, path                        of the first entry of the same inode,
//	                                          or length 0; if not 0, the entry ends
//	  regular file:     u64 size, 32 bytes SHA-256 of the content
//	  symbolic link:    u32 length, target
//	  device node:      u32 major, u32 minor
//
// Not in it: inode numbers, access and change times, the layout of extents and
// holes, links from outside the tree. Two trees with equal digests cannot be told
// apart by a program that does not look at those.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
)

// Time is a time stamp as the file system keeps it, on all architectures.
type Time struct {
	Sec  int64
	Nsec int32
}

// Xattr is an extended attribute with its full name ("security.capability").
type Xattr struct {
	Name  string
	Value []byte
}

// Entry describes one file of a tree.
type Entry struct {
	Path   string // relative to the root, "" for the root itself
	Mode   uint32 // st_mode, with the type
	UID    uint32
	GID    uint32
	Rdev   uint64 // of device nodes, as st_rdev
	Size   int64  // of regular files and symbolic links
	Mtime  Time
	Ino    uint64
	Nlink  uint32
	Target string  // of symbolic links
	Xattrs []Xattr // in the order of their names
	// Link is the path of the first entry of the same inode; "" if this is the
	// first or only one.
	Link string
}

// Opener opens the entry that a walk is at, for reading. It serves regular files
// and directories and must be called before the walk's function returns. The
// caller closes the file.
type Opener func() (*os.File, error)

// Stats counts what a tree holds.
type Stats struct {
	Files    int64 // regular files, each inode once
	Dirs     int64
	Symlinks int64
	Others   int64 // device nodes, FIFOs, sockets
	Links    int64 // further names of inodes that were counted already
	Bytes    int64 // content of regular files
}

// Sum is a SHA-256 digest of a tree or of a file.
type Sum [sha256.Size]byte

// String returns 64 hexadecimal digits.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// ParseSum reads what String returned.
func ParseSum(text string) (s Sum, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, fmt.Errorf("%q is not a SHA-256 digest of 64 hexadecimal digits", text)
	}
	copy(s[:], b)
	return s, nil
}

// DigestOptions shape [Digest].
type DigestOptions struct {
	// Jobs bounds how many files are hashed at once; 0 means GOMAXPROCS.
	Jobs int
	// Progress is told bytes hashed so far; total is 0 (not known) unless Total is set.
	Progress func(done, total int64)
	// Total is what the caller knows of the size, for Progress only.
	Total int64
	// Entry, if not nil, is called in walk order for every entry with the digest of
	// its content (zero unless it is the first name of a regular file).
	Entry func(e *Entry, content Sum) error
}

// CopyOptions shape [Copy].
type CopyOptions struct {
	// Progress is told bytes copied (reflinked ones too) so far; total is 0.
	Progress func(done, total int64)
	// Jobs bounds how many files are copied at once; 0 means GOMAXPROCS.
	Jobs int
}

// ExtractOptions shape [Extract].
type ExtractOptions struct {
	// Progress is told how many bytes of the archive were read; total is Total.
	Progress func(done, total int64)
	// Total is the archive's size, for Progress only; 0 if not known.
	Total int64
	// MaxBytes bounds the content that is written, 0 means no bound.
	MaxBytes int64
	// NoDevices refuses device nodes.
	NoDevices bool
}

// Kind says how an entry differs between two trees.
type Kind uint8

// The kinds of difference. An entry whose type changed is Removed, then Added.
const (
	Added    Kind = 1 + iota // only in the second tree
	Removed                  // only in the first tree
	Content                  // content, link target or device number differs
	Metadata                 // only owner, mode, mtime, attributes or links differ
)

func (k Kind) String() string {
	switch k {
	case Added:
		return "added"
	case Removed:
		return "removed"
	case Content:
		return "content"
	case Metadata:
		return "metadata"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}
