package stream

import (
	"fmt"
	"hash/crc32"
)

const (
	magic      = "btrfs-stream\x00"
	maxVersion = 3

	headerSize = 10 // of a command: u32 length, u16 kind, u32 checksum
	// maxCommand is above what any kernel writes: 64 KiB in version 1, from version 2
	// on 16 KiB and a compressed extent of 128 KiB, rounded up to a page of 64 KiB.
	maxCommand = 256 << 10

	maxPath  = 4096
	maxXattr = 255 // XATTR_NAME_MAX
	maxName  = 255
)

// attribute is the kind of an attribute.
type attribute uint16

const (
	attrUUID             attribute = 1
	attrCtransid         attribute = 2
	attrIno              attribute = 3
	attrSize             attribute = 4
	attrMode             attribute = 5
	attrUID              attribute = 6
	attrGID              attribute = 7
	attrRdev             attribute = 8
	attrCtime            attribute = 9
	attrMtime            attribute = 10
	attrAtime            attribute = 11
	attrOtime            attribute = 12
	attrXattrName        attribute = 13
	attrXattrData        attribute = 14
	attrPath             attribute = 15
	attrPathTo           attribute = 16
	attrPathLink         attribute = 17
	attrFileOffset       attribute = 18
	attrData             attribute = 19
	attrCloneUUID        attribute = 20
	attrCloneCtransid    attribute = 21
	attrClonePath        attribute = 22
	attrCloneOffset      attribute = 23
	attrCloneLen         attribute = 24
	attrFallocateMode    attribute = 25 // from version 2 on
	attrFileAttr         attribute = 26
	attrUnencodedFileLen attribute = 27
	attrUnencodedLen     attribute = 28
	attrUnencodedOffset  attribute = 29
	attrCompression      attribute = 30
	attrEncryption       attribute = 31
	attrVerityAlgorithm  attribute = 32 // from version 3 on
	attrVerityBlockSize  attribute = 33
	attrVeritySalt       attribute = 34
	attrVeritySig        attribute = 35
	attrMax              attribute = 35
)

func set(attrs ...attribute) uint64 {
	var s uint64
	for _, a := range attrs {
		s |= 1 << a
	}
	return s
}

// kindInfo describes a kind of command.
type kindInfo struct {
	name  string
	since int    // version
	needs uint64 // attributes that must be there
}

// infoOf returns the description of k, or false for an unknown kind.
func infoOf(k Kind) (kindInfo, bool) {
	switch k {
	case Subvol:
		return kindInfo{"subvol", 1, set(attrPath, attrUUID, attrCtransid)}, true
	case Snapshot:
		return kindInfo{"snapshot", 1, set(attrPath, attrUUID, attrCtransid, attrCloneUUID, attrCloneCtransid)}, true
	case Mkfile:
		return kindInfo{"mkfile", 1, set(attrPath)}, true
	case Mkdir:
		return kindInfo{"mkdir", 1, set(attrPath)}, true
	case Mknod:
		return kindInfo{"mknod", 1, set(attrPath, attrMode, attrRdev)}, true
	case Mkfifo:
		return kindInfo{"mkfifo", 1, set(attrPath)}, true
	case Mksock:
		return kindInfo{"mksock", 1, set(attrPath)}, true
	case Symlink:
		return kindInfo{"symlink", 1, set(attrPath, attrPathLink)}, true
	case Rename:
		return kindInfo{"rename", 1, set(attrPath, attrPathTo)}, true
	case Link:
		return kindInfo{"link", 1, set(attrPath, attrPathLink)}, true
	case Unlink:
		return kindInfo{"unlink", 1, set(attrPath)}, true
	case Rmdir:
		return kindInfo{"rmdir", 1, set(attrPath)}, true
	case SetXattr:
		return kindInfo{"set_xattr", 1, set(attrPath, attrXattrName, attrXattrData)}, true
	case RemoveXattr:
		return kindInfo{"remove_xattr", 1, set(attrPath, attrXattrName)}, true
	case Write:
		return kindInfo{"write", 1, set(attrPath, attrFileOffset, attrData)}, true
	case Clone:
		return kindInfo{"clone", 1, set(attrPath, attrFileOffset, attrCloneLen, attrCloneUUID, attrCloneCtransid, attrClonePath, attrCloneOffset)}, true
	case Truncate:
		return kindInfo{"truncate", 1, set(attrPath, attrSize)}, true
	case Chmod:
		return kindInfo{"chmod", 1, set(attrPath, attrMode)}, true
	case Chown:
		return kindInfo{"chown", 1, set(attrPath, attrUID, attrGID)}, true
	case Utimes:
		return kindInfo{"utimes", 1, set(attrPath, attrAtime, attrMtime, attrCtime)}, true
	case End:
		return kindInfo{"end", 1, 0}, true
	case UpdateExtent:
		return kindInfo{"update_extent", 1, set(attrPath, attrFileOffset, attrSize)}, true
	case Fallocate:
		return kindInfo{"fallocate", 2, set(attrPath, attrFallocateMode, attrFileOffset, attrSize)}, true
	case FileAttr:
		return kindInfo{"fileattr", 2, set(attrPath, attrFileAttr)}, true
	case EncodedWrite:
		return kindInfo{"encoded_write", 2, set(attrPath, attrFileOffset, attrUnencodedFileLen, attrUnencodedLen, attrUnencodedOffset, attrData)}, true
	case EnableVerity:
		return kindInfo{"enable_verity", 3, set(attrPath, attrVerityAlgorithm, attrVerityBlockSize)}, true
	}
	return kindInfo{}, false
}

// String returns the name that `btrfs receive --dump` uses.
func (k Kind) String() string {
	if info, ok := infoOf(k); ok {
		return info.name
	}
	return fmt.Sprintf("command %d", uint16(k))
}

// checksum continues the kernel's crc32c: no inversion before or after.
func checksum(crc uint32, b []byte) uint32 {
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), b)
}
