package main

import (
	"context"
	"os"

	"github.com/btrovl/btrovl/overlay"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// prepare lets the view find out what another base will change, before it is
// frozen for the snapshots of overlays that follow the base. It does nothing for a
// view that does not show the active deployment: its overlays may be other ones.
func (s *server) prepare(ctx context.Context, base string) error {
	s.switching.Lock()
	defer s.switching.Unlock()
	s.unprepareLocked()
	r, err := s.pool.Record()
	if err != nil {
		return err
	}
	active := r.Active()
	if active == nil || active.ID != s.shown.deployment.ID {
		return nil
	}
	d := *active
	d.Base = base
	next, err := openLayers(s.pool, &d, s.locks)
	if err != nil {
		return err
	}
	if err := s.view.Prepare(ctx, next.config()); err != nil {
		next.release()
		return err
	}
	s.prepared = next
	return nil
}

// unprepare gives up what was prepared.
func (s *server) unprepare() {
	s.switching.Lock()
	defer s.switching.Unlock()
	s.unprepareLocked()
}

func (s *server) unprepareLocked() {
	if s.prepared != nil {
		s.view.Discard()
		s.prepared.release()
		s.prepared = nil
	}
}

// successor is next as a configuration that says which overlays are snapshots of
// those that are shown, taken while the view was frozen, which it still is.
func (s *server) successor(old, next *layers) overlay.Config {
	c := next.config()
	if s.prepared == nil || s.view.Stats().Frozen == 0 {
		return c
	}
	for i, ref := range next.deployment.Overlays {
		for j, was := range old.deployment.Overlays {
			if was.Name == ref.Name && was.Subvolume != ref.Subvolume {
				c.Uppers[i].Snapshot = snapshotOf(c.Uppers[i].Dir, old.hold.Overlays()[j])
			}
		}
	}
	return c
}

// snapshotOf says that a subvolume is a snapshot of another one, which has not been
// changed since.
func snapshotOf(snap, of *os.File) bool {
	a, err := btrfs.SubvolumeInfo(snap)
	if err != nil {
		return false
	}
	b, err := btrfs.SubvolumeInfo(of)
	return err == nil && !b.UUID.IsZero() && a.ParentUUID == b.UUID && b.CTransID <= a.OTransID
}
