package viewtest

import (
	"math"

	"golang.org/x/sys/unix"
)

// Difference is one way in which a view may differ from a local file system. The
// table in docs/testing.md repeats ID and Why; a test compares the two.
type Difference struct {
	ID  string
	Why string
	// Match says whether this result of the view is that difference. It is asked only
	// after the results were found to differ.
	Match func(o *Op, got, want Result) bool
}

// Accepted are all differences that the differential test lets pass.
var Accepted = []Difference{
	{
		ID:  "dir-read-offset",
		Why: "read(2) of a directory that was listed to its end is EISDIR everywhere but on btrfs, whose position then is so large that adding the length overflows, which is EINVAL first",
		Match: func(o *Op, got, want Result) bool {
			return (o.Call == "read" || o.Call == "pread") && got.Err == "EISDIR" && want.Err == "EINVAL"
		},
	},
	{
		ID:  "dir-seek-offset",
		Why: "the position at the end of a listed directory is the largest number on btrfs and a small one on a view, so lseek tells another one, and overflows on btrfs only",
		Match: func(o *Op, got, want Result) bool {
			return o.Call == "lseek" && o.Flags == unix.SEEK_CUR && got.Err == "" &&
				(want.Err == "EINVAL" || want.N == math.MaxInt64)
		},
	},
}

// NotGenerated are calls that the generator avoids because their result is known to
// differ, with the reason. They are repeated in docs/testing.md too.
var NotGenerated = []struct{ Call, Why string }{
	{"truncate(2) by path to 0", "of an empty file it changes no times; open with O_TRUNC does, and FUSE sends the same request for both, so a view changes them (to 0 by ftruncate and O_TRUNC is generated)"},
	{"chown(-1, -1)", "FUSE sends the same empty SETATTR for it as for taking capabilities away before a write, so a view cannot tell whether set-id bits go, and Linux does not ask whose file it is"},
	{"capabilities together with set-id bits, or with punching holes", "for the same reason; and Linux takes capabilities away before it asks a FUSE server to punch, where btrfs does not if there is a hole already. A program has the one or the other, see withCapabilities"},
	{"mknod of a character device 0:0", "that is a whiteout in the layer; the view refuses it with EPERM, as overlayfs does"},
	{"xattrs trusted.overlay.*", "they are the layer's own; the view hides them, as overlayfs does"},
	{"renameat2 with RENAME_WHITEOUT", "the view refuses it with EINVAL, as overlayfs does"},
	{"O_DIRECT with unaligned offsets", "btrfs refuses them, FUSE does not: a view may accept more"},
	{"FICLONE, FIDEDUPERANGE, FIEMAP, FIBMAP, btrfs's own ioctls", "Linux passes none of the first to a FUSE server (copy_file_range reflinks), and the view has no answer to the last. Inode flags (chattr, lsattr) it has, but for append-only (EOPNOTSUPP)"},
	{"writing to a file that became immutable, through a descriptor from before", "EPERM on a view, which is not told of opens; btrfs looks at the flag when a file is opened"},
}

// NotCompared are properties that differ between any two file systems.
var NotCompared = []struct{ What, Why string }{
	{"st_size and st_blocks of directories", "every file system has its own idea"},
	{"st_blocks of files", "depends on compression and inline extents"},
	{"times of a FIFO", "Linux sets them on write without asking a FUSE server or telling it"},
	{"times that are now", "compared as \"now\"; only times that a test chose are compared exactly"},
}

// accept returns the entry that lets a difference pass, or "".
func accept(o *Op, got, want Result) string {
	for _, d := range Accepted {
		if d.Match(o, got, want) {
			return d.ID
		}
	}
	return ""
}
