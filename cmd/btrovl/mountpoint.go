package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// fsType is what /proc/self/mountinfo calls a view.
const fsType = "fuse.btrovl"

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	dev      uint64 // as st_dev
	path     string
	fsType   string
	source   string
	readOnly bool // of this mount, or of the whole file system

	readOnlyFS bool // of the whole file system
}

// mounts reads the mounts of this process's namespace, in the order in which
// they hide each other.
func mounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot see what is mounted: %w", err)
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads lines such as
//
//	36 35 0:98 /root /mnt rw,noatime master:1 - fuse.btrovl btrovl rw,user_id=0
func parseMounts(r io.Reader) ([]mountEntry, error) {
	var out []mountEntry
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 6 || len(t) < 2 {
			continue
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(h[2], "%d:%d", &major, &minor); err != nil {
			continue
		}
		m := mountEntry{dev: unix.Mkdev(major, minor), path: unescape(h[4]), fsType: t[0], source: unescape(t[1])}
		m.readOnlyFS = len(t) > 2 && hasOption(t[2], "ro")
		m.readOnly = hasOption(h[5], "ro") || m.readOnlyFS
		out = append(out, m)
	}
	return out, sc.Err()
}

func hasOption(options, o string) bool {
	for _, v := range strings.Split(options, ",") {
		if v == o {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mountedAt returns the topmost mount at path, nil if there is none.
func mountedAt(path string) (*mountEntry, error) {
	list, err := mounts()
	if err != nil {
		return nil, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].path == path {
			return &list[i], nil
		}
	}
	return nil, nil
}

// prepareMountpoint checks that a view can be mounted at path and returns its
// absolute form. What a killed daemon left there is detached first.
func prepareMountpoint(path string, warn func(string, ...any)) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	// The parent is resolved and not the mount point itself: a dead view answers nothing.
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", coded(codeMountpoint, fmt.Errorf("cannot mount at %s: %w", path, err), "make it: mkdir -p "+path)
	}
	abs = filepath.Join(parent, filepath.Base(abs))
	for range 16 { // dead views may lie on top of each other
		m, err := mountedAt(abs)
		if err != nil {
			return "", err
		}
		var st unix.Stat_t
		err = unix.Stat(abs, &st)
		if err == nil && m != nil && m.fsType == fsType {
			var fs unix.Statfs_t // stat may be answered from what the kernel has cached of a dead view
			err = unix.Statfs(abs, &fs)
		}
		switch {
		case errors.Is(err, unix.ENOTCONN) && m != nil && m.fsType == fsType:
			warn("the process that served the view at %s is gone; what it left is taken away", abs)
			if err := unix.Unmount(abs, unix.MNT_DETACH); err != nil {
				return "", coded(codeMountpoint, fmt.Errorf("cannot take the dead view at %s away: %w", abs, err))
			}
			continue
		case err != nil:
			return "", coded(codeMountpoint, fmt.Errorf("cannot mount at %s: %w", path, err), "make it: mkdir -p "+path)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return "", coded(codeMountpoint, fmt.Errorf("cannot mount at %s: it is not a directory", path))
		case m != nil && m.fsType == fsType:
			return "", coded(codeMountpoint, fmt.Errorf("%s is busy: a view is mounted there", abs), "take it away: btrovl umount "+abs)
		case m != nil:
			return "", coded(codeMountpoint, fmt.Errorf("%s is busy: %s (%s) is mounted there", abs, m.source, m.fsType),
				"choose another directory, or unmount what is there")
		}
		// A symbolic link as mount point means what it points to.
		return filepath.EvalSymlinks(abs)
	}
	return "", coded(codeMountpoint, fmt.Errorf("too many dead views are mounted at %s", abs))
}
