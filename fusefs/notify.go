package fusefs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Notifications, as linux/fuse.h lays them out: a header whose unique number is 0
// and whose error field says which one it is, then the arguments.
const (
	notifyInode  = 2 // FUSE_NOTIFY_INVAL_INODE
	notifyEntry  = 3 // FUSE_NOTIFY_INVAL_ENTRY
	notifyDelete = 6 // FUSE_NOTIFY_DELETE
)

// forgetInode lets the kernel forget the attributes of an object, and its pages from
// an offset on (negative: none; length 0: to the end). ENOENT: it does not know the object.
func (c *connection) forgetInode(node uint64, off, length int64) error {
	return c.notify(notifyInode, "", node, uint64(off), uint64(length))
}

// forgetEntry lets the kernel look a name up again. ENOENT: it does not know it.
func (c *connection) forgetEntry(parent uint64, name string) error {
	return c.notify(notifyEntry, name, parent)
}

// deleteEntry is forgetEntry for a name whose object is gone from there: who has it
// as working directory keeps it, and is told by inotify.
func (c *connection) deleteEntry(parent, child uint64, name string) error {
	return c.notify(notifyDelete, name, parent, child)
}

// notify sends a notification. The caller holds no lock that a request needs, and
// serves no request: the kernel may wait for one before it returns.
func (c *connection) notify(code uint32, name string, args ...uint64) error {
	b := make([]byte, replyHeader, 64+255)
	for _, a := range args {
		b = binary.NativeEndian.AppendUint64(b, a)
	}
	if name != "" {
		b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
		b = binary.NativeEndian.AppendUint32(b, 0) // flags, or padding
		b = append(append(b, name...), 0)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], code)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.fd < 0 {
		return unix.ENODEV
	}
	_, err := unix.Write(c.fd, b)
	return err
}
