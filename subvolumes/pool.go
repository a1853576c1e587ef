package subvolumes

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

var errTODO = errors.New("subvolumes: not built yet")

// Pool is an open pool. It holds a directory handle and no copy of the record.
type Pool struct{ dir *os.File }

// Init makes a pool of the directory dir, which is created if it does not exist and
// must be empty and on btrfs. Durable on return. Errors: *NotBtrfsError,
// *ExistsError (it is a pool already).
func Init(dir string) (*Pool, error) { return nil, errTODO }

// Open opens a pool for reading; nothing is changed, not even after a crash. Errors:
// *NotPoolError, *NotBtrfsError, *FormatError.
func Open(dir string) (*Pool, error) { return nil, errTODO }

// OpenDamaged opens a pool whose state is lost or unreadable, for [Pool.Check] and
// [Writer.Rebuild] only.
func OpenDamaged(dir string) (*Pool, error) { return nil, errTODO }

// Close releases the handle.
func (p *Pool) Close() error { return errTODO }

// Dir returns the pool's absolute path, for messages and for peers like mount(8).
func (p *Pool) Dir() string { return "" }

// ID returns the pool's UUID.
func (p *Pool) ID() string { return "" }

// Record reads the state from disk.
func (p *Pool) Record() (*Record, error) { return nil, errTODO }

// Lock waits for the pool's lock up to wait (0: one attempt). what names the command
// for those who find the pool busy. Error: *BusyError.
func (p *Pool) Lock(ctx context.Context, what string, wait time.Duration) (*Writer, error) {
	return nil, errTODO
}

// OpenBase opens the root directory of a base.
func (p *Pool) OpenBase(version string) (*os.File, error) { return nil, errTODO }

// OpenOverlay opens the subvolume of an overlay (the directory that holds upper/ and work/).
func (p *Pool) OpenOverlay(ref OverlayRef) (*os.File, error) { return nil, errTODO }

// BasePath and OverlayPath return absolute paths for messages and for mount(8).
func (p *Pool) BasePath(version string) string { return "" }

// OverlayPath returns the path of the subvolume that holds upper/ and work/.
func (p *Pool) OverlayPath(ref OverlayRef) string { return "" }

// Space returns what the file system can take.
func (p *Pool) Space() (btrfs.Space, error) { return btrfs.Space{}, errTODO }

// CheckSpace fails with *NoSpaceError if data bytes of content and metadata bytes do not fit now.
func (p *Pool) CheckSpace(what string, data, metadata uint64) error { return errTODO }

// Hold keeps the subvolumes of a deployment from garbage collection until released.
type Hold struct{}

// Base returns the base's root directory; Overlays the subvolumes in the order of the
// deployment's. They are closed by Release.
func (h *Hold) Base() *os.File         { return nil }
func (h *Hold) Overlays() []*os.File   { return nil }
func (h *Hold) Deployment() Deployment { return Deployment{} }
func (h *Hold) Release() error         { return nil }

// Hold takes shared flocks on a deployment's subvolumes. They go when the process ends.
func (p *Pool) Hold(d *Deployment) (*Hold, error) { return nil, errTODO }

// BackupInfo is a backup of one overlay.
type BackupInfo struct {
	Overlay string
	Name    string // time in UTC, "20261125T141503.123Z"; equal for overlays backed up together
	Created time.Time
}

// Backups lists the backups of an overlay, of all if name is "", oldest first.
func (p *Pool) Backups(overlay string) ([]BackupInfo, error) { return nil, errTODO }

// OpenBackup opens the read-only snapshot. Error: *UnknownError.
func (p *Pool) OpenBackup(overlay, name string) (*os.File, error) { return nil, errTODO }

// BackupPath returns its absolute path.
func (p *Pool) BackupPath(overlay, name string) string { return "" }

// Finding is what Check found.
type Finding struct {
	Severity string // "note", "warning", "error"
	What     string // subvolume or file, relative to the pool
	Problem  string
	Remedy   string
}

// Check examines the pool; deep also re-reads every base and compares its digest.
func (p *Pool) Check(ctx context.Context, deep bool) ([]Finding, error) { return nil, errTODO }

// Writer holds the pool's lock.
type Writer struct{ p *Pool }

// Close releases the lock.
func (w *Writer) Close() error { return nil }

// Pool returns the pool.
func (w *Writer) Pool() *Pool { return w.p }

// Record reads the state from disk.
func (w *Writer) Record() (*Record, error) { return nil, errTODO }

// Commit lets fn change a fresh copy of the record, checks it and replaces the state.
// On return without error the new state is on stable storage.
func (w *Writer) Commit(ctx context.Context, fn func(*Record) error) (*Record, error) {
	return nil, errTODO
}

// Stage is a base being built: bases/<version>.partial, writable.
type Stage struct{}

// NewStage makes a stage: a snapshot of base fromBase, or empty if that is "".
// What an earlier crash left of stages is removed. Errors: *ExistsError, *UnknownError, *NameError.
func (w *Writer) NewStage(ctx context.Context, version, fromBase string) (*Stage, error) {
	return nil, errTODO
}

// Root is the stage's root directory.
func (s *Stage) Root() *os.File { return nil }

// Version is the base's version.
func (s *Stage) Version() string { return "" }

// SealOptions describe the base for its record.
type SealOptions struct {
	Counter    uint64
	Compatible string
	Source     string
	Pinned     bool
	Received   btrfs.UUID
	Jobs       int
	Progress   func(done, total int64)
}

// Seal turns the stage into a base and records it. Durable on return. The digest is
// read back from the read-only snapshot; if want is not "" and differs: *DigestError.
// After an error the stage must still be discarded.
func (s *Stage) Seal(ctx context.Context, want string, o SealOptions) (BaseInfo, error) {
	return BaseInfo{}, errTODO
}

// Discard removes the stage; after Seal it does nothing.
func (s *Stage) Discard() error { return nil }

// ImportOptions shape an import.
type ImportOptions struct {
	Want       string // digest that must result, "" for any
	Counter    uint64
	Compatible string
	Source     string
	Jobs       int
	Progress   func(phase string, done, total int64)
	Extract    tree.ExtractOptions // tar only
}

// ImportTree makes a base of a directory.
func (w *Writer) ImportTree(ctx context.Context, version string, src *os.File, o ImportOptions) (BaseInfo, error) {
	return BaseInfo{}, errTODO
}

// ImportTar makes a base of a tar archive.
func (w *Writer) ImportTar(ctx context.Context, version string, r io.Reader, o ImportOptions) (BaseInfo, error) {
	return BaseInfo{}, errTODO
}

// RemoveBase removes a base that no deployment names. Errors: *UnknownError, *InUseError.
func (w *Writer) RemoveBase(ctx context.Context, version string) error { return errTODO }

// AddOverlay defines an overlay; if there is a deployment, a new one with it becomes active.
// Errors: *ExistsError, *NameError, *ClaimError.
func (w *Writer) AddOverlay(ctx context.Context, def OverlayDef) (*Record, error) {
	return nil, errTODO
}

// RemoveOverlay is its inverse; the subvolume stays until garbage collection.
func (w *Writer) RemoveOverlay(ctx context.Context, name string) (*Record, error) {
	return nil, errTODO
}

// FreshOverlay makes an empty incarnation of an overlay over the given base ("" is the
// active deployment's). It is garbage until a deployment names it.
func (w *Writer) FreshOverlay(ctx context.Context, def OverlayDef, base string) (OverlayRef, error) {
	return OverlayRef{}, errTODO
}

// SnapshotOverlay makes a new incarnation with the content of another.
func (w *Writer) SnapshotOverlay(ctx context.Context, ref OverlayRef) (OverlayRef, error) {
	return OverlayRef{}, errTODO
}

// RestoreOverlay makes a new incarnation of def with the content of a backup.
func (w *Writer) RestoreOverlay(ctx context.Context, def OverlayDef, b BackupInfo) (OverlayRef, error) {
	return OverlayRef{}, errTODO
}

// Backup snapshots the named overlays of the active deployment; all or none of them
// exist afterwards. Writers must be held off by the caller for one moment in time.
func (w *Writer) Backup(ctx context.Context, overlays []string) ([]BackupInfo, error) {
	return nil, errTODO
}

// RemoveBackup removes a backup.
func (w *Writer) RemoveBackup(ctx context.Context, b BackupInfo) error { return errTODO }

// DeployOptions shape [Writer.Deploy].
type DeployOptions struct {
	Trial          int // tries; 0 makes the deployment current at once
	AllowDowngrade bool
	KeepOverlays   bool // do not snapshot overlays that follow the base
}

// Deploy commits a new deployment: Base, Overlays (nil: those of the active one) and
// Reason are taken from d. Overlays that follow the base are snapshotted if the base
// changes. Durable on return. Errors: *UnknownError, *DowngradeError.
func (w *Writer) Deploy(ctx context.Context, d Deployment, o DeployOptions) (*Record, error) {
	return nil, errTODO
}

// EnsureDeployment makes the first deployment of what is there: the base baseHint, or
// the newest, and all overlays. With a deployment it does nothing. Error: *UnknownError (no base).
func (w *Writer) EnsureDeployment(ctx context.Context, baseHint string) (*Record, error) {
	return nil, errTODO
}

// BootChoice is what a boot mounts.
type BootChoice struct {
	Deployment Deployment
	Trial      bool
	TriesLeft  int
	FellBack   *Fallback // set if this boot gave a trial up
}

// Boot chooses the deployment to boot and counts a try down, durably on return.
func (w *Writer) Boot(ctx context.Context) (BootChoice, error) { return BootChoice{}, errTODO }

// MarkGood makes the trial current. Without a trial the current deployment is marked.
func (w *Writer) MarkGood(ctx context.Context) (*Record, error) { return nil, errTODO }

// Rollback goes back: id 0 ends the trial, or else takes the previous deployment.
func (w *Writer) Rollback(ctx context.Context, id int, reason string) (*Record, error) {
	return nil, errTODO
}

// Removed is something that garbage collection removed or would remove.
type Removed struct {
	Kind string // "base", "overlay", "deployment", "stage", "temporary"
	Name string
	Held bool // it stays: a view uses it
}

// Collect removes what no kept deployment names. With dryRun it only tells.
func (w *Writer) Collect(ctx context.Context, dryRun bool) ([]Removed, error) { return nil, errTODO }

// Garbage tells what Collect would remove.
func (p *Pool) Garbage(ctx context.Context) ([]Removed, error) { return nil, errTODO }

// Rebuild makes a new state from the subvolumes.
func (w *Writer) Rebuild(ctx context.Context) (*Record, error) { return nil, errTODO }

// ReleaseReserve gives the reserved space back to the file system, MakeReserve takes it again.
func (w *Writer) ReleaseReserve() error { return errTODO }

// MakeReserve takes as much of the reserve as fits.
func (w *Writer) MakeReserve() error { return errTODO }
