// Package delta makes bundles from system trees and applies them.
//
//	           maker                                     device
//
//	old ─┬─ inventory ─┐                        bundle ── demux ── six streams
//	new ─┴─ (digests)  │                                             │ one decoder
//	        ┌──────────┴──── per file ──┐                            ▼
//	        │ candidates: path, shape,  │       base ──► records ─► jobs, a file each
//	        │ same content              │       (read)               │ in order
//	        │ ways: copy, patch, object,│                            ▼
//	        │ program, recompress, whole│       stage: reflink, write what differs,
//	        └──────────┬────────────────┘              attributes, directories last
//	         six streams, packed solid                       │
//	                   │ compared, applied                   ▼
//	                   ▼                         the caller seals: sync, digest
//	             signed bundle
//
// The format is in docs/bundle-format.md, how bundles get small in docs/delta.md.
//
// A tree is described by its listing (listing.go): everything but content, in columns. The new
// one travels as a patch of the old one. A device makes the listing of its own base, so a base
// that differs in any name or attribute is found before anything is written.
//
// Content travels as records (record.go), one per file that changed, each a list of operations on
// sources: files of the base, or of the new tree made before. Kernel modules
// (object.go) and programs (program.go) bring the old file up to date first.
//
// Crash rule: nothing here is durable and nothing is promised until the caller has synced
// the stage and compared its digest. A stage that an error left behind is garbage.
//
// Lock order: demux.mu is the only lock held while waiting; applier.mu guards short
// things. Workers wait only for files of workers ahead of them, the decoder for room in
// front of workers: no cycle (see applier).
package delta

import (
	"os"
	"time"

	"github.com/btrovl/btrovl/delta/bundle"
)

// Tree is one state of a system: a directory, its version and its digest
// (subvolumes/tree, lower-case hex; Make computes it where it is empty).
type Tree struct {
	Version string
	Digest  string
	Root    *os.File
}

// MakeOptions says what to make.
type MakeOptions struct {
	From []Tree // none: a full bundle
	To   Tree
	Sign bundle.Signer

	Compatible string
	Counter    uint64
	CreatedBy  string
	AddKeys    []string // see bundle.Manifest
	RevokeKeys []string

	Compression Compression
	Without     []string // steps to leave out (Steps), for measuring
	Rescue      []string // patterns of files that travel whole, too, for devices whose sources rotted
	Memory      int64    // bytes that applying may take; 0: DefaultMemory
	Work        int64    // bytes that making may take; 0: DefaultWork. The xz tool's processes are not counted
	Jobs        int      // 0: one per processor
	Scratch     *os.File // directory on btrfs: the bundle is applied there before it is signed; nil: in a plain temporary directory
	Spool       string   // directory for temporary files, "": os.TempDir
	// Resume names a file that keeps what was found out until the bundle is made: making it again after an
	// interrupt goes on from there. It is begun anew when it is another bundle's. The caller removes it when the
	// bundle has been stored (Report.Unfinished); an error that leaves it is an UnfinishedError. "": none.
	Resume   string
	Progress func(done, total int64)

	journal     *journal
	keepFrom    time.Duration // tests: how long a result must have taken to be kept
	work        *work
	leastShared int64 // tests: content that is worth a shared section
}

// Compression chooses between size and time of making.
type Compression string

const (
	Best Compression = "best" // the default: smallest
	Fast Compression = "fast"
)

// Memory that applying may take, as the manifest states it.
const (
	DefaultMemory = 128 << 20
	LowMemory     = 64 << 20
)

// Report says what Make made.
type Report struct {
	Manifest *bundle.Manifest
	Size     int64 // of the whole bundle
	Streams  []StreamReport
	Files    []FileInfo
	Warnings []string // e.g. that a full bundle would be smaller
	Resumed  int      // results that were there from an interrupted run

	Unfinished string // the file of MakeOptions.Resume, if it is to be removed now
}

// StreamReport is the size of one kind of payload data.
type StreamReport struct {
	Name            string
	Raw, Compressed int64
}

// FileInfo says how a file travels.
type FileInfo struct {
	Path   string `json:"path"`
	Method string `json:"method"` // "copy", "patch", "whole", "recompress"
	Source string `json:"source,omitempty"`
	Size   int64  `json:"size"`  // of the content
	Bytes  int64  `json:"bytes"` // payload bytes before the solid compression
	Why    string `json:"why,omitempty"`
}

// ApplyOptions are for Apply.
type ApplyOptions struct {
	Jobs        int    // 0: one per processor
	BaseDigest  string // what the pool recorded for base; checked against the manifest before anything is written
	BaseVersion string
	Progress    func(done, total int64)
}

// Result says what Apply did.
type Result struct {
	Changed []string // relative paths, sorted: added, removed, changed in content or metadata
	Written int64    // bytes written to the stage
	Shared  int64    // bytes reflinked
	Rescued []string // files whose sources were damaged: the bundle had them whole
}

// Plan says what applying a bundle needs.
type Plan struct {
	From    *bundle.BaseID // the base to start from, nil for a full bundle
	Space   int64          // free bytes needed, metadata headroom included
	Memory  int64
	Written int64
	Files   int64
}

// Parent names the subvolume that the receiver of an exported stream has.
type Parent struct {
	UUID     [16]byte // its received UUID, or its own where it was not received
	CTransID uint64
}

// ExportOptions are for ExportStream.
type ExportOptions struct {
	Name     string // of the subvolume to make, "": the bundle's version
	Parent   Parent // of base
	Spool    string // directory for temporary files, "": os.TempDir
	Jobs     int
	Progress func(done, total int64)

	BaseDigest string // as in ApplyOptions
}
