package btrfs

import (
	"bytes"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Types of items that callers look for (btrfs_tree.h).
const (
	InodeItem   = 1
	InodeRef    = 12
	InodeExtref = 13
	XattrItem   = 24
	DirIndex    = 96
	ExtentData  = 108
	RootItem    = 132
)

// Key is a place in a btree: items are ordered by ObjectID, then Type, then Offset.
type Key struct {
	ObjectID uint64
	Type     uint8
	Offset   uint64
}

// Item is one item of a btree. Data is valid during the call only.
type Item struct {
	Key
	Generation uint64 // of the metadata block that holds it, not of the item
	Data       []byte
}

// Search calls fn for the items of a tree between two keys, in order. tree 0 is the
// subvolume that holds f, 1 the tree of tree roots. Only blocks written at or after
// generation minGen are read, which makes "what may have changed since" cheap.
func Search(f *os.File, tree uint64, from, to Key, minGen uint64, fn func(Item) error) error {
	// struct btrfs_ioctl_search_args_v2: tree_id 0, min/max objectid 8/16, min/max
	// offset 24/32, min/max transid 40/48, min/max type 56/60, nr_items 64, ...,
	// buf_size 104, items from 112: {transid 0, objectid 8, offset 16, type 24, len 28}.
	const head, bufSize = 112, 64 << 10
	buf := make([]byte, head+bufSize)
	for next := from; ; {
		clear(buf[:head])
		le.PutUint64(buf[0:], tree)
		le.PutUint64(buf[8:], next.ObjectID)
		le.PutUint64(buf[16:], to.ObjectID)
		le.PutUint64(buf[24:], next.Offset)
		le.PutUint64(buf[32:], to.Offset)
		le.PutUint64(buf[40:], minGen)
		le.PutUint64(buf[48:], math.MaxUint64)
		le.PutUint32(buf[56:], uint32(next.Type))
		le.PutUint32(buf[60:], uint32(to.Type))
		le.PutUint32(buf[64:], math.MaxUint32)
		le.PutUint64(buf[104:], bufSize)
		if err := ioctl(f, number(dirRead|dirWrite, 17, head), buf); err != nil {
			return fmt.Errorf("search tree %d of %s: %w", tree, f.Name(), err)
		}
		n := le.Uint32(buf[64:])
		if n == 0 {
			return nil
		}
		p := buf[head:]
		for range n {
			if len(p) < 32 {
				return fmt.Errorf("search tree %d of %s: the kernel's answer is cut short", tree, f.Name())
			}
			size := le.Uint32(p[28:])
			if uint64(size) > uint64(len(p)-32) {
				return fmt.Errorf("search tree %d of %s: the kernel's answer is cut short", tree, f.Name())
			}
			it := Item{
				Generation: le.Uint64(p[0:]),
				Key:        Key{le.Uint64(p[8:]), uint8(le.Uint32(p[24:])), le.Uint64(p[16:])},
				Data:       p[32 : 32+size],
			}
			p = p[32+size:]
			next = it.Key
			if err := fn(it); err != nil {
				return err
			}
		}
		// The key after the last one.
		switch {
		case next.Offset < math.MaxUint64:
			next.Offset++
		case next.Type < math.MaxUint8:
			next.Type, next.Offset = next.Type+1, 0
		case next.ObjectID < math.MaxUint64:
			next = Key{ObjectID: next.ObjectID + 1}
		default:
			return nil
		}
	}
}

// InodePaths returns all names of inode ino in the subvolume that holds f, relative to
// the subvolume's root, in no order. It reads the inode's references itself, because
// BTRFS_IOC_INO_PATHS returns at most 4096 bytes of them. Error: ENOENT.
func InodePaths(f *os.File, ino uint64) ([]string, error) {
	type ref struct {
		parent uint64
		name   string
	}
	var refs []ref
	bad := fmt.Errorf("names of inode %d in %s: a reference is damaged", ino, f.Name())
	from, to := Key{ino, InodeRef, 0}, Key{ino, InodeExtref, math.MaxUint64}
	err := Search(f, 0, from, to, 0, func(it Item) error {
		// struct btrfs_inode_ref {u64 index, u16 len}, the parent in the key; struct
		// btrfs_inode_extref {u64 parent, u64 index, u16 len}; then the name, repeated.
		for b := it.Data; len(b) > 0; {
			parent := it.Offset
			if it.Type == InodeExtref {
				if len(b) < 8 {
					return bad
				}
				parent, b = le.Uint64(b), b[8:]
			}
			if len(b) < 10 || len(b) < 10+int(le.Uint16(b[8:])) {
				return bad
			}
			n := 10 + int(le.Uint16(b[8:]))
			refs = append(refs, ref{parent, string(b[10:n])})
			b = b[n:]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("names of inode %d in %s: %w", ino, f.Name(), unix.ENOENT)
	}
	dirs := map[uint64]string{}
	var paths []string
	for _, r := range refs {
		dir, ok := dirs[r.parent]
		if !ok {
			if dir, err = dirPath(f, r.parent); err != nil {
				return nil, err
			}
			dirs[r.parent] = dir
		}
		paths = append(paths, dir+r.name)
	}
	return paths, nil
}

// dirPath returns the path of a directory's inode with a slash at its end, "" for the root.
func dirPath(f *os.File, ino uint64) (string, error) {
	// struct btrfs_ioctl_ino_lookup_args: treeid 0, objectid 8, name 16 (4080 bytes).
	buf := make([]byte, 4096)
	le.PutUint64(buf[8:], ino)
	if err := ioctl(f, number(dirRead|dirWrite, 18, 4096), buf); err != nil {
		return "", fmt.Errorf("path of directory %d in %s: %w", ino, f.Name(), err)
	}
	name, _, _ := bytes.Cut(buf[16:], []byte{0})
	return string(name), nil
}
