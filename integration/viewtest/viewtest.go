// Package viewtest finds where a view behaves differently from a local file system.
//
// It works on any mount point and knows nothing of how a view is made: a
// [Mount] function puts a union of two directories at a mount point, and the
// package supplies two of its own as the measure, plain btrfs ([Native], a writable
// snapshot of the base, which has no union and is therefore right) and kernel
// overlayfs ([Overlayfs]).
//
// # The differential test
//
//	seed ─► base tree ──► snapshot ─► native ──┐
//	  │         └───────► lower ───► overlayfs ┤    each call on all of them, one step at a time:
//	  │         └───────► base ────► view ─────┤    results, errnos, attributes, identity (st_ino)
//	  └───► program (calls of several actors) ─┘    compared after each step, trees at the end,
//	                                                and once more as kernel overlayfs shows the
//	                                                layers that the view wrote
//
// An actor is a process with its own user, groups, umask, working directory, locks
// and descriptors; it reads one [Op] a line and writes one [Result] a line. There is one
// for each actor and target, so no call of a test runs in a process that serves a view.
// Actors are this same executable again: its main (or TestMain) calls [ActorMain] first.
//
// Native decides. Where the view differs from it, an entry of [Accepted] has to say
// why, or the test fails, prints the seed, and removes calls from the program as long as it
// still fails ([Shrink]). Where kernel overlayfs differs from native and the view does not,
// the view is the better one; that is counted and overlayfs leaves this run's comparison.
//
// # Waiting
//
// Every wait for an actor is bounded by [Patience]. A call that takes longer fails the
// run, the actors are killed, and the target's Unmount must get rid of the mount.
package viewtest

import "time"

// Patience is how long one call may take, on a machine that does much else.
const Patience = 40 * time.Second
