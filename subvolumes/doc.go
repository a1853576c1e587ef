// Package subvolumes keeps a pool: bases, overlays and backups as btrfs subvolumes,
// and the record that says which of them make a deployment. Every command that
// changes a device ends in one commit of that record.
//
//	<pool>/                       a directory on btrfs, mode 0700
//	  state                       the record, JSON (see [Record])
//	  state.new, state.old        the next one while it is written; the one before
//	  lock                        flock of the one writer; its process id and command
//	  reserve                     space kept for a full disk: data and metadata
//	  bases/<version>             read-only subvolume
//	  bases/<version>.meta        what rebuilding a lost state needs (JSON)
//	  bases/<version>.partial     stage: writable, being built
//	  bases/<version>.partial-ro  its snapshot, being verified
//	  overlays/<name>.<n>/        one writable subvolume per incarnation of an overlay
//	    meta                      name, paths, whether it follows the base (JSON)
//	    upper/                    files, rooted at "/" of the view: the overlay over
//	                              /var/lib/app keeps them in upper/var/lib/app
//	    work/                     work directory of kernel overlayfs
//	  backups/<name>/<time>       read-only snapshot of an overlay's subvolume
//
// # Crash rule
//
// New subvolumes are made and put on stable storage first; then the record is
// replaced (written under another name, fsync, rename, fsync of the directory); then
// success is reported; then what is old may be deleted. What no record names is
// garbage: [Writer.Collect] removes it and nothing else ever reads it. So a crash at
// any moment leaves the old record or the new one, each complete, and no command
// needs a repair before it. crash_test.go interrupts every command before every step.
//
// A base is sealed by taking a read-only snapshot of the stage and digesting that
// snapshot, not by switching the stage read-only: a descriptor that is still open
// would go on writing into it. The read-only flag of a subvolume is never changed.
//
// # Roles
//
// [Record.Active] is what a mount shows: the deployment on trial, with tries left or in
// its last try, or else the current one. Overlays that follow the base get a snapshot
// of their own when the base changes, at Deploy and at Rollback; all others are shared
// by the deployments that name them. Caller of both must hold writers off (freeze the
// views) from before the call until the views have switched.
//
// # Locks, in the order of taking
//
//	<pool>/lock           flock, exclusive: whoever changes the pool ([Pool.Lock])
//	  subvolume directory flock: shared by who uses it ([Pool.Hold]), exclusive for
//	                      the moment of its deletion
//
// Readers take no lock: they read state, which is replaced atomically.
//
// # Trial
//
//	Deploy ──tries──▶ trial ──MarkGood──▶ current ──▶ previous ──▶ garbage
//	                    │ Boot counts down, durably, before it answers;
//	                    ▼ none left, Rollback, or its subvolumes are missing
//	                 current again, recorded in fallbacks
package subvolumes
