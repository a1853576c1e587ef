package subvolumes

import (
	"fmt"
	"strings"
)

// NotBtrfsError says that a pool cannot be there.
type NotBtrfsError struct{ Dir, FSType string }

func (e *NotBtrfsError) Error() string {
	return fmt.Sprintf("%s lies on %s, a pool needs btrfs", e.Dir, e.FSType)
}

// NotPoolError says that a directory is no pool. Lost tells that it looks like one
// whose state is gone or unreadable, which doctor can rebuild.
type NotPoolError struct {
	Dir    string
	Lost   bool
	Reason string // why, "" if there is simply nothing
}

func (e *NotPoolError) Error() string {
	s := e.Dir + " is not a pool"
	if e.Lost {
		s = "the state of pool " + e.Dir + " is lost"
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// FormatError says that a newer btrovl wrote the pool. Nothing is changed then.
type FormatError struct {
	Dir        string
	Have, Know int
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("pool %s has format %d, this btrovl knows formats up to %d", e.Dir, e.Have, e.Know)
}

// BusyError says that another process holds the pool's lock.
type BusyError struct {
	Lock    string // path of the lock file
	PID     int    // 0 if not known
	Command string
}

func (e *BusyError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	if e.Command != "" {
		who += " (" + e.Command + ")"
	}
	return fmt.Sprintf("pool is busy: %s holds %s", who, e.Lock)
}

// UnknownError names something that is not there, and what is.
type UnknownError struct {
	Kind  string // "base", "overlay", "deployment", "backup"
	Name  string
	Known []string
}

func (e *UnknownError) Error() string {
	known := "there is none"
	if len(e.Known) > 0 {
		known = "there is " + strings.Join(e.Known, ", ")
	}
	return fmt.Sprintf("no %s %q (%s)", e.Kind, e.Name, known)
}

// ExistsError says that a name is taken.
type ExistsError struct{ Kind, Name string }

func (e *ExistsError) Error() string { return fmt.Sprintf("%s %q exists already", e.Kind, e.Name) }

// InUseError says who still needs what was to be removed.
type InUseError struct {
	Kind, Name string
	By         []string // "deployment 3 (current)", "a mounted view"
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s %q is in use by %s", e.Kind, e.Name, strings.Join(e.By, ", "))
}

// NoSpaceError says how much room is missing, in bytes.
type NoSpaceError struct {
	Need, Free uint64
	What       string // "base 43", "metadata"
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("no space for %s: %d bytes needed, %d free", e.What, e.Need, e.Free)
}

// DigestError says that content is not what it must be.
type DigestError struct{ What, Want, Have string }

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s has digest %s, expected %s", e.What, e.Have, e.Want)
}

// DowngradeError says that a base is older than what the pool has accepted for good.
type DowngradeError struct{ Have, Want uint64 }

func (e *DowngradeError) Error() string {
	return fmt.Sprintf("the base has counter %d, the pool accepts none below %d", e.Have, e.Want)
}

// NameError says that a name or path cannot be used.
type NameError struct{ Kind, Name, Reason string }

func (e *NameError) Error() string {
	return fmt.Sprintf("%q cannot name %s: %s", e.Name, e.Kind, e.Reason)
}

// ClaimError says that an overlay's path cannot be claimed.
type ClaimError struct{ Overlay, Path, Reason string }

func (e *ClaimError) Error() string {
	return fmt.Sprintf("overlay %q cannot claim %s: %s", e.Overlay, e.Path, e.Reason)
}
