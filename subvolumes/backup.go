package subvolumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// BackupInfo is a backup of one overlay: the read-only snapshot backups/<overlay>/<name>.
type BackupInfo struct {
	Overlay string
	Name    string // its time in UTC; overlays backed up together have the same
	Created time.Time
}

// backupTime is the form of a backup's name. It sorts by time and needs no quoting.
const backupTime = "20060102T150405.000Z"

// Backups come in groups, one snapshot per overlay, and a group appears as a whole:
// all snapshots are taken as <name>.partial, then all are renamed. After a crash a
// partial one counts if, and only if, another one of its group was renamed: then every
// snapshot of the group had been made.

// Backups lists the backups of an overlay, or of all if overlay is "", by overlay and
// oldest first.
func (p *Pool) Backups(overlay string) ([]BackupInfo, error) {
	names, err := p.backupNames()
	if err != nil {
		return nil, fmt.Errorf("cannot list backups: %w", err)
	}
	done := finishedGroups(names)
	var out []BackupInfo
	for _, o := range slices.Sorted(maps.Keys(names)) {
		if overlay != "" && o != overlay {
			continue
		}
		for _, n := range names[o] {
			base := strings.TrimSuffix(n, suffixStage)
			at, err := time.Parse(backupTime, base)
			if err != nil || !done[base] {
				continue
			}
			out = append(out, BackupInfo{o, base, at})
		}
	}
	return out, nil
}

// backupNames lists backups/ as it is.
func (p *Pool) backupNames() (map[string][]string, error) {
	dir, err := p.openDir(dirBackups)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	overlays, err := listNames(dir)
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, o := range overlays {
		sub, err := p.openDir(dirBackups, o)
		if errors.Is(err, unix.ENOTDIR) || checkOverlayName(o) != nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[o], err = listNames(sub)
		sub.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func finishedGroups(names map[string][]string) map[string]bool {
	done := map[string]bool{}
	for _, list := range names {
		for _, n := range list {
			if !strings.HasSuffix(n, suffixStage) {
				done[n] = true
			}
		}
	}
	return done
}

// OpenBackup opens the snapshot, which holds upper/ as the overlay's subvolume did.
// Error: *UnknownError.
func (p *Pool) OpenBackup(overlay, name string) (*os.File, error) {
	list, err := p.Backups(overlay)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, b := range list {
		known = append(known, b.Name)
		if overlay == "" || b.Name != name {
			continue
		}
		f, err := p.openDir(dirBackups, overlay, name)
		if errors.Is(err, os.ErrNotExist) { // of a group that a crash kept from its renames
			f, err = p.openDir(dirBackups, overlay, name+suffixStage)
		}
		return f, err
	}
	return nil, &UnknownError{"backup", overlay + " " + name, known}
}

// BackupPath returns the absolute path of a backup's snapshot.
func (p *Pool) BackupPath(overlay, name string) string {
	return filepath.Join(p.Dir(), dirBackups, overlay, name)
}

// Backup snapshots the named overlays of the active deployment. All of the snapshots
// exist afterwards, or, after an error or a crash, all or none. They show one moment
// if writers are held off by the caller. Durable on return. Error: *UnknownError.
func (w *Writer) Backup(ctx context.Context, overlays []string) ([]BackupInfo, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	var refs []OverlayRef
	for _, name := range slices.Compact(slices.Sorted(slices.Values(overlays))) {
		var ref *OverlayRef
		known := []string{}
		if a := r.Active(); a != nil {
			ref = a.Overlay(name)
			for _, o := range a.Overlays {
				known = append(known, o.Name)
			}
		}
		if ref == nil {
			return nil, &UnknownError{"overlay", name, known}
		}
		refs = append(refs, *ref)
	}
	if len(refs) == 0 {
		return nil, nil
	}
	if err := w.settleBackups(ctx); err != nil {
		return nil, fmt.Errorf("cannot make backup: %w", err)
	}
	out, err := w.backup(ctx, refs)
	if err != nil {
		return nil, fmt.Errorf("cannot make backup: %w", err)
	}
	return out, nil
}

func (w *Writer) backup(ctx context.Context, refs []OverlayRef) ([]BackupInfo, error) {
	at, err := w.freeBackupTime()
	if err != nil {
		return nil, err
	}
	name := at.Format(backupTime)
	var out []BackupInfo
	undo := func() {
		for _, b := range out {
			if dir, err := w.p.openDir(dirBackups, b.Overlay); err == nil {
				btrfs.DestroySubvolume(dir, b.Name+suffixStage) // if this fails, it is garbage
				dir.Close()
			}
		}
	}
	for _, ref := range refs {
		if err := w.snapshotBackup(ref, name); err != nil {
			undo()
			return nil, err
		}
		out = append(out, BackupInfo{ref.Name, name, at})
	}
	if err := ctx.Err(); err != nil {
		undo()
		return nil, err
	}
	if err := w.renameBackup(out[0]); err != nil {
		undo()
		return nil, err
	}
	// From this rename on the group exists, whatever fails: it is only brought forward.
	errs := []error{w.syncBackup(out[0])}
	for _, b := range out[1:] {
		errs = append(errs, w.finishBackup(b))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// freeBackupTime returns the present time, or a little later if a backup has that name.
func (w *Writer) freeBackupTime() (time.Time, error) {
	names, err := w.p.backupNames()
	if err != nil {
		return time.Time{}, err
	}
	for at := now(); ; at = at.Add(time.Millisecond) {
		taken := false
		for _, list := range names {
			taken = taken || slices.Contains(list, at.Format(backupTime))
		}
		if !taken {
			return at, nil
		}
	}
}

func (w *Writer) snapshotBackup(ref OverlayRef, name string) error {
	if err := w.p.at("snapshot backup of " + ref.Name); err != nil {
		return err
	}
	src, err := w.p.OpenOverlay(ref)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := unix.Mkdirat(int(w.p.dir.Fd()), dirBackups+"/"+ref.Name, 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make %s/%s/%s: %w", w.p.Dir(), dirBackups, ref.Name, err)
	}
	dir, err := w.p.openDir(dirBackups, ref.Name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return w.withReserve(func() error { return btrfs.Snapshot(dir, name+suffixStage, src, true) })
}

// finishBackup takes the ".partial" from a backup's name, durably.
func (w *Writer) finishBackup(b BackupInfo) error {
	if err := w.renameBackup(b); err != nil {
		return err
	}
	return w.syncBackup(b)
}

func (w *Writer) renameBackup(b BackupInfo) error {
	if err := w.p.at("rename backup of " + b.Overlay); err != nil {
		return err
	}
	dir, err := w.p.openDir(dirBackups, b.Overlay)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	if err := unix.Renameat(fd, b.Name+suffixStage, fd, b.Name); err != nil {
		return fmt.Errorf("rename %s/%s: %w", dir.Name(), b.Name+suffixStage, err)
	}
	return nil
}

func (w *Writer) syncBackup(b BackupInfo) error {
	if err := w.p.at("sync directory of backups of " + b.Overlay); err != nil {
		return err
	}
	dir, err := w.p.openDir(dirBackups, b.Overlay)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// settleBackups brings interrupted groups to their end, as Backups sees them.
func (w *Writer) settleBackups(ctx context.Context) error {
	names, err := w.p.backupNames()
	if err != nil {
		return err
	}
	done := finishedGroups(names)
	for o, list := range names {
		for _, n := range list {
			base, partial := strings.CutSuffix(n, suffixStage)
			switch {
			case !partial:
				continue
			case done[base]:
				err = w.finishBackup(BackupInfo{Overlay: o, Name: base})
			default:
				err = w.deleteBackup(ctx, o, n)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveBackup removes a backup; durable on return. Error: *UnknownError.
func (w *Writer) RemoveBackup(ctx context.Context, b BackupInfo) error {
	f, err := w.p.OpenBackup(b.Overlay, b.Name)
	if err != nil {
		return err
	}
	f.Close()
	if err := w.settleBackups(ctx); err != nil {
		return fmt.Errorf("cannot remove backup: %w", err)
	}
	if err := w.deleteBackup(ctx, b.Overlay, b.Name); err != nil {
		return fmt.Errorf("cannot remove backup: %w", err)
	}
	// Deleting a subvolume commits nothing: a power cut would bring the backup back.
	dir, err := w.p.openDir(dirBackups, b.Overlay)
	if err != nil {
		return fmt.Errorf("cannot remove backup: %w", err)
	}
	defer dir.Close()
	if err := w.p.at("sync directory of backups of " + b.Overlay); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("cannot remove backup: %w", err)
	}
	return nil
}

func (w *Writer) deleteBackup(ctx context.Context, overlay, name string) error {
	if err := w.p.at("delete backup of " + overlay); err != nil {
		return err
	}
	dir, err := w.p.openDir(dirBackups, overlay)
	if err != nil {
		return err
	}
	defer dir.Close()
	return btrfs.DestroyTree(ctx, dir, name)
}
