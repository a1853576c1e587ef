package overlay

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Names below trusted.overlay. belong to the overlay and do not show; those that a
// user sets (another overlayfs on top of the view) are kept below
// trusted.overlay.overlay., as kernel overlayfs does since 6.7.
const xattrEscape = xattrPrefix + "overlay."

// private says that a layer's attribute is the overlay's own.
func private(name string) bool {
	return strings.HasPrefix(name, xattrPrefix) && !strings.HasPrefix(name, xattrEscape)
}

// inner returns the name in the layer of an attribute of the view.
func inner(name string) string {
	if rest, ok := strings.CutPrefix(name, xattrPrefix); ok {
		return xattrEscape + rest
	}
	return name
}

// outer returns the name in the view of an attribute of a layer, "" if it does
// not show.
func outer(name string) string {
	if rest, ok := strings.CutPrefix(name, xattrEscape); ok {
		return xattrPrefix + rest
	}
	if private(name) {
		return ""
	}
	return name
}

// Getxattr reads an attribute; an empty buf asks for its size.
func (u *Union) Getxattr(n *Node, name string, buf []byte) (size int, err error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	if n.is(noXattrs) || name == xattrCaps && n.is(noCaps) {
		return 0, unix.ENODATA
	}
	if n.typ == unix.S_IFDIR && name == xattrDefaultACL && n.is(hasUpper) && n.is(defACLKnown) && !n.is(defACL) {
		return 0, unix.ENODATA
	}
	err = u.with(n, func(o at) error {
		size, err = o.getxattr(inner(name), buf)
		return err
	})
	switch {
	case err != unix.ENODATA:
	case name == xattrCaps:
		n.set(noCaps, 0)
	case name == xattrSELinux && u.bare(n):
		n.set(noXattrs, 0)
	}
	return size, err
}

// Listxattr returns all names. Those of trusted attributes are shown to everybody,
// as btrfs does; overlayfs hides them.
func (u *Union) Listxattr(n *Node) (names []string, err error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	var all []string
	err = u.with(n, func(o at) error {
		all, err = o.xattrNames()
		return err
	})
	for _, name := range all {
		if name = outer(name); name != "" {
			names = append(names, name)
		}
	}
	return names, err
}

const xattrCaps = "security.capability"

// xattrSELinux is what ls asks of every file before it asks for ACLs; the kernel
// remembers no answer. Where SELinux runs it has a value that no list shows, so it is
// the one that tells that there is nothing.
const xattrSELinux = "security.selinux"

// bare says that an object has no extended attributes at all.
func (u *Union) bare(n *Node) (none bool) {
	err := u.with(n, func(o at) error {
		size, err := o.listxattr(nil)
		none = err == nil && size == 0
		return err
	})
	return err == nil && none
}

const xattrAccessACL = "system.posix_acl_access"

// Setxattr sets an attribute. killSGID says that the caller is not in the file's
// group, so that an access ACL that it sets clears the setgid bit.
func (u *Union) Setxattr(n *Node, name string, val []byte, flags int, killSGID bool) error {
	return u.changeMeta(n, func(o at) error {
		n.set(0, defACLKnown|noCaps|noXattrs)
		if err := o.setxattr(inner(name), val, flags); err != nil {
			return err
		}
		if killSGID && name == xattrAccessACL {
			var st Attr
			if err := o.stat(&st); err != nil {
				return err
			}
			if st.Mode&unix.S_ISGID != 0 {
				return o.chmod(uint32(st.Mode) & 0o7777 &^ unix.S_ISGID)
			}
		}
		return nil
	})
}

// Removexattr removes an attribute.
func (u *Union) Removexattr(n *Node, name string) error {
	if _, err := u.Getxattr(n, name, nil); err != nil {
		if err == unix.ENODATA && (name == xattrAccessACL || name == xattrDefaultACL) {
			return nil // to have no ACL is no error, and nothing to copy up for
		}
		return err
	}
	return u.changeMeta(n, func(o at) error {
		n.set(0, defACLKnown)
		if name == xattrCaps {
			n.set(capsTaken, 0)
		}
		return o.removexattr(inner(name))
	})
}

// changeMeta copies an object up and calls fn with it.
func (u *Union) changeMeta(n *Node, fn func(at) error) error {
	u.gate.RLock()
	defer u.gate.RUnlock()
	u.tree.RLock()
	defer u.tree.RUnlock()
	if err := u.copyUp(n, wholeFile); err != nil {
		return err
	}
	return u.with(n, fn)
}
