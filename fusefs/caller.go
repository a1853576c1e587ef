package fusefs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
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
	caps, err := strconv.ParseUint(statusLine(h.Pid, "CapEff"), 16, 64)
	if err != nil || caps&(1<<unix.CAP_FSETID) == 0 {
		return true
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", h.Pid))
	ours, oerr := os.Readlink("/proc/self/ns/user")
	return err != nil || oerr != nil || theirs != ours
}

// killed tells whether a change of content takes set-id bits, and has taken those that the
// union does not know about.
func (f *rawFS) killed(n *overlay.Node, h *fuse.InHeader) (bool, error) {
	if !unprivileged(h) {
		return false, nil
	}
	return true, f.dropSetgid(n, h)
}

// dropSetgid takes the setgid bit of a file without execute permission for the group,
// whose content or owner a caller without CAP_FSETID is about to change, unless he is in the
// group. (Where the group may execute, the bit goes in any case, with setuid.) On an
// idmapped mount a group has another number, and the bit goes.
func (f *rawFS) dropSetgid(n *overlay.Node, h *fuse.InHeader) error {
	mode, gid, ok := f.u.SetgidAlone(n)
	if !ok || !unprivileged(h) {
		return nil
	}
	groups := strings.Fields(statusLine(h.Pid, "Groups"))
	if ids := strings.Fields(statusLine(h.Pid, "Gid")); len(ids) == 4 {
		groups = append(groups, ids[3]) // for file systems
	}
	if slices.Contains(groups, strconv.FormatUint(uint64(gid), 10)) {
		return nil
	}
	var a overlay.Attr
	return f.u.Setattr(n, &overlay.SetAttr{Valid: overlay.SetMode, Mode: mode &^ unix.S_ISGID}, &a)
}

// statusLine returns a line of /proc/PID/status, "" if there is none.
func statusLine(pid uint32, key string) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(status), "\n"+key+":\t")
	line, _, _ := strings.Cut(rest, "\n")
	return line
}
