package main

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
)

// fence takes from this process, for good, what applying a bundle does not need:
// writing anywhere but below the given directories, and the network. A decoder
// that a crafted file takes over then reaches the pool only. Reading stays free.
//
// The kernel's Landlock does it (5.13 and later; what an older kernel lacks is left
// out). It restricts paths, not descriptors, and neither ioctls on files nor
// subvolume calls pass through it, so reflinks and snapshots work as before. The
// version is fixed: a later Landlock also restricts connecting to sockets, which
// the views' daemons listen on. All threads are fenced: go-landlock goes through
// syscall.AllThreadsSyscall.
func fence(writable ...string) error {
	rules := []landlock.Rule{landlock.RODirs("/")}
	if len(writable) > 0 {
		rules = append(rules, landlock.RWDirs(writable...).WithRefer().IgnoreIfMissing())
	}
	if err := landlock.V5.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("cannot fence the decoder in: %w", err)
	}
	return nil
}
