// Package relz takes LZMA2 streams (of xz files and Linux kernels) and Zstandard frames
// apart and makes them again, bit for bit, without doing the work of their encoder.
//
// The encoder of xz weighs thousands of ways to write a stretch of bytes. To
// repeat that, a device would need several hundred megabytes and the better part
// of a minute for a kernel (xz -6 with 32 MiB of dictionary: 18 s and 370 MiB in
// C). But what the encoder decided can be told instead: here a literal, there a
// match of so many bytes at such a distance. What remains is coding, which is
// cheap. And most decisions need not be told either, because the device can
// guess them:
//
//	old stream ──Learn──▶ what its encoder decided where ─┐
//	moves      ─────────▶ where that is in the new stream ├─▶ guess ─▶ decision ─▶ range coder ─▶ stream
//	new plain  ─────────▶ the matches that can be had     │
//	recipe     ─────────▶ was the guess right? if not … ──┘
//
// An old distance is translated to where its target has moved. Moves are the caller's, who
// compared the two contents anyway; without them the places of the old and the new stream are
// aligned by hashes of 16 bytes, which is worse where addresses differ, and takes memory. What
// is left of the 8.1 MB of a Debian kernel's decisions, given its predecessor, is
// 0.96 MB (1.15 MB without moves); Memory says 79 MB for it, and it takes 7 s of
// one core.
//
// For Zstandard the same guide guesses literals and matches. What an encoder decides beside
// these (where blocks end, tables of Huffman's and of FSE codes) stands in the recipe as in the
// frame; with tables and decisions given, there is one way to write a block that
// the reference encoder takes, and frames that other encoders wrote otherwise are refused. Of the
// 11.9 MB of a Debian 13 kernel (zstd -22) 0.93 MB are left without moves.
//
// # Recipe of LZMA2
//
//	dictionary   size, as a varint
//	flags        a byte: 1 if content went through the x86 filter, 2 if moves were given, 4 if
//	             it is several streams, 8 if the guide began with priors
//	tables       a byte: log2 of the entries of each table of matches
//	chunks       their number, then for each its control byte, size and properties; between two
//	             streams a control byte 0 and a size 0
//	decisions    a range-coded run of bits to the end; what they mean depends on
//	             all before, see guide.next, the only place that knows
//
// # Recipe of Zstandard
//
//	flags        a byte: 2 if moves were given, 8 if the guide began with priors
//	tables       a byte, as above
//	frame        a byte: length of its header, and the header as it stands in the frame
//	checksum     four bytes, if the header says that there is one
//	blocks       their number, then for each a byte: type | literals<<2 | format of their header<<4 |
//	             sequences<<6 | last<<7; the size of the content, and of a compressed block: modes of the
//	             sequences' tables, if there are sequences; length and bytes of all tables
//	decisions    as above
//
// One walk (guide.next, code) serves both directions, so that making and
// rebuilding cannot differ. Recipes are believed to be hostile: every decision
// is checked before it is used, and memory follows from numbers that are bounded.
package relz
