package crashtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// A poolState is everything that a person can see of a pool, read from disk: the
// record with its roles, and the content of every subvolume that it names. Two power
// cuts apart it must be equal, or the one of another committed record.
type poolState struct {
	Roles       string
	Active      string
	Overlays    string            // definitions
	Bases       map[string]string // version: digest of the tree on disk
	Deployments map[int]string    // id: base and the digests of its overlays' trees
	Backups     []string          // overlay and digest, oldest first
	Keys        map[string]string
}

func (s *poolState) String() string { return fmt.Sprintf("%+v", *s) }

// Roles of what has no record.
const (
	noPool    = "no pool"    // init was not committed
	stateLost = "state lost" // doctor --rebuild was not
)

// readPool reads the state of a pool, every byte of it. What the record names and is
// not there, or differs from its digest, is an error.
func readPool(dir string) (_ *poolState, err error) {
	p, err := subvolumes.Open(dir)
	var no *subvolumes.NotPoolError
	switch {
	case errors.As(err, &no) && !no.Lost:
		return &poolState{Roles: noPool}, nil
	case no != nil:
		return &poolState{Roles: stateLost}, nil // right only where it had been lost before
	}
	if err != nil {
		return nil, err
	}
	defer p.Close()
	r, err := p.Record()
	if err != nil {
		return nil, err
	}
	s := &poolState{Bases: map[string]string{}, Deployments: map[int]string{}, Keys: map[string]string{}}
	s.Roles = fmt.Sprintf("format %d, current %d, previous %d, factory %d, counter %d, compatible %q",
		r.Format, r.Current, r.Previous, r.Factory, r.Counter, r.Compatible)
	if r.Trial != nil {
		s.Roles += fmt.Sprintf(", trial %d with %d of %d tries", r.Trial.Deployment, r.Trial.TriesLeft, r.Trial.Tries)
	}
	for _, f := range r.Fallbacks {
		s.Roles += fmt.Sprintf(", fell back from %d to %d", f.Deployment, f.To)
	}
	for _, o := range r.Overlays {
		s.Overlays += fmt.Sprintf("%s %v %v; ", o.Name, o.Paths, o.FollowBase)
	}
	for _, b := range r.Bases {
		f, err := p.OpenBase(b.Version)
		if err != nil {
			return nil, fmt.Errorf("base %s: %w", b.Version, err)
		}
		sum, _, err := tree.Digest(context.Background(), f, tree.DigestOptions{Jobs: 1})
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("base %s: %w", b.Version, err)
		}
		if sum.String() != b.Digest {
			return nil, fmt.Errorf("base %s has digest %v, the record says %s", b.Version, sum, b.Digest)
		}
		s.Bases[b.Version] = b.Digest
	}
	for _, d := range r.Deployments {
		if s.Bases[d.Base] == "" {
			return nil, fmt.Errorf("deployment %d names base %s, which is not there", d.ID, d.Base)
		}
		text := fmt.Sprintf("base %s, good %v, parent %d", d.Base, d.Good, d.Parent)
		for _, o := range d.Overlays {
			if o.Subvolume == "" {
				text += "; " + o.Name + " to be made"
				continue
			}
			f, err := p.OpenOverlay(o)
			if err != nil {
				return nil, fmt.Errorf("overlay %s of deployment %d: %w", o.Name, d.ID, err)
			}
			sum, err := digestBelow(f, "upper")
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("overlay %s of deployment %d: %w", o.Name, d.ID, err)
			}
			text += fmt.Sprintf("; %s %v %v %s", o.Name, o.Paths, o.FollowBase, sum)
		}
		s.Deployments[d.ID] = text
	}
	if a := r.Active(); a != nil {
		s.Active = s.Deployments[a.ID]
	}
	return s, errors.Join(readBackups(p, s), readKeys(dir, s))
}

func readBackups(p *subvolumes.Pool, s *poolState) error {
	list, err := p.Backups("")
	if err != nil {
		return err
	}
	for _, b := range list {
		f, err := p.OpenBackup(b.Overlay, b.Name)
		if err != nil {
			return fmt.Errorf("backup %s of %s: %w", b.Name, b.Overlay, err)
		}
		sum, err := digestBelow(f, "upper")
		f.Close()
		if err != nil {
			return fmt.Errorf("backup %s of %s: %w", b.Name, b.Overlay, err)
		}
		s.Backups = append(s.Backups, b.Overlay+" "+sum)
	}
	slices.Sort(s.Backups)
	return nil
}

func readKeys(dir string, s *poolState) error {
	for _, sub := range []string{"trusted.d", "revoked.d"} {
		files, _ := filepath.Glob(filepath.Join(dir, sub, "[^.]*")) // names of temporary files begin with a dot
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			s.Keys[sub+"/"+filepath.Base(f)] = string(b)
		}
	}
	return nil
}

// digest returns the digest of a tree.
// With BTROVL_CRASH_VERBOSE it is followed by the tree itself.
func digest(f *os.File) (string, error) {
	o := tree.DigestOptions{Jobs: 1}
	var list strings.Builder
	if os.Getenv("BTROVL_CRASH_VERBOSE") != "" {
		o.Entry = func(e *tree.Entry, content tree.Sum) error {
			fmt.Fprintf(&list, " %s(%o %d %d.%d %.6s)", e.Path, e.Mode, e.Size, e.Mtime.Sec, e.Mtime.Nsec, content)
			return nil
		}
	}
	sum, _, err := tree.Digest(context.Background(), f, o)
	return sum.String()[:12] + list.String(), err
}

func digestBelow(sub *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(sub.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("cannot open %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return digest(f)
}

// differ says in what a pool differs from what it may be, "" if it equals one of them.
//
// A base that was stored, whole, and not yet deployed is no difference: update stores it
// first; nor are keys that it takes then. (Where storing them is all that a command does,
// the exact comparison decides.)
func differ(have *poolState, may ...*poolState) (which int, diff string) {
	for i, m := range may {
		if have.String() == m.String() {
			return i, ""
		}
	}
	var b strings.Builder
	for i, m := range may {
		if have.String() == m.before(have, may).String() {
			return i, ""
		}
		fmt.Fprintf(&b, "\nfrom state %d:", i)
		h, w := have.lines(), m.lines()
		for _, l := range h {
			if !slices.Contains(w, l) {
				b.WriteString("\n\thave " + l)
			}
		}
		for _, l := range w {
			if !slices.Contains(h, l) {
				b.WriteString("\n\twant " + l)
			}
		}
	}
	return -1, "it differs" + b.String()
}

// before returns the state with those bases and keys of have that one of the states knows.
func (s *poolState) before(have *poolState, may []*poolState) *poolState {
	c := *s
	c.Bases, c.Keys = map[string]string{}, map[string]string{}
	maps.Copy(c.Bases, s.Bases)
	maps.Copy(c.Keys, s.Keys)
	for _, m := range may {
		addKnown(c.Bases, have.Bases, m.Bases)
		addKnown(c.Keys, have.Keys, m.Keys)
	}
	return &c
}

// addKnown adds to a map what two others agree on.
func addKnown(to, have, known map[string]string) {
	for k, v := range have {
		if w, ok := known[k]; ok && v == w {
			to[k] = v
		}
	}
}

func (s *poolState) lines() []string {
	out := []string{"roles: " + s.Roles, "active: " + s.Active, "overlays: " + s.Overlays}
	for v, d := range s.Bases {
		out = append(out, "base "+v+": "+d)
	}
	for id, d := range s.Deployments {
		out = append(out, fmt.Sprintf("deployment %d: %s", id, d))
	}
	for _, b := range s.Backups {
		out = append(out, "backup: "+b)
	}
	for k := range s.Keys {
		out = append(out, "key "+k)
	}
	slices.Sort(out)
	return out
}

// kept says whether garbage collection has kept what it must: the active deployment,
// the roles that have one, backups, keys.
func kept(before, after *poolState) error {
	if before.Active != after.Active {
		return fmt.Errorf("active deployment: %s\nbefore: %s", after.Active, before.Active)
	}
	if fmt.Sprint(before.Backups) != fmt.Sprint(after.Backups) {
		return fmt.Errorf("backups: %v\nbefore: %v", after.Backups, before.Backups)
	}
	if fmt.Sprint(before.Keys) != fmt.Sprint(after.Keys) || before.Overlays != after.Overlays {
		return fmt.Errorf("keys or overlays changed:\n%v\nbefore:\n%v", after, before)
	}
	for id, d := range after.Deployments {
		// The factory deployment may be reduced to what it takes to make it again.
		if !sameOrToBeMade(before.Deployments[id], d) {
			return fmt.Errorf("deployment %d: %s\nbefore: %s", id, d, before.Deployments[id])
		}
	}
	return nil
}

// sameOrToBeMade compares two deployments part by part.
func sameOrToBeMade(before, after string) bool {
	b, a := strings.Split(before, "; "), strings.Split(after, "; ")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if name, ok := strings.CutSuffix(a[i], " to be made"); a[i] != b[i] && !(ok && strings.HasPrefix(b[i], name+" ")) {
			return false
		}
	}
	return true
}
