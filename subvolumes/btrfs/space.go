package btrfs

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Space tells what the file system can still take, in bytes.
type Space struct {
	Total         uint64 // of all devices, as statfs counts
	Free          uint64 // for file data, as statfs estimates (profiles counted)
	MetadataTotal uint64 // in allocated metadata block groups
	MetadataUsed  uint64 // of it, with the global reserve
	Unallocated   uint64 // raw, free for either kind
}

// MetadataFree is the room for new metadata: what is left in metadata block
// groups and what can still become one.
func (s Space) MetadataFree() uint64 {
	var n uint64
	if s.MetadataTotal > s.MetadataUsed {
		n = s.MetadataTotal - s.MetadataUsed
	}
	return n + s.Unallocated
}

const (
	groupData     = 1 << 0
	groupSystem   = 1 << 1
	groupMetadata = 1 << 2
	groupReserve  = 1 << 49 // BTRFS_SPACE_INFO_GLOBAL_RSV
	// Profiles that keep two copies: DUP, RAID1, RAID10. RAID1C3/C4 keep more, and
	// are counted as two: the estimate of unallocated space is then too small.
	groupTwice = 1<<5 | 1<<4 | 1<<6
)

// Usage returns the space figures of the file system that holds f.
func Usage(f *os.File) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return Space{}, fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	s := Space{
		Total: uint64(st.Blocks) * uint64(st.Bsize),
		Free:  uint64(st.Bavail) * uint64(st.Bsize),
	}
	// struct btrfs_ioctl_space_args: slots 0, total 8, then {flags, total, used}.
	// A call with no slots returns their number.
	head := make([]byte, 16)
	if err := ioctl(f, number(dirRead|dirWrite, 20, 16), head); err != nil {
		return Space{}, fmt.Errorf("space of %s: %w", f.Name(), err)
	}
	n := le.Uint64(head[8:]) + 4 // room for a profile that appears meanwhile
	if n > 1024 {
		return Space{}, fmt.Errorf("space of %s: the kernel reports %d kinds", f.Name(), n)
	}
	buf := make([]byte, 16+24*n)
	le.PutUint64(buf, n)
	if err := ioctl(f, number(dirRead|dirWrite, 20, 16), buf); err != nil {
		return Space{}, fmt.Errorf("space of %s: %w", f.Name(), err)
	}
	var allocated uint64
	for i := range min(le.Uint64(buf[8:]), n) {
		p := buf[16+24*i:]
		flags, total, used := le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:])
		if flags&groupReserve != 0 {
			s.MetadataUsed += total - min(used, total)
			continue
		}
		if flags&groupMetadata != 0 {
			s.MetadataTotal += total
			s.MetadataUsed += used
		}
		if flags&groupTwice != 0 {
			total *= 2
		}
		allocated += total
	}
	if raw := s.Total; raw > allocated {
		s.Unallocated = raw - allocated
	}
	return s, nil
}

// Exclusive returns how many bytes of file data only this tree uses: what deleting
// it would free, metadata not counted. root is a directory; other subvolumes below
// it are not entered. It asks the kernel for every file's extents (FIEMAP with its
// shared flag), so it takes seconds on large trees.
func Exclusive(ctx context.Context, root *os.File) (uint64, error) {
	return exclusive(ctx, root)
}
