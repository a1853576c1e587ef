package subvolumes

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// Finding is something that [Pool.Check] noticed.
type Finding struct {
	Severity string // "error", "warning" or "note"
	What     string // "state", "bases/42"
	Problem  string
	Remedy   string // what to do about it
}

// Check examines the pool without changing it. deep also re-reads every base and
// compares its digest, which reads as many bytes as the bases have.
func (p *Pool) Check(ctx context.Context, deep bool) ([]Finding, error) {
	c := &checker{p: p}
	r, err := p.Record()
	var np *NotPoolError
	if errors.As(err, &np) && np.Lost {
		c.add("error", nameState, np.Reason, "let doctor rebuild it from the subvolumes")
		return c.list, nil
	}
	if err != nil {
		return nil, err
	}
	for _, b := range r.Bases {
		if err := c.base(ctx, b, deep); err != nil {
			return nil, err
		}
	}
	c.overlays(r)
	c.roles(r)
	garbage, err := p.Garbage(ctx)
	if err != nil {
		return nil, err
	}
	for _, g := range garbage {
		if !g.Held {
			c.add("note", g.Kind+" "+g.Name, "it is garbage", "gc removes it")
		}
	}
	var st unix.Stat_t
	if unix.Fstatat(int(p.dir.Fd()), nameReserve, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		c.add("warning", nameReserve, "the space reserved for a full disk is used up",
			"free some space; the next command that changes the pool reserves it again")
	}
	return c.list, nil
}

type checker struct {
	p    *Pool
	list []Finding
}

func (c *checker) add(severity, what, problem, remedy string) {
	c.list = append(c.list, Finding{severity, what, problem, remedy})
}

// base checks one base.
func (c *checker) base(ctx context.Context, b BaseInfo, deep bool) error {
	what := dirBases + "/" + b.Version
	const remedy = "import the version again under this or another name, and remove deployments that need it"
	f, err := c.p.OpenBase(b.Version)
	if err != nil {
		c.add("error", what, "cannot be opened: "+err.Error(), remedy)
		return nil
	}
	defer f.Close()
	if is, err := btrfs.IsSubvolume(f); err != nil || !is {
		c.add("error", what, "is a plain directory instead of a subvolume", remedy)
		return nil
	}
	in, err := btrfs.SubvolumeInfo(f)
	if err != nil {
		return err
	}
	if !in.ReadOnly {
		c.add("error", what, "is writable: somebody changed its read-only flag", "compare it with its digest (a deep check) before it is trusted again")
	}
	if b.UUID != "" && in.UUID.String() != b.UUID {
		c.add("warning", what, fmt.Sprintf("is subvolume %s, the record knows it as %s", in.UUID, b.UUID), "compare it with its digest (a deep check)")
	}
	if !deep {
		return nil
	}
	sum, _, err := tree.Digest(ctx, f, tree.DigestOptions{})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		c.add("error", what, "cannot be read: "+err.Error(), remedy)
	} else if sum.String() != b.Digest {
		c.add("error", what, fmt.Sprintf("has digest %s, the record says %s", sum, b.Digest), remedy)
	}
	return nil
}

// overlays checks every incarnation that a deployment names, once.
func (c *checker) overlays(r *Record) {
	seen := map[string]bool{"": true}
	for _, d := range r.Deployments {
		for _, o := range d.Overlays {
			if seen[o.Subvolume] {
				continue
			}
			seen[o.Subvolume] = true
			what := dirOverlays + "/" + o.Subvolume
			f, err := c.p.OpenOverlay(o)
			if err != nil {
				c.add("error", what, fmt.Sprintf("%s needs it, and it cannot be opened: %v", r.describe(d.ID), err),
					"restore the overlay from a backup, or roll back to a deployment without it")
				continue
			}
			c.overlay(f, what)
			f.Close()
		}
	}
}

func (c *checker) overlay(f *os.File, what string) {
	if in, err := btrfs.SubvolumeInfo(f); err == nil && in.ReadOnly {
		c.add("error", what, "is read-only, so nothing can be written through a view", "make it writable: btrfs property set PATH ro false")
	}
	for _, sub := range []string{"upper", "work"} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), sub, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			c.add("error", what, "has no directory "+sub, "make it: mkdir PATH/"+sub)
		}
	}
	if _, err := readMeta(f, nameMeta); err != nil {
		c.add("warning", what, "its file meta cannot be read: "+err.Error(), "it is needed only if state is lost too")
	}
}

// roles tells what the roles mean for the next boot.
func (c *checker) roles(r *Record) {
	if t := r.Trial; t != nil && t.TriesLeft == 0 {
		c.add("note", fmt.Sprintf("deployment %d", t.Deployment), "is in its last try",
			fmt.Sprintf("mark it good, or the next boot takes deployment %d", r.Current))
	}
	if a := r.Active(); a != nil {
		for _, def := range r.Overlays {
			if a.Overlay(def.Name) == nil {
				c.add("note", "overlay "+def.Name, fmt.Sprintf("is defined, but %s has it not", r.describe(a.ID)),
					"roll forward, or remove and add the overlay")
			}
		}
	}
}
