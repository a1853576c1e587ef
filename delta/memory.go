package delta

import (
	"unsafe"

	"github.com/btrovl/btrovl/delta/bundle"
)

// What applying takes does not grow with the size of files. It does grow with their
// number, because both lists of files are held: that part is added to what the manifest
// states when a bundle is made, and compared with it before anything is read
// for a list. TestListingMemory measures it, make test-memory all of it.

// perEntry is what an entry of a listing takes, with its path, its place in the index,
// what the applier notes of it, and room to grow.
const perEntry = int64(unsafe.Sizeof(entry{})) + 200

// listingMemory bounds what lists of so many entries, so many bytes encoded, take.
func listingMemory(entries int, encoded int64) int64 {
	return perEntry*int64(entries) + 3*encoded
}

// leastMemory is what an update takes, with the program's text, however little is asked
// for (make test-memory: 40 MiB).
const leastMemory = 48 << 20

// statedMemory is what a manifest says: the memory that was asked for, and what large
// lists take beyond the share of it that is theirs.
func statedMemory(asked, listings int64) int64 {
	return max(asked, leastMemory) + max(0, listings-asked/4)
}

// allowedMemory is what a bundle may take.
func allowedMemory(m *bundle.Manifest) int64 {
	if m.Apply.Memory == 0 {
		return DefaultMemory
	}
	return m.Apply.Memory
}

// checkHead refuses a section whose decoders or whose list of files take more than the
// manifest states, before any of it is allocated.
func (h *sectionHead) checkHead(m *bundle.Manifest) error {
	var windows int64
	for _, d := range h.dicts {
		windows += int64(d)
	}
	if have := allowedMemory(m); windows > have || int64(h.listing) > have {
		return damaged("windows of %d bytes and a list of files of %d, but its manifest states %d bytes of memory", windows, h.listing, have)
	}
	return nil
}
