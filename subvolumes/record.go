package subvolumes

import (
	"slices"
	"time"
)

// Format is the newest pool format that this package knows and the one it writes.
const Format = 1

// Record is the state of a pool: what exists, and which deployment has which role.
// It is a value: changing it changes nothing until [Writer.Commit]. Keys that this
// version does not know stay, at every level.
type Record struct {
	Format      int          `json:"format"`
	Pool        string       `json:"pool"` // UUID
	Next        int          `json:"next"` // id of the next deployment or overlay incarnation
	Counter     uint64       `json:"counter"`
	Compatible  string       `json:"compatible"`
	Current     int          `json:"current"`  // last good deployment, 0 if there is none yet
	Previous    int          `json:"previous"` // what was current before, 0 if nothing was
	Factory     int          `json:"factory"`  // what reset --to-factory goes back to
	Trial       *Trial       `json:"trial"`
	Bases       []BaseInfo   `json:"bases"` // in the order of their arrival
	Overlays    []OverlayDef `json:"overlays"`
	Deployments []Deployment `json:"deployments"` // in the order of their ids
	Fallbacks   []Fallback   `json:"fallbacks"`   // the last 16

	extra extra
}

// Trial says that a deployment is to prove itself. It is active until it is marked
// good, rolled back, or booted once more than it has tries.
type Trial struct {
	Deployment int `json:"deployment"`
	TriesLeft  int `json:"tries_left"` // boots that may still try it
	Tries      int `json:"tries"`      // what it began with

	extra extra
}

// OverlayDef defines an overlay: what a new deployment gives it.
type OverlayDef struct {
	Name       string   `json:"name"`
	Paths      []string `json:"paths"` // absolute and clean, sorted
	FollowBase bool     `json:"follow_base"`

	extra extra
}

// BaseInfo describes a base.
type BaseInfo struct {
	Version    string    `json:"version"`
	Digest     string    `json:"digest"` // of the tree, 64 hexadecimal digits
	Bytes      int64     `json:"bytes"`  // content of its files
	Files      int64     `json:"files"`  // regular files
	UUID       string    `json:"uuid"`   // of the subvolume
	Received   string    `json:"received_uuid"`
	Counter    uint64    `json:"counter"`
	Compatible string    `json:"compatible"`
	Source     string    `json:"source"` // "import tree1", "bundle 1-2.btrovl"
	Created    time.Time `json:"created"`
	// Pinned keeps a base that no deployment has ever named from garbage collection.
	Pinned bool `json:"pinned"`

	extra extra
}

// Deployment is an immutable record: one base and, for each overlay, one subvolume.
// Only Good changes.
type Deployment struct {
	ID       int          `json:"id"`
	Base     string       `json:"base"`
	Overlays []OverlayRef `json:"overlays"`
	Created  time.Time    `json:"created"`
	Reason   string       `json:"reason"` // "update 1-2.btrovl"
	Parent   int          `json:"parent"` // what was active when it was made
	Good     bool         `json:"good"`
	// Downgrade says that it was allowed although its base's counter was too low.
	Downgrade bool `json:"downgrade"`

	extra extra
}

// OverlayRef is an overlay in a deployment.
type OverlayRef struct {
	Name string `json:"name"`
	// Subvolume is the incarnation, a name in overlays/ ("data.3"). It is "" after
	// garbage collection of a factory deployment's wiped overlays: a fresh one is
	// made when the deployment is used again.
	Subvolume  string   `json:"subvolume"`
	Paths      []string `json:"paths"`
	FollowBase bool     `json:"follow_base"`

	extra extra
}

// Fallback records that a trial ended without being marked good.
type Fallback struct {
	Deployment int       `json:"deployment"` // the trial
	To         int       `json:"to"`         // what took over
	Reason     string    `json:"reason"`
	Time       time.Time `json:"time"`

	extra extra
}

// Active returns the deployment that a mount shows: the trial if there is one (its
// last try included: with no tries left it stays active until the next boot), else
// the current one, nil if there is none yet.
func (r *Record) Active() *Deployment {
	if r.Trial != nil {
		return r.Deployment(r.Trial.Deployment)
	}
	return r.Deployment(r.Current)
}

// Deployment returns the deployment with that id, nil if there is none.
func (r *Record) Deployment(id int) *Deployment {
	for i := range r.Deployments {
		if r.Deployments[i].ID == id {
			return &r.Deployments[i]
		}
	}
	return nil
}

// Base returns the base of that version, nil if there is none.
func (r *Record) Base(version string) *BaseInfo {
	for i := range r.Bases {
		if r.Bases[i].Version == version {
			return &r.Bases[i]
		}
	}
	return nil
}

// Overlay returns the definition of an overlay, nil if there is none.
func (r *Record) Overlay(name string) *OverlayDef {
	for i := range r.Overlays {
		if r.Overlays[i].Name == name {
			return &r.Overlays[i]
		}
	}
	return nil
}

// Overlay returns a deployment's overlay, nil if it has none of that name.
func (d *Deployment) Overlay(name string) *OverlayRef {
	for i := range d.Overlays {
		if d.Overlays[i].Name == name {
			return &d.Overlays[i]
		}
	}
	return nil
}

// Roles names the roles of a deployment: "current", "trial", "previous", "factory".
func (r *Record) Roles(id int) []string {
	var roles []string
	if id == 0 {
		return nil
	}
	if id == r.Current {
		roles = append(roles, "current")
	}
	if r.Trial != nil && id == r.Trial.Deployment {
		roles = append(roles, "trial")
	}
	if id == r.Previous {
		roles = append(roles, "previous")
	}
	if id == r.Factory {
		roles = append(roles, "factory")
	}
	return slices.Clip(roles)
}
