package subvolumes

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// ImportOptions shape an import.
type ImportOptions struct {
	Want       string // digest that must result, "" for any
	Counter    uint64
	Compatible string
	Source     string // for the record: "import tree1"
	Jobs       int
	// Progress is told bytes of the phases "copy" or "extract" and "verify".
	Progress func(phase string, done, total int64)
	Size     int64 // of the archive, for Progress only
}

func (o ImportOptions) phase(name string) func(done, total int64) {
	if o.Progress == nil {
		return nil
	}
	return func(done, total int64) { o.Progress(name, done, total) }
}

// ImportTree makes a base of a directory with everything in it, but not of what is
// mounted below. The base is kept until RemoveBase even if nothing uses it. Durable on
// return. Errors: those of NewStage and Seal.
func (w *Writer) ImportTree(ctx context.Context, version string, src *os.File, o ImportOptions) (BaseInfo, error) {
	return w.importBy(ctx, version, o, func(dst *os.File) (tree.Stats, error) {
		return tree.Copy(ctx, dst, src, tree.CopyOptions{Jobs: o.Jobs, Progress: o.phase("copy")})
	})
}

// ImportTar makes a base of a tar archive; see [tree.Extract]. Errors also:
// *tree.ArchiveError.
func (w *Writer) ImportTar(ctx context.Context, version string, r io.Reader, o ImportOptions) (BaseInfo, error) {
	return w.importBy(ctx, version, o, func(dst *os.File) (tree.Stats, error) {
		return tree.Extract(ctx, dst, r, tree.ExtractOptions{Progress: o.phase("extract"), Total: o.Size})
	})
}

// importBy makes a base of what fill puts into an empty stage.
func (w *Writer) importBy(ctx context.Context, version string, o ImportOptions, fill func(*os.File) (tree.Stats, error)) (BaseInfo, error) {
	s, err := w.NewStage(ctx, version, "")
	if err != nil {
		return BaseInfo{}, err
	}
	stats, err := fill(s.Root())
	var b BaseInfo
	if err == nil {
		b, err = s.Seal(ctx, o.Want, SealOptions{
			Counter: o.Counter, Compatible: o.Compatible, Source: o.Source, Pinned: true,
			Jobs: o.Jobs, Progress: o.phase("verify"), Total: stats.Bytes,
		})
	}
	if err != nil {
		if derr := s.Discard(); derr != nil {
			return BaseInfo{}, fmt.Errorf("%w (and the stage stays until garbage collection: %w)", err, derr)
		}
		return BaseInfo{}, err
	}
	return b, nil
}

// RemoveBase removes a base that no deployment names and no view uses. Durable but for
// the space, which btrfs frees in the background. Errors: *UnknownError, *InUseError.
func (w *Writer) RemoveBase(ctx context.Context, version string) error {
	r, err := w.Record()
	if err != nil {
		return err
	}
	if r.Base(version) == nil {
		return &UnknownError{"base", version, r.versions()}
	}
	var by []string
	for _, d := range r.Deployments {
		if d.Base == version {
			by = append(by, r.describe(d.ID))
		}
	}
	if len(by) > 0 {
		return &InUseError{"base", version, by}
	}
	bases, err := w.p.openDir(dirBases)
	if err != nil {
		return fmt.Errorf("cannot remove base %s: %w", version, err)
	}
	defer bases.Close()
	claim, err := claimSubvolume(bases, version)
	if err != nil {
		return fmt.Errorf("cannot remove base %s: %w", version, err)
	}
	if claim == nil {
		return &InUseError{"base", version, []string{"a mounted view"}}
	}
	defer claim.Close()
	if _, err := w.Commit(ctx, func(r *Record) error { r.removeBase(version); return nil }); err != nil {
		return err
	}
	if err := w.destroyBase(ctx, bases, version); err != nil {
		return fmt.Errorf("cannot remove base %s (it is no longer recorded, gc will remove it): %w", version, err)
	}
	return nil
}

// destroyBase deletes a base that no record names.
func (w *Writer) destroyBase(ctx context.Context, bases *os.File, version string) error {
	if err := w.p.at("delete base " + version); err != nil {
		return err
	}
	if err := btrfs.DestroyTree(ctx, bases, version); err != nil {
		return err
	}
	unix.Unlinkat(int(bases.Fd()), version+suffixMeta, 0) // what stays is garbage: findBases
	return nil
}

func (r *Record) removeBase(version string) {
	for i := range r.Bases {
		if r.Bases[i].Version == version {
			r.Bases = append(r.Bases[:i], r.Bases[i+1:]...)
			return
		}
	}
}

// describe names a deployment for messages: "deployment 3 (current, factory)".
func (r *Record) describe(id int) string {
	s := fmt.Sprintf("deployment %d", id)
	for i, role := range r.Roles(id) {
		if i == 0 {
			s += " (" + role
		} else {
			s += ", " + role
		}
	}
	if len(r.Roles(id)) > 0 {
		s += ")"
	}
	return s
}
