package overlay

import "golang.org/x/sys/unix"

// SetgidAlone tells the mode and group of a file that has the setgid bit and no execute
// permission for the group. Linux takes that bit when somebody changes the content who is
// not in the group, and only who serves him knows whether he is. For nearly all files the
// answer is no and costs nothing.
func (u *Union) SetgidAlone(n *Node) (mode, gid uint32, ok bool) {
	if !n.is(setID) {
		return 0, 0, false
	}
	var a Attr
	if err := u.Getattr(n, &a); err != nil {
		return 0, 0, false
	}
	mode = uint32(a.Mode) & 0o7777
	return mode, a.Gid, mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID
}
