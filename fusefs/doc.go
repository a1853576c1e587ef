// Package fusefs serves a union (package overlay) as a FUSE file system, and
// exchanges its layers while it is mounted.
//
//	program ─ VFS ─ fuse.ko ══ connection ─ go-fuse ─ rawFS ─ overlay.Union ─ btrfs
//	           │ caches entries, negative entries, attributes, symlinks, lists and
//	           │ pages without time limit; asks only for what it does not know
//	           └ checks permissions (default_permissions), keeps locks
//
// # No-open
//
// OPEN and OPENDIR are answered with ENOSYS once, while mounting ([Mount] opens a
// file for it), and FLUSH at the first close; the kernel then opens and closes
// without asking. READ, WRITE and all else come by node. There is no table of open
// files, copying up waits for the first change, and a descriptor opened before
// sees what is written later.
//
// Traps that this rests on: ATOMIC_O_TRUNC must be off, or O_TRUNC is lost.
// CREATE and TMPFILE return handle 0 and no state. With HANDLE_KILLPRIV_V2 set-id
// bits are cleared here. WRITEBACK_CACHE would move errors from write to close.
//
// # Switch
//
//	overlay.Prepare   finds what differs; requests go on
//	overlay.Follow    if it was prepared before a freeze: what changed since
//	overlay.Commit    exchanges the layers; requests wait for well below a millisecond
//	tell              lets the kernel forget what it knew wrongly; requests go on
//
// Notifications take the lock of a directory in the kernel, which a request may
// hold that waits for this server: so they are sent without any lock of ours,
// from a goroutine that serves nothing, and after a freeze has ended. A name on
// which something is mounted, or that leads to such a one, is never invalidated:
// that would unmount it. Sending one to a directory also waits for the lookups and
// lists under way in it, whose answers may be old.
//
// # Locks
//
//	View.switching     one switch at a time
//	├─ connection.mu   a notification against the closing of /dev/fuse
//	└─ View.mu         freeze and its timer
//	   └─ the union's  see package overlay
package fusefs
