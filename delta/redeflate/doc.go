// Package redeflate takes compressed files apart so that their content can be
// compared, and puts them together again, bit for bit.
//
// A gzip document or an initrd whose content changed by a few bytes differs
// from its predecessor everywhere: compression hides what stayed the same. So
// the maker of a bundle compares what is inside, and the device compresses
// again. That works only if the device repeats every decision of the program
// that compressed the file: which of several equal matches it took, where it
// ended a block, how it broke ties when it built a code.
//
//	maker    compressed ──Unpack──▶ plain ───▶ matched, patched, shipped
//	                       │                              │
//	                       └───────▶ recipe ─▶ shipped    │
//	                                             │        ▼
//	device                            compressed ◀──Restore── plain
//
// This package knows two encoders by heart, the one in GNU gzip and the one in
// zlib (levels 1 to 9, both memory levels in use, in one piece as zlib's
// callers use it or in 128 KiB pieces as pigz does). Whatever else produced a
// stream is described by its differences from the nearest of these models. A
// recipe of a file that a model reproduces is 16 bytes long, ten of them being
// the header of the file. All 2,125 .gz files of a Debian 12 system with 722 MB
// are such files, and its initrd is one.
//
// LZMA2 streams, of xz files and of Linux kernels, and Zstandard frames are too much work to
// encode again. There, the device is told what the encoder decided, and guesses
// most of that from what it decided for the old file (Options.Old), the better
// if it knows where the old content is in the new one (Options.Moves): see
// package relz.
//
// Kernels are taken apart where their payload is packed by gzip, xz or zstd: bzImage of x86, and
// zboot images of UEFI (arm64, RISC-V, LoongArch). Payloads of lz4, lzo and bzip2, and
// the zImage of 32-bit ARM, whose payload no header tells of, are not.
//
// Squashfs images are taken apart block by block, with the help of an old image only (UnpackImage): blocks that both
// have are left as they are.
//
// # Plain
//
// Plain is one run of bytes: everything in the file in its order, with
// compressed parts replaced by their content. It is cut into segments, which
// tell the matcher what the bytes are (Segment):
//
//	initrd      microcode.cpio │ gzip( cpio header │ file │ header │ file … )
//	recipe      copy 1.2 MB    │ gzip level 6, rest of plain
//	plain       cpio header, file, … , cpio header, file, header, file, …
//	segments    raw   member       raw           member  raw    member
//
// A member of a cpio archive carries its path, so that delta finds the equal
// file in the new root and ships nothing.
//
// # Recipe
//
// A recipe is a program; see recipe.go for its bytes. Restore runs it in one
// pass over plain with bounded memory (Memory), and Unpack proves every recipe
// by running it before it gives it out. Recipes are believed to be hostile:
// every number is checked, no allocation follows from one, and what comes out
// is bounded by what goes in.
//
// # What cannot be undone
//
// Streams whose tokens are far from what a model chooses (zopfli, 7-Zip) would
// need a recipe that does not pay, and so would xz files and Zstandard frames without an
// old one. Such files give ErrUnsupported and are shipped as they are.
package redeflate
