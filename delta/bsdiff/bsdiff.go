// Package bsdiff finds what a file has in common with older files, writes the
// rest down as a patch, and applies such patches in one pass.
//
// Two formats live here. BSDIFF40 is Colin Percival's: [ReadBSDIFF40] and
// [WriteBSDIFF40] exchange it with the bsdiff and bspatch tools. Bundles use our
// own, which keeps each kind of data apart so that the caller can compress each
// kind solid over all files of a bundle:
//
//	           ┌ Control  what to do: kinds, lengths, source positions
//	patch  ──► ┤ Diff     differences, to be added byte by byte (mod 256) to source bytes
//	           └ Extra    bytes that no source has
//
// The sources of a patch (there may be several, and none) form one address
// space, one behind the other. A patch is a list of operations that make the new
// file from its first byte to its last:
//
//	Copy    n bytes of a source as they are: can be a reflink, or nothing at all
//	        where the file began as a reflink of that source
//	Add     n bytes of a source plus n bytes of Diff
//	Insert  n bytes of Extra
//
// An operation never crosses the border of two sources.
//
// # Making
//
//	ops, err := bsdiff.Diff(ctx, new, sources, bsdiff.Options{})
//	err = bsdiff.Encode(&streams, ops, new, sources)
//
// # Applying
//
// [Decoder] yields operations whose lengths and positions are already checked
// against the sizes of the sources and of the new file; [Patch] runs them all.
// Both use memory that does not depend on the patch. A decoder stops reading
// each stream exactly at the end of its patch, so that patches can follow one
// another in a stream.
package bsdiff

import "io"

// Kind is the kind of an [Op].
type Kind uint8

const (
	Copy   Kind = iota + 1 // source bytes as they are
	Add                    // source bytes plus Diff bytes
	Insert                 // Extra bytes
)

// An Op makes the next Length bytes of the new file.
type Op struct {
	Kind   Kind
	Source int   // index of the source (Copy, Add)
	Offset int64 // where in that source (Copy, Add)
	Length int64 // always > 0
}

// The streams of a patch. Their number may grow: loop over NumStreams.
const (
	Control = iota
	DiffBytes
	Extra
	NumStreams
)

// StreamName names a stream in reports.
func StreamName(i int) string {
	return [...]string{"control", "diff", "extra"}[i]
}

// Writers are where [Encode] puts the streams of a patch.
type Writers [NumStreams]io.Writer

// A ByteReader is what a [Decoder] reads a stream from. Each patch ends at an
// exact byte of each stream, so the decoder itself cannot read ahead.
type ByteReader interface {
	io.Reader
	io.ByteReader
}

// Readers are where a [Decoder] finds the streams of a patch.
type Readers [NumStreams]ByteReader

// Options control [Diff]. The zero value is right.
type Options struct {
	// Window bounds memory: at most this many bytes of sources are indexed at a
	// time, at 5 bytes of memory per byte. 0 means 64 MiB.
	Window int
}
