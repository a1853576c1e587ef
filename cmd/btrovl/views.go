package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/fusefs/control"
	"github.com/btrovl/btrovl/subvolumes"
)

// answerTime bounds what a daemon may take for a question that needs no work.
const answerTime = 10 * time.Second

// view is a connection to the daemon of a mounted view.
type view struct {
	daemonStatus
	places []mountEntry // where it is mounted, as this process sees it
	client *control.Client
	err    error // why it does not answer
}

// views connects to every daemon that serves a view of the pool. One that does
// not answer is listed with its error.
func views(ctx context.Context, p *subvolumes.Pool) ([]*view, error) {
	sockets, err := control.List(socketDir(p.ID()))
	if err != nil {
		return nil, err
	}
	list, err := mounts()
	if err != nil {
		return nil, err
	}
	var out []*view
	for _, path := range sockets {
		c, err := control.Dial(path)
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		v := &view{client: c}
		if peer, err := c.Peer(); err == nil {
			v.PID = peer.PID
		}
		v.err = v.call(ctx, answerTime, "status", nil, &v.daemonStatus)
		if errors.Is(v.err, unix.EPIPE) || errors.Is(v.err, unix.ECONNRESET) {
			c.Close()
			continue
		}
		for _, m := range list {
			if m.dev == v.Dev && m.fsType == fsType {
				v.places = append(v.places, m)
			}
		}
		out = append(out, v)
	}
	return out, nil
}

func closeViews(list []*view) {
	for _, v := range list {
		v.client.Close()
	}
}

func (v *view) call(ctx context.Context, limit time.Duration, op string, args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return v.client.Call(ctx, op, args, result)
}

// where names the view's mount points for people.
func (v *view) where() string {
	if len(v.places) == 0 {
		if v.Mountpoint == "" {
			return fmt.Sprintf("process %d", v.PID)
		}
		return v.Mountpoint + " (in another mount namespace)"
	}
	var s []string
	for _, m := range v.places {
		s = append(s, m.path)
	}
	return strings.Join(s, ", ")
}

// isRoot tells whether the view is this process's root file system.
func (v *view) isRoot() bool {
	for _, m := range v.places {
		if m.path == "/" {
			return true
		}
	}
	return false
}

// viewReport is a mounted view in JSON, one for each place where it is mounted.
type viewReport struct {
	Mountpoint string    `json:"mountpoint"`
	PID        int       `json:"pid"`
	Deployment int       `json:"deployment"`
	Base       string    `json:"base"`
	Overlays   []string  `json:"overlays"`
	ReadOnly   bool      `json:"read_only"`
	Since      time.Time `json:"since"`
	Requests   uint64    `json:"requests"`
	Frozen     bool      `json:"frozen"`
	Error      string    `json:"error,omitempty"`
}

func (v *view) reports() []viewReport {
	r := viewReport{Mountpoint: v.Mountpoint, PID: v.PID, Deployment: v.Deployment, Base: v.Base, Overlays: v.Overlays,
		ReadOnly: v.ReadOnly, Since: v.Since, Requests: v.Requests, Frozen: v.FrozenNS > 0}
	if v.err != nil {
		r.Error = v.err.Error()
	}
	if len(v.places) == 0 {
		return []viewReport{r}
	}
	var out []viewReport
	for _, m := range v.places {
		r.Mountpoint, r.ReadOnly = m.path, v.ReadOnly || m.readOnly
		out = append(out, r)
	}
	return out
}

func viewReports(list []*view) []viewReport {
	out := []viewReport{}
	for _, v := range list {
		out = append(out, v.reports()...)
	}
	return out
}
