package main

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// fence takes from this process, for good, what reading a bundle, an archive or a send
// stream does not need, before the first byte of it is read: opening files other than
// below the given directories (and reading in /proc), running programs, the network, and
// signals to other processes. A decoder that a crafted file takes over then reaches what
// the command works on and nothing else.
//
// The kernel's Landlock does it (5.19 and later; what an older kernel lacks is left
// out). It restricts paths, not descriptors, and neither ioctls on files nor
// subvolume calls pass through it, so what is open stays usable, and reflinks and
// snapshots work as before. The version is fixed: a later Landlock also restricts
// connecting to sockets, which the views' daemons listen on. All threads are fenced:
// go-landlock goes through syscall.AllThreadsSyscall.
//
// There is no seccomp filter beside it. What the decoder's process still has to do as
// root (ioctls on btrfs, mknod, chown, trusted attributes) is the dangerous part.
func fence(o fenced) error {
	const read = llsys.AccessFSReadFile | llsys.AccessFSReadDir
	const write = read | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSRemoveDir | llsys.AccessFSRemoveFile |
		llsys.AccessFSMakeChar | llsys.AccessFSMakeDir | llsys.AccessFSMakeReg | llsys.AccessFSMakeSock |
		llsys.AccessFSMakeFifo | llsys.AccessFSMakeBlock | llsys.AccessFSMakeSym
	rules := []landlock.Rule{landlock.PathAccess(read, append(o.read, "/proc")...).IgnoreIfMissing()}
	if len(o.write) > 0 {
		rules = append(rules, landlock.PathAccess(write, o.write...).WithRefer().IgnoreIfMissing())
	}
	if len(o.rename) > 0 {
		// Within one directory: without the right to refer, nothing moves across.
		const rename = llsys.AccessFSReadDir | llsys.AccessFSMakeReg | llsys.AccessFSRemoveFile
		rules = append(rules, landlock.PathAccess(rename, o.rename...))
	}
	if len(o.rmdir) > 0 {
		rules = append(rules, landlock.PathAccess(llsys.AccessFSRemoveDir, o.rmdir...))
	}
	if err := landlock.V6.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("cannot fence the decoder in: %w", err)
	}
	return nil
}

// fenced is what stays reachable behind a fence: directories, or files.
type fenced struct {
	read, write []string
	rename      []string // what is open there already may be renamed or removed, no file be opened
	rmdir       []string // empty directories below may be removed
}
