package subvolumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// Rebuild makes a new state if it is lost or damaged; a good one is left alone. It
// starts from state.old, the record before the last commit, if that can be read, and
// else from what stands beside the subvolumes: then one deployment is made of the base
// with the highest counter (of these the youngest) and the latest incarnation of every
// overlay. Nothing is deleted. Durable on return. Error: *FormatError.
func (w *Writer) Rebuild(ctx context.Context) (*Record, error) {
	r, err := w.Record()
	var np *NotPoolError
	if !errors.As(err, &np) || !np.Lost {
		return r, err
	}
	r = &Record{Format: Format, Next: 1}
	if data, err := w.p.readFile(nameStateOld, maxState); err == nil {
		if old, err := decodeRecord(data); err == nil {
			r = old
		}
	}
	if err := w.findSubvolumes(ctx, r); err != nil {
		return nil, fmt.Errorf("cannot rebuild the state of pool %s: %w", w.p.Dir(), err)
	}
	if r.Pool == "" {
		r.Pool = newUUID()
	}
	if err := w.withReserve(func() error { return w.writeState(r, nil) }); err != nil {
		return nil, fmt.Errorf("cannot rebuild the state of pool %s: %w", w.p.Dir(), err)
	}
	w.p.id = r.Pool
	return r, nil
}

// findSubvolumes brings r in line with what is on disk.
func (w *Writer) findSubvolumes(ctx context.Context, r *Record) error {
	if err := w.findBases(ctx, r); err != nil {
		return err
	}
	latest, err := w.findOverlays(r)
	if err != nil {
		return err
	}
	r.Deployments = slices.DeleteFunc(r.Deployments, func(d Deployment) bool { return w.p.usable(&d) != nil })
	for _, role := range []*int{&r.Current, &r.Previous, &r.Factory} {
		if r.Deployment(*role) == nil {
			*role = 0
		}
	}
	if r.Trial != nil && r.Deployment(r.Trial.Deployment) == nil {
		r.Trial = nil
	}
	if r.Current == 0 && r.Trial == nil && len(r.Deployments) > 0 {
		last := r.Deployments[len(r.Deployments)-1].ID
		r.Current = last
		if r.Previous == last {
			r.Previous = 0
		}
	}
	if r.Current == 0 && r.Trial != nil { // nothing to fall back to
		r.Current, r.Trial = r.Trial.Deployment, nil
	}
	if r.Current == 0 && len(r.Bases) > 0 && len(latest) > 0 {
		r.rebuildDeployment(latest)
	}
	return nil
}

// findBases keeps the bases that are there and adds those that r does not know.
func (w *Writer) findBases(ctx context.Context, r *Record) error {
	dir, err := w.p.openDir(dirBases)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := listNames(dir)
	if err != nil {
		return err
	}
	r.Bases = slices.DeleteFunc(r.Bases, func(b BaseInfo) bool { return !slices.Contains(names, b.Version) })
	for _, n := range names {
		if checkVersion(n) != nil || r.Base(n) != nil {
			continue
		}
		b, ok, err := w.foundBase(ctx, dir, n, r)
		if err != nil {
			return err
		}
		if ok {
			r.Bases = append(r.Bases, b)
		}
	}
	slices.SortStableFunc(r.Bases, func(a, b BaseInfo) int { return a.Created.Compare(b.Created) })
	return nil
}

// foundBase describes bases/<version> by its meta file, or else by reading it.
func (w *Writer) foundBase(ctx context.Context, dir *os.File, version string, r *Record) (BaseInfo, bool, error) {
	root, err := w.p.openDir(dirBases, version)
	if err != nil {
		return BaseInfo{}, false, nil // a file: not ours
	}
	defer root.Close()
	in, err := btrfs.SubvolumeInfo(root)
	if is, _ := btrfs.IsSubvolume(root); err != nil || !is || !in.ReadOnly {
		return BaseInfo{}, false, nil
	}
	if m, err := readMeta(dir, version+suffixMeta); err == nil && m.Base != nil && m.Base.Version == version {
		if r.Pool == "" {
			r.Pool = m.Pool
		}
		b := *m.Base
		b.UUID = in.UUID.String()
		if _, err := tree.ParseSum(b.Digest); err == nil {
			return b, true, nil
		}
	}
	sum, stats, err := tree.Digest(ctx, root, tree.DigestOptions{})
	if err != nil {
		return BaseInfo{}, false, err
	}
	return BaseInfo{
		Version: version, Digest: sum.String(), Bytes: stats.Bytes, Files: stats.Files,
		UUID: in.UUID.String(), Received: in.ReceivedUUID.String(),
		Source: "found by doctor", Created: in.Created.UTC(), Pinned: true,
	}, true, nil
}

// findOverlays returns the latest incarnation of every overlay, by what its meta file
// says, and defines overlays that r does not know. It keeps numbers from being used again.
func (w *Writer) findOverlays(r *Record) ([]OverlayRef, error) {
	dir, err := w.p.openDir(dirOverlays)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := listNames(dir)
	if err != nil {
		return nil, err
	}
	known := len(r.Overlays) > 0
	last := map[string]int{}
	refs := map[string]OverlayRef{}
	for _, full := range names {
		name, n, ok := splitIncarnation(full)
		if !ok {
			continue
		}
		r.Next = max(r.Next, n+1)
		sub, err := w.p.openDir(dirOverlays, full)
		if err != nil {
			continue
		}
		m, err := readMeta(sub, nameMeta)
		sub.Close()
		if err != nil || m.Overlay == nil || m.Overlay.Name != name || n < last[name] {
			continue
		}
		if clean, err := cleanClaims(name, m.Overlay.Paths); err != nil || !slices.Equal(clean, m.Overlay.Paths) {
			continue
		}
		if r.Pool == "" {
			r.Pool = m.Pool
		}
		last[name] = n
		refs[name] = OverlayRef{Name: name, Subvolume: full, Paths: m.Overlay.Paths, FollowBase: m.Overlay.FollowBase}
	}
	var out []OverlayRef
	for _, ref := range refs {
		out = append(out, ref)
	}
	slices.SortFunc(out, func(a, b OverlayRef) int { return strings.Compare(a.Name, b.Name) })
	// Of two that claim one path only the later can be in use.
	slices.SortStableFunc(out, func(a, b OverlayRef) int { return last[b.Name] - last[a.Name] })
	claimed := map[string]bool{}
	out = slices.DeleteFunc(out, func(o OverlayRef) bool {
		if slices.ContainsFunc(o.Paths, func(p string) bool { return claimed[p] }) {
			return true
		}
		for _, p := range o.Paths {
			claimed[p] = true
		}
		return false
	})
	slices.SortFunc(out, func(a, b OverlayRef) int { return strings.Compare(a.Name, b.Name) })
	if !known {
		for _, o := range out {
			r.Overlays = append(r.Overlays, OverlayDef{Name: o.Name, Paths: o.Paths, FollowBase: o.FollowBase})
		}
	}
	return out, nil
}

// rebuildDeployment makes the one deployment of a record that had none left.
func (r *Record) rebuildDeployment(refs []OverlayRef) {
	best := r.Bases[0]
	for _, b := range r.Bases[1:] {
		if b.Counter > best.Counter || b.Counter == best.Counter && b.Created.After(best.Created) {
			best = b
		}
	}
	id := r.addDeployment(Deployment{Base: best.Version, Overlays: refs, Reason: "rebuilt by doctor"})
	r.makeActive(id, 0)
}
