// Package stream reads, writes and applies btrfs send streams, versions 1 and 2
// (and 3, for the one command that it adds), without btrfs-progs.
//
//	stream   ┌──────────────────────┬─────────┬─────────┬───┬─────┐
//	         │ "btrfs-stream\0" u32 │ command │ command │ … │ END │
//	         └──────────────────────┴─────────┴─────────┴───┴─────┘
//	command  ┌─────────┬──────────┬─────────┬───────────┬───────────┬───┐
//	         │ u32 len │ u16 kind │ u32 crc │ attribute │ attribute │ … │
//	         └─────────┴──────────┴─────────┴───────────┴───────────┴───┘
//	attribute u16 kind, u16 length, value   (from version 2 on, DATA is last and
//	                                         has no length: it fills the command)
//
// All integers are little-endian. The checksum is CRC-32C with seed 0 and without
// the final inversion, over the command with a zero checksum field.
//
// [Reader] and [Writer] translate between bytes and [Command]s. [Apply] is what
// `btrfs receive` does, but into a directory handle that the caller provides, and
// confined to it: no path of a stream leaves it, by "..", by a symlink or by a
// mount.
//
// Nothing here is durable: what Apply wrote is on stable storage only after the
// caller's syncfs. A stream that breaks off leaves a half-written directory,
// which the caller discards.
package stream

import "fmt"

// Kind is the kind of a [Command], with the numbers of the wire.
type Kind uint16

const (
	Subvol       Kind = 1
	Snapshot     Kind = 2
	Mkfile       Kind = 3
	Mkdir        Kind = 4
	Mknod        Kind = 5
	Mkfifo       Kind = 6
	Mksock       Kind = 7
	Symlink      Kind = 8
	Rename       Kind = 9
	Link         Kind = 10
	Unlink       Kind = 11
	Rmdir        Kind = 12
	SetXattr     Kind = 13
	RemoveXattr  Kind = 14
	Write        Kind = 15
	Clone        Kind = 16
	Truncate     Kind = 17
	Chmod        Kind = 18
	Chown        Kind = 19
	Utimes       Kind = 20
	End          Kind = 21
	UpdateExtent Kind = 22
	Fallocate    Kind = 23 // from version 2 on
	FileAttr     Kind = 24
	EncodedWrite Kind = 25
	EnableVerity Kind = 26 // from version 3 on
)

// UUID identifies a subvolume.
type UUID [16]byte

// String returns the usual form with dashes.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Time is a time stamp of an inode.
type Time struct {
	Sec  int64
	Nsec uint32
}

// A Command is one step of a stream. Which fields mean something depends on its
// kind; paths are relative to the subvolume.
type Command struct {
	Kind Kind
	Path string // all kinds but End; Subvol, Snapshot: the subvolume's name

	UUID          UUID   // Subvol, Snapshot: of the subvolume that was sent
	Ctransid      uint64 // Subvol, Snapshot: its generation
	CloneUUID     UUID   // Snapshot: parent; Clone: subvolume that holds the source
	CloneCtransid uint64 // Snapshot, Clone
	ClonePath     string // Clone: source file, relative to that subvolume
	CloneOffset   uint64 // Clone

	Ino    uint64 // Mk…, Symlink: inode number on the sending side
	Mode   uint32 // Mknod: type and permissions; Chmod: permissions
	Rdev   uint64 // Mknod
	To     string // Rename: new path
	Target string // Symlink: content; Link: existing path
	UID    uint32 // Chown
	GID    uint32
	Atime  Time // Utimes
	Mtime  Time
	Ctime  Time

	XattrName string // SetXattr, RemoveXattr

	Offset uint64 // Write, EncodedWrite, Clone, UpdateExtent, Fallocate
	Size   uint64 // Truncate: new size; Clone, UpdateExtent, Fallocate: length
	Data   []byte // Write, EncodedWrite: content; SetXattr: value. Valid until the next command is read

	FallocateMode uint32 // Fallocate
	Attr          uint64 // FileAttr

	UnencodedFileLen uint64 // EncodedWrite: bytes of the file that this stands for
	UnencodedLen     uint64 // size of Data when decoded
	UnencodedOffset  uint64 // where in it the file's bytes begin
	Compression      uint32 // 0 none, 1 zlib, 2 zstd, 3… lzo
	Encryption       uint32 // 0 none

	VerityAlgorithm uint8 // EnableVerity
	VerityBlockSize uint32
	VeritySalt      []byte
	VeritySig       []byte
}
