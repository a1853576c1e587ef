package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/btrovl/btrovl/fusefs"
	"github.com/btrovl/btrovl/fusefs/control"
)

// daemonStatus is the answer to "status".
type daemonStatus struct {
	PID        int       `json:"pid"`
	Mountpoint string    `json:"mountpoint"` // where it was mounted; the caller knows where it is now, by Dev
	Dev        uint64    `json:"dev"`
	Deployment int       `json:"deployment"`
	Base       string    `json:"base"`
	Overlays   []string  `json:"overlays"` // incarnations
	ReadOnly   bool      `json:"read_only"`
	Since      time.Time `json:"since"`
	Requests   uint64    `json:"requests"`
	FrozenNS   int64     `json:"frozen_ns"`
	Retired    []string  `json:"retired"` // layers of earlier deployments that are still in use
}

// switchAnswer is the answer to "switch".
type switchAnswer struct {
	Deployment int           `json:"deployment"`
	Base       string        `json:"base"`
	Changed    int           `json:"changed"`
	Paused     time.Duration `json:"paused_ns"`
	Frozen     time.Duration `json:"frozen_ns"`
	Total      time.Duration `json:"total_ns"`
	Prepared   bool          `json:"prepared"`
}

// handle does one request of a command.
func (s *server) handle(ctx context.Context, r *control.Request) (any, error) {
	switch r.Op {
	case "status":
		return s.status(), nil
	case "ops":
		return s.view.Stats(), nil
	case "switch":
		return s.follow(ctx)
	case "prepare":
		var args struct{ Base string }
		if err := r.Args(&args); err != nil {
			return nil, err
		}
		r.OnClose("prepared", s.unprepare)
		return nil, s.prepare(ctx, args.Base)
	case "freeze":
		if err := s.view.Freeze(ctx); err != nil {
			return nil, err
		}
		r.OnClose("thaw", s.view.Thaw) // a command that dies thaws
		return nil, nil
	case "thaw":
		r.OnClose("thaw", nil)
		s.view.Thaw()
		return nil, nil
	case "unmount":
		var args struct{ Lazy bool }
		if err := r.Args(&args); err != nil {
			return nil, err
		}
		return nil, s.view.Unmount(args.Lazy)
	case "profile":
		var args struct{ Name string }
		if err := r.Args(&args); err != nil {
			return nil, err
		}
		return profile(ctx, args.Name)
	}
	return nil, control.UnknownOp(r.Op)
}

func (s *server) status() daemonStatus {
	stats := s.view.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.shown.deployment
	st := daemonStatus{
		PID: os.Getpid(), Mountpoint: s.o.mountpoint, Dev: s.dev, Deployment: d.ID, Base: d.Base,
		Overlays: []string{}, ReadOnly: s.o.readOnly, Since: s.since,
		Requests: requests(stats), FrozenNS: int64(stats.Frozen), Retired: stats.Retired,
	}
	for _, ref := range d.Overlays {
		st.Overlays = append(st.Overlays, ref.Subvolume)
	}
	return st
}

func requests(stats fusefs.Stats) (n uint64) {
	for _, op := range stats.Ops {
		n += op.Count
	}
	return n
}

// follow switches the view to the deployment that the record on disk says is the
// active one.
func (s *server) follow(ctx context.Context) (*switchAnswer, error) {
	s.switching.Lock()
	defer s.switching.Unlock()
	r, err := s.pool.Record()
	if err != nil {
		return nil, err
	}
	active := r.Active()
	if active == nil {
		return nil, noDeployment(s.pool)
	}
	next, err := openLayers(s.pool, active, s.locks)
	if err != nil {
		return nil, err
	}
	old := s.shown // written below only, while switching is held
	s.retire(old, next)
	began := time.Now()
	report, err := s.view.Switch(ctx, s.successor(old, next))
	s.unprepareLocked()
	if err != nil {
		s.unretire(old)
		next.release()
		return nil, fmt.Errorf("cannot switch %s to deployment %d: %w", s.o.mountpoint, active.ID, err)
	}
	s.mu.Lock()
	s.shown = next
	s.mu.Unlock()
	s.released("") // what waits for nothing
	s.log.Info("switched", "deployment", active.ID, "base", active.Base, "changed", report.Changed,
		"prepared", report.Prepared, "paused", report.Paused, "frozen", report.Frozen, "total", time.Since(began))
	return &switchAnswer{active.ID, active.Base, report.Changed, report.Paused, report.Frozen, report.Total, report.Prepared}, nil
}
