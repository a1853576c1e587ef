// Package btrfs calls the ioctls of btrfs, and knows nothing of pools.
//
// Every function takes open handles; names are single path components below a
// directory handle, so a renamed or replaced parent can never redirect a call.
// No btrfs-progs, no libbtrfs, no cgo.
//
// # Wire format
//
// The structures of linux/btrfs.h are written into byte slices at their
// documented offsets instead of being declared as Go structs: Go aligns uint64
// to 4 bytes on 32-bit ARM, the kernel's EABI to 8, and the size of a structure
// is part of its ioctl number.
//
//	bits 31-30 direction   29-16 size   15-8 type 0x94   7-0 number
//
// # Durability
//
// [Snapshot] commits the running transaction and writes the source's dirty
// pages first. [CreateSubvolume], [DestroySubvolume], [SetReadOnly] and
// [SetReceived] commit metadata at best, never delayed file data: only [Syncfs]
// makes content durable. durability_test.go of package subvolumes keeps these
// facts.
package btrfs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rootInode is the inode number of the root directory of every subvolume
// (BTRFS_FIRST_FREE_OBJECTID).
const rootInode = 256

const (
	dirNone  = 0
	dirWrite = 1
	dirRead  = 2
)

// number composes an ioctl number of the btrfs family.
func number(dir, nr, size uint32) uint { return uint(dir<<30 | size<<16 | 0x94<<8 | nr) }

// ioctl passes buf to the kernel. buf may hold pointers only as pinned addresses.
func ioctl(f *os.File, req uint, buf []byte) error {
	var arg unsafe.Pointer
	if len(buf) > 0 {
		arg = unsafe.Pointer(&buf[0])
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(req), uintptr(arg))
		runtime.KeepAlive(f)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

var le = binary.LittleEndian

// IsBtrfs reports whether f lies on btrfs, and the name of the file system type
// for messages ("ext4", or its magic number in hexadecimal).
func IsBtrfs(f *os.File) (bool, string, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, "", fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	magic := uint32(st.Type)
	switch magic {
	case unix.BTRFS_SUPER_MAGIC:
		return true, "btrfs", nil
	case unix.EXT4_SUPER_MAGIC:
		return false, "ext4", nil
	case unix.XFS_SUPER_MAGIC:
		return false, "xfs", nil
	case unix.TMPFS_MAGIC:
		return false, "tmpfs", nil
	case unix.OVERLAYFS_SUPER_MAGIC:
		return false, "overlay", nil
	case unix.FUSE_SUPER_MAGIC:
		return false, "fuse", nil
	case unix.F2FS_SUPER_MAGIC:
		return false, "f2fs", nil
	case unix.SQUASHFS_MAGIC:
		return false, "squashfs", nil
	case unix.NFS_SUPER_MAGIC:
		return false, "nfs", nil
	}
	return false, fmt.Sprintf("type %#x", magic), nil
}

// IsSubvolume reports whether f is the root directory of a subvolume. It does
// not ask whether f lies on btrfs at all.
func IsSubvolume(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Ino == rootInode && st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// UUID identifies a subvolume or a file system; the zero UUID means none.
type UUID [16]byte

// IsZero reports whether u is "none".
func (u UUID) IsZero() bool { return u == UUID{} }

// String returns the usual form with dashes, or "" for none.
func (u UUID) String() string {
	if u.IsZero() {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// MarshalText makes JSON show the usual form.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (u *UUID) UnmarshalText(b []byte) (err error) {
	*u, err = ParseUUID(string(b))
	return err
}

// ParseUUID reads the form with dashes; "" is none.
func ParseUUID(s string) (u UUID, err error) {
	if s == "" {
		return u, nil
	}
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	if n, err := hex.Decode(u[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:])); err != nil || n != len(u) {
		return UUID{}, fmt.Errorf("%q is not a UUID", s)
	}
	return u, nil
}

// Info describes a subvolume as BTRFS_IOC_GET_SUBVOL_INFO does. Generations are
// transaction ids.
type Info struct {
	ID           uint64
	Name         string // as its parent directory calls it
	ParentID     uint64 // subvolume that holds it, 0 at the top
	Generation   uint64 // last change
	OTransID     uint64 // generation of its creation
	CTransID     uint64 // generation of the last change of an inode
	STransID     uint64 // generation of the original at send
	RTransID     uint64 // generation of SetReceived
	UUID         UUID
	ParentUUID   UUID // what it is a snapshot of
	ReceivedUUID UUID // what it was received from
	ReadOnly     bool
	Created      time.Time
}

// SubvolumeInfo describes the subvolume that holds f (f may be any file in it).
func SubvolumeInfo(f *os.File) (Info, error) {
	const size = 504
	buf := make([]byte, size)
	if err := ioctl(f, number(dirRead, 60, size), buf); err != nil {
		return Info{}, fmt.Errorf("describe subvolume %s: %w", f.Name(), err)
	}
	in := Info{
		ID:         le.Uint64(buf[0:]),
		ParentID:   le.Uint64(buf[264:]),
		Generation: le.Uint64(buf[280:]),
		ReadOnly:   le.Uint64(buf[288:])&1 != 0, // BTRFS_ROOT_SUBVOL_RDONLY
		CTransID:   le.Uint64(buf[344:]),
		OTransID:   le.Uint64(buf[352:]),
		STransID:   le.Uint64(buf[360:]),
		RTransID:   le.Uint64(buf[368:]),
		Created:    time.Unix(int64(le.Uint64(buf[392:])), int64(le.Uint32(buf[400:]))),
	}
	name, _, _ := bytes.Cut(buf[8:264], []byte{0})
	in.Name = string(name)
	copy(in.UUID[:], buf[296:])
	copy(in.ParentUUID[:], buf[312:])
	copy(in.ReceivedUUID[:], buf[328:])
	return in, nil
}

// volArgs builds struct btrfs_ioctl_vol_args_v2 (4096 bytes):
// fd 0, transid 8, flags 16, unused 24, name 56 (4040 bytes with its NUL).
func volArgs(name string, fd int64, flags uint64) ([]byte, error) {
	if name == "" || name == "." || name == ".." || len(name) > 255 || bytes.ContainsAny([]byte(name), "/\x00") {
		return nil, fmt.Errorf("%q is not a name for a subvolume: %w", name, unix.EINVAL)
	}
	buf := make([]byte, 4096)
	le.PutUint64(buf[0:], uint64(fd))
	le.PutUint64(buf[16:], flags)
	copy(buf[56:], name)
	return buf, nil
}

const subvolReadOnly = 2 // BTRFS_SUBVOL_RDONLY

// CreateSubvolume makes an empty writable subvolume parent/name. It is not
// durable on return.
func CreateSubvolume(parent *os.File, name string) error {
	buf, err := volArgs(name, 0, 0)
	if err == nil {
		err = ioctl(parent, number(dirWrite, 24, 4096), buf)
	}
	if err != nil {
		return fmt.Errorf("create subvolume %s/%s: %w", parent.Name(), name, err)
	}
	return nil
}

// Snapshot makes parent/name a snapshot of the subvolume whose root is src. It
// writes the source's dirty pages and commits the transaction before it returns:
// the snapshot is durable with everything that was written to src before.
func Snapshot(parent *os.File, name string, src *os.File, readonly bool) error {
	var flags uint64
	if readonly {
		flags = subvolReadOnly
	}
	buf, err := volArgs(name, int64(src.Fd()), flags)
	if err == nil {
		err = ioctl(parent, number(dirWrite, 23, 4096), buf)
		runtime.KeepAlive(src)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s as %s/%s: %w", src.Name(), parent.Name(), name, err)
	}
	return nil
}

// DestroySubvolume deletes the subvolume parent/name. It succeeds while the
// subvolume is in use (the caller must know), and fails with ENOTEMPTY while it
// holds another one: see [DestroyTree].
func DestroySubvolume(parent *os.File, name string) error {
	buf, err := volArgs(name, 0, 0)
	if err == nil {
		err = ioctl(parent, number(dirWrite, 63, 4096), buf)
		if errors.Is(err, unix.ENOTTY) { // before Linux 5.7: struct btrfs_ioctl_vol_args, name at 8
			if len(name) > 255 {
				return unix.ENAMETOOLONG
			}
			old := make([]byte, 4096)
			copy(old[8:], name)
			err = ioctl(parent, number(dirWrite, 15, 4096), old)
		}
	}
	if err != nil {
		return fmt.Errorf("delete subvolume %s/%s: %w", parent.Name(), name, err)
	}
	return nil
}

// SetReadOnly changes the read-only flag of the subvolume whose root is f.
// Descriptors that are open for writing keep writing afterwards, so this never
// seals anything; and making a received subvolume writable breaks later
// incremental receives. btrovl never calls it on a base.
func SetReadOnly(f *os.File, readonly bool) error {
	buf := make([]byte, 8)
	if err := ioctl(f, number(dirRead, 25, 8), buf); err != nil {
		return fmt.Errorf("read flags of subvolume %s: %w", f.Name(), err)
	}
	flags := le.Uint64(buf) &^ subvolReadOnly
	if readonly {
		flags |= subvolReadOnly
	}
	le.PutUint64(buf, flags)
	if err := ioctl(f, number(dirWrite, 26, 8), buf); err != nil {
		return fmt.Errorf("set flags of subvolume %s: %w", f.Name(), err)
	}
	return nil
}

// SetReceived records that the writable subvolume f holds what subvolume uuid of
// another file system held at generation stransid. It says nothing about the
// durability of file data.
func SetReceived(f *os.File, uuid UUID, stransid uint64) error {
	const size = 200 // uuid 0, stransid 16, rtransid 24, stime 32, rtime 48, flags 64, reserved 72
	buf := make([]byte, size)
	copy(buf, uuid[:])
	le.PutUint64(buf[16:], stransid)
	if err := ioctl(f, number(dirRead|dirWrite, 37, size), buf); err != nil {
		return fmt.Errorf("set received UUID of %s: %w", f.Name(), err)
	}
	return nil
}

// Syncfs writes everything of the file system that holds f to stable storage,
// delayed file data included.
func Syncfs(f *os.File) error {
	err := unix.Syncfs(int(f.Fd()))
	runtime.KeepAlive(f)
	if err != nil {
		return fmt.Errorf("syncfs %s: %w", f.Name(), err)
	}
	return nil
}

// StartSync begins to commit the running transaction and returns its id without
// waiting. Data that is not allocated yet is not part of it.
func StartSync(f *os.File) (transid uint64, err error) {
	buf := make([]byte, 8)
	if err := ioctl(f, number(dirRead, 24, 8), buf); err != nil {
		return 0, fmt.Errorf("start commit of %s: %w", f.Name(), err)
	}
	return le.Uint64(buf), nil
}

// WaitSync waits until the transaction is on stable storage; 0 means the running one,
// which is committed.
func WaitSync(f *os.File, transid uint64) error {
	if transid == 0 { // the kernel would only wait for a commit that has begun already
		var err error
		if transid, err = StartSync(f); err != nil {
			return err
		}
	}
	buf := make([]byte, 8)
	le.PutUint64(buf, transid)
	if err := ioctl(f, number(dirWrite, 22, 8), buf); err != nil {
		return fmt.Errorf("wait for commit of %s: %w", f.Name(), err)
	}
	return nil
}

// Sync commits the running transaction and wakes the kernel's cleaner, which frees
// the space of deleted subvolumes; by itself it looks every 30 seconds only.
func Sync(f *os.File) error {
	if err := ioctl(f, number(dirNone, 8, 0), nil); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

// fsInfo calls BTRFS_IOC_FS_INFO: max_id 0, devices 8, fsid 16, nodesize 32,
// sectorsize 36.
func fsInfo(f *os.File) ([]byte, error) {
	const size = 1024
	buf := make([]byte, size)
	if err := ioctl(f, number(dirRead, 31, size), buf); err != nil {
		return nil, fmt.Errorf("describe file system of %s: %w", f.Name(), err)
	}
	return buf, nil
}

// FilesystemUUID returns the fsid.
func FilesystemUUID(f *os.File) (u UUID, err error) {
	buf, err := fsInfo(f)
	if err == nil {
		copy(u[:], buf[16:])
	}
	return u, err
}

// NodeSize returns the size of a metadata block, 4096 to 65536.
func NodeSize(f *os.File) (int, error) {
	buf, err := fsInfo(f)
	if err != nil {
		return 0, err
	}
	n := le.Uint32(buf[32:])
	if n < 4096 || n > 65536 {
		return 0, fmt.Errorf("describe file system of %s: node size %d", f.Name(), n)
	}
	return int(n), nil
}
