// Package boottest boots whole machines whose root file system is a view, and pulls
// their plug. It has tests only: `make test-boot` runs them, `make test` does not,
// because software emulation is slow.
//
//	Debian's cloud kernel          downloaded as a package, not installed
//	initramfs                      busybox, btrovl, integration/init/shell/init, modules
//	disk                           btrfs with a pool: base 1, overlays system and data
//	base 1, 2                      a small system; its init does what the test asks for
//	                               (btrovl.do= on the command line) and says so on the
//	                               serial line
//
// Cutting the power is killing the emulator. What it has written stays, what the guest
// held in memory is gone. (States of a disk's own cache are package crashtest's.)
package boottest
