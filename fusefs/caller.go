package fusefs

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// noUser is what a request says that makes nothing: since a view may be mounted idmapped,
// the kernel names a user only where something becomes his.
const noUser = ^uint32(0)

// unprivileged tells whether the caller lacks CAP_FSETID. For writes and truncations the
// kernel says so, but not for other changes of content, so the caller's thread is looked
// at, which waits for the answer. One of another user namespace has no capability here.
func unprivileged(h *fuse.InHeader) bool {
	if h.Uid != noUser {
		return h.Uid != 0
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(status), "\nCapEff:\t")
	text, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(text, 16, 64)
	if err != nil || caps&(1<<unix.CAP_FSETID) == 0 {
		return true
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", h.Pid))
	ours, oerr := os.Readlink("/proc/self/ns/user")
	return err != nil || oerr != nil || theirs != ours
}
