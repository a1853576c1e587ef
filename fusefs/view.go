package fusefs

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/btrovl/btrovl/overlay"
)

// Options of a mount. The zero value of each field is a sensible default.
type Options struct {
	FSName     string        // first column of df; "btrovl" if empty
	ReadOnly   bool          // mount read-only
	MountFlags uintptr       // flags of mount(2) beside MS_RDONLY; a root view needs device nodes and set-id programs, so 0 means neither nosuid nor nodev
	MaxFDs     int           // descriptors cached; default 8192, at most half of RLIMIT_NOFILE
	FreezeMax  time.Duration // a Freeze thaws itself after this time; default one minute
	Logger     *slog.Logger  // default slog.Default()
	Debug      bool          // log every request at debug level
	// Released is called (from a goroutine without locks) when nothing of a
	// layer that a Switch took away is in use any more. The argument is the Name
	// of the *os.File that brought the layer in.
	Released func(dir string)
}

// SwitchReport says what a Switch did.
type SwitchReport struct {
	Changed int           // files and directories that the view shows differently
	Nodes   int           // objects that the kernel knew at that moment
	Paused  time.Duration // how long requests waited
	Frozen  time.Duration // how long changes waited for a Freeze that ended with the switch
	Total   time.Duration // until the last notification was delivered

	Prepared bool // the search for differences had been made by Prepare
}

// OpStats counts one kind of request.
type OpStats struct {
	Op     string        `json:"op"`
	Count  uint64        `json:"count"`
	Errors uint64        `json:"errors"`
	Total  time.Duration `json:"total_ns"`
	Max    time.Duration `json:"max_ns"`
}

// Stuck is a request that has not been answered yet.
type Stuck struct {
	Op   string        `json:"op"`
	Node uint64        `json:"node"`
	PID  uint32        `json:"pid"`
	For  time.Duration `json:"for_ns"`
}

// Stats is a snapshot of a view's counters.
type Stats struct {
	Ops      []OpStats     `json:"ops"`
	Nodes    int           `json:"nodes"`     // objects that the kernel knows
	FDs      int           `json:"fds"`       // descriptors open in the layers
	Pinned   int           `json:"pinned"`    // of them for files deleted while open
	Detached int           `json:"detached"`  // objects that still show an earlier deployment
	Retired  []string      `json:"retired"`   // layers of earlier deployments still in use
	Frozen   time.Duration `json:"frozen_ns"` // since when changes wait, 0 if they do not
	Switches int           `json:"switches"`
	InFlight []Stuck       `json:"in_flight"` // requests older than a second
}

// View is a mounted union.
type View struct {
	mountpoint string
	opt        Options
	log        *slog.Logger
	u          *overlay.Union
	fs         *rawFS
	conn       *connection
	dev        uint64        // st_dev of the mount, which names its FUSE connection
	done       chan struct{} // closed when the last request was answered

	watching  atomic.Bool   // watchMounts is under way
	switching sync.Mutex    // one Switch at a time
	prepared  *overlay.Plan // for the next Switch, by Prepare; guarded by switching

	mu       sync.Mutex
	frozen   time.Time // zero if not frozen
	expired  bool      // the last freeze ended by its limit, and nobody has been told
	freezing int       // counts freezes, so that an old timer thaws no new one
	timer    *time.Timer
	switches int
}

// Mountpoint returns where the view is mounted.
func (v *View) Mountpoint() string { return v.mountpoint }

// Wait returns when the view is unmounted everywhere and all requests are
// answered.
func (v *View) Wait() { <-v.done }

// Done is closed when Wait would return.
func (v *View) Done() <-chan struct{} { return v.done }

// Stats returns the counters.
func (v *View) Stats() Stats {
	var s Stats
	s.Ops, s.InFlight = v.fs.c.stats()
	c := v.u.Counts()
	s.Nodes, s.FDs, s.Pinned, s.Detached, s.Retired = c.Nodes, c.FDs, c.Pinned, c.Detached, c.Retired
	v.mu.Lock()
	if !v.frozen.IsZero() {
		s.Frozen = time.Since(v.frozen)
	}
	s.Switches = v.switches
	v.mu.Unlock()
	return s
}
