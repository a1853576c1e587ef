package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/fusefs"
	"github.com/btrovl/btrovl/fusefs/control"
	"github.com/btrovl/btrovl/overlay"
	"github.com/btrovl/btrovl/subvolumes"
)

// runDir holds a directory for each pool, with a socket for each daemon in it.
const runDir = "/run/btrovl"

// socketDir is where the daemons of a pool answer.
func socketDir(poolID string) string { return filepath.Join(runDir, poolID) }

// server is the process that serves a view. It holds a pool, and of the record
// only which deployment it shows: at a switch it reads the record again.
//
// Lock order: switching, then mu. mu is never held while the view is asked for
// something, because the view calls released.
type server struct {
	pool  *subvolumes.Pool
	o     mountOptions
	log   *slog.Logger
	view  *fusefs.View
	dev   uint64 // st_dev of the view: how others find its mount points
	since time.Time
	locks *workLocks

	switching sync.Mutex // held during a switch, and its preparation
	prepared  *layers    // what the next switch was prepared for; guarded by switching

	mu      sync.Mutex // guards what follows
	shown   *layers    // what the view shows
	retired []*layers  // what it showed, and something still uses
}

// serve mounts a view of the active deployment and serves it until it is
// unmounted. ready is called when the mount answers. When ctx ends the view is
// unmounted, lazily if it is busy.
func serve(ctx context.Context, p *subvolumes.Pool, o mountOptions, log *slog.Logger, ready func() error) error {
	s := &server{pool: p, o: o, log: log, since: time.Now(),
		locks: &workLocks{readOnly: o.readOnly, held: map[string]*workLock{}}}
	r, err := p.Record()
	if err != nil {
		return err
	}
	active := r.Active()
	if active == nil {
		return noDeployment(p)
	}
	if s.shown, err = openLayers(p, active, s.locks); err != nil {
		return err
	}
	defer s.releaseAll()
	u, err := overlay.New(s.shown.config())
	if err != nil {
		return fmt.Errorf("cannot make a view of deployment %d: %w", active.ID, err)
	}
	s.view, err = fusefs.Mount(o.mountpoint, u, fusefs.Options{
		FSName: "btrovl", ReadOnly: o.readOnly, MountFlags: o.flags, MaxFDs: o.maxFDs,
		Logger: log, Debug: o.debug, Released: s.released,
	})
	if err != nil {
		u.Close()
		return coded(codeMountpoint, fmt.Errorf("cannot mount a view at %s: %w", o.mountpoint, err))
	}
	gone := make(chan struct{})
	go func() { s.view.Wait(); close(gone) }()
	if err := s.serveMounted(ctx, ready, gone); err != nil {
		s.view.Unmount(true)
		<-gone
		return err
	}
	return nil
}

// serveMounted opens the control socket, says that the view is ready, and waits
// for its end.
func (s *server) serveMounted(ctx context.Context, ready func() error, gone <-chan struct{}) error {
	var st unix.Stat_t
	if err := unix.Lstat(s.o.mountpoint, &st); err != nil {
		return fmt.Errorf("the view at %s does not answer: %w", s.o.mountpoint, err)
	}
	s.dev = st.Dev
	path := filepath.Join(socketDir(s.pool.ID()), fmt.Sprintf("%d.sock", os.Getpid()))
	ctl, err := control.Listen(path, s.handle)
	if err != nil {
		return err
	}
	defer os.Remove(filepath.Dir(path)) // fails while another daemon has its socket there
	defer ctl.Close()
	served := make(chan error, 1)
	go func() { served <- ctl.Serve() }()
	if err := ready(); err != nil {
		return err
	}
	daemon.SdNotify(false, fmt.Sprintf("%s\nMAINPID=%d\nSTATUS=view at %s", daemon.SdNotifyReady, os.Getpid(), s.o.mountpoint))
	s.log.Info("mounted", "mountpoint", s.o.mountpoint, "deployment", s.shown.deployment.ID, "base", s.shown.deployment.Base)
	defer daemon.SdNotify(false, daemon.SdNotifyStopping)

	watch, stopWatch := context.WithCancel(context.Background())
	defer stopWatch()
	go s.watchdog(watch)

	select {
	case <-gone:
	case <-ctx.Done():
		s.log.Info("asked to stop: unmounting")
		if err := s.view.Unmount(false); err != nil {
			s.log.Warn("busy: detached; what is open there stays until it is closed", "error", err)
			if err := s.view.Unmount(true); err != nil {
				return fmt.Errorf("cannot unmount %s: %w", s.o.mountpoint, err)
			}
		}
		<-gone
	case err := <-served:
		return errors.Join(errors.New("the control socket ended"), err)
	}
	s.log.Info("unmounted")
	return nil
}

// watchdog tells systemd that the view answers, if it wants to know
// (WatchdogSec=). A request through the kernel is made, so that a stuck view
// keeps silent.
func (s *server) watchdog(ctx context.Context) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			var st unix.Statfs_t
			if unix.Statfs(s.o.mountpoint, &st) == nil {
				daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		}
	}
}

func noDeployment(p *subvolumes.Pool) error {
	return coded(codeUnknown, fmt.Errorf("pool %s has no base yet, so there is nothing to mount", p.Dir()),
		"import one: btrovl base import VERSION TREE")
}
