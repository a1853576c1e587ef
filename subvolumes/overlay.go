package subvolumes

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// AddOverlay defines an overlay. If there is a deployment, a new one that has it
// becomes active; else the first one will have it. Durable on return. Errors:
// *ExistsError, *NameError, *ClaimError.
func (w *Writer) AddOverlay(ctx context.Context, def OverlayDef) (*Record, error) {
	if err := checkOverlayName(def.Name); err != nil {
		return nil, err
	}
	paths, err := cleanClaims(def.Name, def.Paths)
	if err != nil {
		return nil, err
	}
	def.Paths = paths
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	if r.Overlay(def.Name) != nil {
		return nil, &ExistsError{"overlay", def.Name}
	}
	add := func(r *Record) error {
		r.Overlays = append(r.Overlays, def)
		return validateClaims(r.Overlays, func(d OverlayDef) (string, []string) { return d.Name, d.Paths })
	}
	if err := add(r); err != nil {
		return nil, err
	}
	active := r.Active()
	if active == nil {
		return w.Commit(ctx, add)
	}
	ref, err := w.FreshOverlay(ctx, def, active.Base)
	if err != nil {
		return nil, err
	}
	return w.deploy(ctx, Deployment{
		Base:     active.Base,
		Overlays: append(slices.Clone(active.Overlays), ref),
		Reason:   "overlay add " + def.Name,
	}, DeployOptions{}, add)
}

// RemoveOverlay takes an overlay's definition away. If the active deployment has it,
// a new one without it becomes active; the subvolume stays until garbage collection.
// Durable on return. Error: *UnknownError.
func (w *Writer) RemoveOverlay(ctx context.Context, name string) (*Record, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	if r.Overlay(name) == nil {
		return nil, &UnknownError{"overlay", name, r.overlayNames()}
	}
	remove := func(r *Record) error {
		r.Overlays = slices.DeleteFunc(r.Overlays, func(d OverlayDef) bool { return d.Name == name })
		return nil
	}
	active := r.Active()
	if active == nil || active.Overlay(name) == nil {
		return w.Commit(ctx, remove)
	}
	refs := slices.DeleteFunc(slices.Clone(active.Overlays), func(o OverlayRef) bool { return o.Name == name })
	return w.deploy(ctx, Deployment{Base: active.Base, Overlays: refs, Reason: "overlay remove " + name},
		DeployOptions{}, remove)
}

// FreshOverlay makes an empty incarnation of an overlay, with the directories of its
// claimed paths as the given base has them ("" means the active deployment's base).
// Durable on return, and garbage until a deployment names it.
func (w *Writer) FreshOverlay(ctx context.Context, def OverlayDef, base string) (OverlayRef, error) {
	ref, err := w.newOverlay(def, source{fill: true, base: base})
	if err != nil {
		return OverlayRef{}, fmt.Errorf("cannot make overlay %s: %w", def.Name, err)
	}
	return ref, nil
}

// SnapshotOverlay makes a new incarnation with the content that another one has at
// this moment. Durable on return, and garbage until a deployment names it.
func (w *Writer) SnapshotOverlay(ctx context.Context, ref OverlayRef) (OverlayRef, error) {
	src, err := w.p.OpenOverlay(ref)
	if err == nil {
		defer src.Close()
		def := OverlayDef{Name: ref.Name, Paths: ref.Paths, FollowBase: ref.FollowBase}
		ref, err = w.newOverlay(def, source{snapshot: src})
	}
	if err != nil {
		return OverlayRef{}, fmt.Errorf("cannot snapshot overlay %s: %w", ref.Name, err)
	}
	return ref, nil
}

// RestoreOverlay makes a new incarnation of an overlay with the content of a backup.
// Durable on return, and garbage until a deployment names it. Error: *UnknownError.
func (w *Writer) RestoreOverlay(ctx context.Context, def OverlayDef, b BackupInfo) (OverlayRef, error) {
	src, err := w.p.OpenBackup(b.Overlay, b.Name)
	if err != nil {
		return OverlayRef{}, err
	}
	defer src.Close()
	// Filled, as the overlay may claim more paths than it did then.
	ref, err := w.newOverlay(def, source{snapshot: src, fill: true})
	if err != nil {
		return OverlayRef{}, fmt.Errorf("cannot restore overlay %s from backup %s: %w", def.Name, b.Name, err)
	}
	return ref, nil
}

// source says what a new incarnation is made of.
type source struct {
	snapshot *os.File // nil: empty
	fill     bool     // make the directories of claimed paths, as they are in
	base     string   // this base, or the active deployment's
}

// newOverlay makes an incarnation.
func (w *Writer) newOverlay(def OverlayDef, from source) (OverlayRef, error) {
	if err := checkOverlayName(def.Name); err != nil {
		return OverlayRef{}, err
	}
	paths, err := cleanClaims(def.Name, def.Paths)
	if err != nil {
		return OverlayRef{}, err
	}
	def.Paths = paths
	r, err := w.Record()
	if err != nil {
		return OverlayRef{}, err
	}
	var lower *os.File
	if from.base == "" && r.Active() != nil {
		from.base = r.Active().Base
	}
	if from.fill && from.base != "" {
		if r.Base(from.base) == nil {
			return OverlayRef{}, &UnknownError{"base", from.base, r.versions()}
		}
		if lower, err = w.p.OpenBase(from.base); err != nil {
			return OverlayRef{}, err
		}
		defer lower.Close()
	}
	dir, err := w.p.openDir(dirOverlays)
	if err != nil {
		return OverlayRef{}, err
	}
	defer dir.Close()
	n, err := freeIncarnation(dir, r)
	if err != nil {
		return OverlayRef{}, err
	}
	name := incarnation(def.Name, n)
	// Every step of it can meet a full disk, not only the first.
	err = w.withReserve(func() error {
		err := w.makeIncarnation(dir, name, def, lower, from)
		if err != nil {
			btrfs.DestroySubvolume(dir, name) // if this fails, it is garbage
		}
		return err
	})
	if err != nil {
		return OverlayRef{}, err
	}
	return OverlayRef{Name: def.Name, Subvolume: name, Paths: def.Paths, FollowBase: def.FollowBase}, nil
}

// freeIncarnation returns a number that no incarnation has ever had, as far as the
// record and the directory know.
func freeIncarnation(dir *os.File, r *Record) (int, error) {
	names, err := listNames(dir)
	if err != nil {
		return 0, err
	}
	n := r.Next
	for _, name := range names {
		if _, used, ok := splitIncarnation(name); ok && used >= n {
			n = used + 1
		}
	}
	return n, nil
}

func (w *Writer) makeIncarnation(dir *os.File, name string, def OverlayDef, lower *os.File, from source) error {
	err := w.p.at("create overlay " + name)
	if err != nil {
		return err
	}
	if from.snapshot != nil {
		err = btrfs.Snapshot(dir, name, from.snapshot, false)
	} else {
		err = btrfs.CreateSubvolume(dir, name)
	}
	if err != nil {
		return err
	}
	root, err := w.p.openDir(dirOverlays, name)
	if err != nil {
		return err
	}
	defer root.Close()
	// 0755: the mode of upper decides who may do what; this one is only passed by root,
	// and by kernel overlayfs with the mounter's rights.
	for _, sub := range []string{"upper", "work"} {
		err := unix.Mkdirat(int(root.Fd()), sub, 0o755)
		if err == nil {
			err = unix.Fchmodat(int(root.Fd()), sub, 0o755, 0) // whatever the umask
		}
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("make %s/%s: %w", root.Name(), sub, err)
		}
	}
	upper, err := w.p.openDir(dirOverlays, name, "upper")
	if err != nil {
		return err
	}
	defer upper.Close()
	if from.fill {
		if err := fillUpper(upper, lower, def); err != nil {
			return err
		}
	}
	if err := w.writeMeta(root, nameMeta, tempMeta, meta{Overlay: &def}); err != nil {
		return err
	}
	// Creating a subvolume commits nothing by itself.
	if err := w.p.at("commit overlay " + name); err != nil {
		return err
	}
	return btrfs.WaitSync(root, 0)
}
