// Package overlay is a union of a read-only base and writable overlays, as a file
// system would see it: names, objects with an identity, their attributes and
// content. It knows nothing of FUSE (package fusefs serves it) nor of pools.
//
//	         what the view shows at a path
//	                    │
//	  claimed by an overlay? (longest claimed path wins)
//	     │ yes                          │ no
//	upper/PATH of its subvolume         │
//	  a file        → that file         │
//	  whiteout      → nothing           │
//	  opaque dir    → that directory    │
//	  dir, nothing ─► merged with, or ──┴─► PATH in the base (read-only: EROFS)
//
// # On disk
//
// An overlay is a directory (a subvolume) with upper/, rooted at the root of the
// view, and work/. The format is kernel overlayfs's, and the kernel mounts every
// overlay with its default options and shows the same tree:
//
//	whiteout    character device 0:0: the name is deleted
//	opaque dir  xattr trusted.overlay.opaque = "y": nothing of the base is in it
//	impure dir  xattr trusted.overlay.impure = "y": may hold objects with …
//	origin      xattr trusted.overlay.btrovl.ino: inode number u64, birth time s64
//	            seconds and u32 nanoseconds, little-endian, of the object of the
//	            base that this one was copied from (ours; the kernel hides it)
//
// There are no redirects and no index: a directory of the base is copied up whole
// (by reflink) before it is renamed, and copying up one name of a base file brings
// all its hard links inside the claim.
//
// # Claims
//
// A claimed path behaves like a mount point: it is there whatever the layers above
// hold, it cannot be removed or renamed (EBUSY), nor can what leads to it, and
// renames and links do not cross it (EXDEV). Where the base lacks the directories
// that lead to a claim, those of the overlay's upper stand in.
//
// # Identity
//
// A [Node] is one object for as long as somebody knows it (lookups minus forgets).
// Copying up, renaming and a switch of the base beneath do not change a directory's
// node; a file's node changes when a switch puts another file in its place. The old
// node then goes on showing the old file, as after a rename over it: see [Plan].
// Inode numbers of the base are kept over copy up and differ from those of all
// overlays.
//
// # Crash rule
//
// Everything is made complete in work/ (or without a name) and shown by one link or
// rename. After a crash at any point each name leads to what was there before or to
// what was to be there after, and to nothing else; work/ is swept by the next user.
// Reflinked content and names are metadata of one btrfs transaction; where content
// must be copied, it is synced before it gets its name.
//
// # Locks
//
//	Union.gate             shared by changes; alone by Freeze and the moment of a switch
//	└─ Union.tree          shared by all operations; alone by rename's last step and a switch
//	   └─ Node.mu          of a child before its parent's
//	      ├─ table.mu      names, ids, lookups       ┐
//	      ├─ fdCache.mu    descriptors               ├ leaves, never held over I/O
//	      ├─ scout.mu      what is read ahead        │
//	      └─ listCache.mu  which lists are kept      ┘
//
// The caller (the kernel) serialises changes of one directory's names against one
// another and against lookups of the same name.
package overlay
