package reset

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// Backup snapshots the named overlays of the active deployment, all of them if
// none is named. Either all backups exist afterwards, on stable storage, or none.
// That they show one moment in time is for the caller to see to: it freezes the
// views. Error: *subvolumes.UnknownError.
func Backup(ctx context.Context, w *subvolumes.Writer, overlays []string) ([]subvolumes.BackupInfo, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	active, err := activeOf(r)
	if err != nil {
		return nil, err
	}
	if len(overlays) == 0 {
		overlays = names(active)
	}
	overlays = slices.Clone(overlays)
	slices.Sort(overlays)
	overlays = slices.Compact(overlays)
	for _, name := range overlays {
		if active.Overlay(name) == nil {
			return nil, &subvolumes.UnknownError{Kind: "overlay", Name: name, Known: names(active)}
		}
	}
	if len(overlays) == 0 {
		return nil, &subvolumes.UnknownError{Kind: "overlay", Name: "*"}
	}
	return w.Backup(ctx, overlays)
}

// List returns the backups of an overlay, of all overlays if name is "", oldest
// first. A name that has no backup and is no overlay: *subvolumes.UnknownError.
func List(p *subvolumes.Pool, overlay string) ([]subvolumes.BackupInfo, error) {
	list, err := p.Backups(overlay)
	if err != nil || len(list) > 0 || overlay == "" {
		return list, err
	}
	r, err := p.Record()
	if err != nil {
		return nil, err
	}
	if r.Overlay(overlay) == nil {
		var known []string
		for _, o := range r.Overlays {
			known = append(known, o.Name)
		}
		return nil, &subvolumes.UnknownError{Kind: "overlay", Name: overlay, Known: known}
	}
	return nil, nil
}

// Find returns a backup by its name, the newest if name is "".
// Error: *subvolumes.UnknownError, which lists the backups that there are.
func Find(p *subvolumes.Pool, overlay, name string) (subvolumes.BackupInfo, error) {
	list, err := List(p, overlay)
	if err != nil {
		return subvolumes.BackupInfo{}, err
	}
	var known []string
	for _, b := range slices.Backward(list) {
		if name == "" || b.Name == name {
			return b, nil
		}
		known = append(known, b.Name)
	}
	if name == "" {
		return subvolumes.BackupInfo{}, &subvolumes.UnknownError{Kind: "backup of overlay", Name: overlay, Known: known}
	}
	return subvolumes.BackupInfo{}, &subvolumes.UnknownError{Kind: "backup", Name: name, Known: known}
}

// Restore commits a deployment in which the overlay has the content of a backup
// (the newest if name is ""). The backup stays. The new state is on stable storage
// when it returns. Error: *subvolumes.UnknownError.
func Restore(ctx context.Context, w *subvolumes.Writer, overlay, name string) (*subvolumes.Record, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	active, err := activeOf(r)
	if err != nil {
		return nil, err
	}
	ref := active.Overlay(overlay)
	if ref == nil {
		return nil, &subvolumes.UnknownError{Kind: "overlay", Name: overlay, Known: names(active)}
	}
	b, err := Find(w.Pool(), overlay, name)
	if err != nil {
		return nil, err
	}
	fresh, err := w.RestoreOverlay(ctx, defOf(r, *ref), b)
	if err != nil {
		return nil, err
	}
	return w.Deploy(ctx, with(active, fresh, fmt.Sprintf("restore %s %s", overlay, b.Name)), subvolumes.DeployOptions{})
}

// with is the deployment with one overlay's subvolume replaced.
func with(d *subvolumes.Deployment, ref subvolumes.OverlayRef, why string) subvolumes.Deployment {
	refs := slices.Clone(d.Overlays)
	for i := range refs {
		if refs[i].Name == ref.Name {
			refs[i] = ref
		}
	}
	return subvolumes.Deployment{Base: d.Base, Overlays: refs, Reason: why}
}

// Export writes a backup as a btrfs send stream, which `btrfs receive` and
// [RestoreStream] take.
func Export(ctx context.Context, p *subvolumes.Pool, b subvolumes.BackupInfo, w io.Writer) error {
	sub, err := p.OpenBackup(b.Overlay, b.Name)
	if err != nil {
		return err
	}
	defer sub.Close()
	buf := bufio.NewWriterSize(w, 1<<20)
	if err := btrfs.Send(ctx, buf, sub, btrfs.SendOptions{}); err != nil {
		return fmt.Errorf("cannot export backup %s of overlay %q: %w", b.Name, b.Overlay, err)
	}
	return buf.Flush()
}
