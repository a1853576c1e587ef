package fusefs

import (
	"context"
	"log/slog"
	"time"

	"github.com/btrovl/btrovl/overlay"
)

// Options of a mount. The zero value of each field is a sensible default.
type Options struct {
	FSName     string        // first column of df; "btrovl" if empty
	ReadOnly   bool          // mount read-only
	MountFlags uintptr       // flags of mount(2) beside MS_RDONLY; a root view needs device nodes and set-id programs, so 0 means neither nosuid nor nodev
	MaxFDs     int           // descriptors cached; default 8192, at most half of RLIMIT_NOFILE
	Readers    int           // threads that read requests; default by GOMAXPROCS
	FreezeMax  time.Duration // a Freeze thaws itself after this time; default one minute
	Logger     *slog.Logger  // default slog.Default()
	Debug      bool          // log every request at debug level
	// Released is called (from a goroutine without locks) when nothing of a
	// layer that a Switch took away is in use any more. The argument is the Name
	// of the *os.File that brought the layer in.
	Released func(dir string)
}

// View is a mounted union.
type View struct{}

// SwitchReport says what a Switch did.
type SwitchReport struct {
	Changed int           // files and directories that the view shows differently
	Nodes   int           // objects that the kernel knew at that moment
	Paused  time.Duration // how long requests waited
	Total   time.Duration // until the last notification was delivered
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

// Mount mounts the union and serves it. When it returns, the mount answers.
func Mount(mountpoint string, u *overlay.Union, o Options) (*View, error) { return nil, nil }

// Mountpoint returns where the view is mounted.
func (v *View) Mountpoint() string { return "" }

// Switch lets the view show the layers of next from now on.
func (v *View) Switch(ctx context.Context, next overlay.Config) (SwitchReport, error) {
	return SwitchReport{}, nil
}

// Freeze lets every request that changes something wait until Thaw, Switch or
// Options.FreezeMax, and returns when none is under way any more.
func (v *View) Freeze(ctx context.Context) error { return nil }

// Thaw ends a Freeze. It does nothing without one.
func (v *View) Thaw() {}

// Unmount unmounts; lazy detaches a busy mount from the tree and lets what is
// open there live on.
func (v *View) Unmount(lazy bool) error { return nil }

// Wait returns when the view is unmounted and all requests are answered.
func (v *View) Wait() {}

// Stats returns the counters.
func (v *View) Stats() Stats { return Stats{} }
