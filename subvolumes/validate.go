package subvolumes

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// Suffixes in bases/ that no version may have.
const (
	suffixStage  = ".partial"
	suffixVerify = ".partial-ro"
	suffixMeta   = ".meta"
)

// checkVersion says whether a version can name a base.
func checkVersion(v string) error {
	bad := func(reason string) error { return &NameError{"a base", v, reason} }
	if err := checkName(v, "._+~:@-"); err != "" {
		return bad(err)
	}
	for _, s := range []string{suffixStage, suffixVerify, suffixMeta} {
		if strings.HasSuffix(v, s) {
			return bad(s + " at the end has another meaning in a pool")
		}
	}
	return nil
}

// checkOverlayName says whether a name can name an overlay.
func checkOverlayName(n string) error {
	if err := checkName(n, "_-"); err != "" {
		return &NameError{"an overlay", n, err}
	}
	return nil
}

func checkName(n, more string) string {
	if n == "" {
		return "it is empty"
	}
	if len(n) > 128 {
		return "it has more than 128 bytes"
	}
	for i, c := range []byte(n) {
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || strings.IndexByte(more, c) < 0) {
			return fmt.Sprintf("only letters, digits and, but for the first, %q may occur", more)
		}
	}
	return ""
}

// cleanClaims returns the paths that an overlay claims in the form of the record.
func cleanClaims(overlay string, paths []string) ([]string, error) {
	if len(paths) == 0 {
		return nil, &ClaimError{overlay, "nothing", "an overlay needs at least one path"}
	}
	var out []string
	for _, p := range paths {
		switch {
		case !strings.HasPrefix(p, "/"):
			return nil, &ClaimError{overlay, p, "the path must begin with /"}
		case strings.IndexByte(p, 0) >= 0 || len(p) >= 4096:
			return nil, &ClaimError{overlay, fmt.Sprintf("%.40q", p), "it is no path"}
		case slices.Contains(strings.Split(p, "/"), ".."):
			return nil, &ClaimError{overlay, p, `".." cannot be in it`}
		}
		out = append(out, path.Clean(p))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// incarnation composes and splitIncarnation takes apart a name in overlays/.
func incarnation(name string, n int) string { return name + "." + strconv.Itoa(n) }

func splitIncarnation(s string) (name string, n int, ok bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(s[i+1:])
	if err != nil || n <= 0 || incarnation(s[:i], n) != s || checkOverlayName(s[:i]) != nil {
		return "", 0, false
	}
	return s[:i], n, true
}

// validate checks what every reader of a record relies on.
func (r *Record) validate() error {
	if r.Format != Format {
		return fmt.Errorf("format %d is none", r.Format)
	}
	if _, err := btrfs.ParseUUID(r.Pool); err != nil || r.Pool == "" {
		return fmt.Errorf("pool id %q is no UUID", r.Pool)
	}
	if r.Next < 1 {
		return fmt.Errorf("next id %d is less than 1", r.Next)
	}
	if err := r.validateBases(); err != nil {
		return err
	}
	if err := validateClaims(r.Overlays, func(d OverlayDef) (string, []string) { return d.Name, d.Paths }); err != nil {
		return fmt.Errorf("overlays: %w", err)
	}
	if err := r.validateDeployments(); err != nil {
		return err
	}
	for role, id := range map[string]int{"current": r.Current, "previous": r.Previous, "factory": r.Factory} {
		if id != 0 && r.Deployment(id) == nil {
			return fmt.Errorf("%s deployment %d is not in the record", role, id)
		}
	}
	if len(r.Deployments) > 0 && r.Current == 0 {
		return fmt.Errorf("no deployment is current")
	}
	if t := r.Trial; t != nil {
		if r.Deployment(t.Deployment) == nil {
			return fmt.Errorf("trial deployment %d is not in the record", t.Deployment)
		}
		if t.Deployment == r.Current {
			return fmt.Errorf("deployment %d is current and on trial", t.Deployment)
		}
		if t.Tries < 1 || t.TriesLeft < 0 || t.TriesLeft > t.Tries {
			return fmt.Errorf("the trial has %d of %d tries left", t.TriesLeft, t.Tries)
		}
	}
	return nil
}

func (r *Record) validateBases() error {
	seen := map[string]bool{}
	for _, b := range r.Bases {
		if err := checkVersion(b.Version); err != nil {
			return err
		}
		if seen[b.Version] {
			return fmt.Errorf("base %q occurs twice", b.Version)
		}
		seen[b.Version] = true
		if _, err := tree.ParseSum(b.Digest); err != nil {
			return fmt.Errorf("base %q: %w", b.Version, err)
		}
		if b.Bytes < 0 || b.Files < 0 {
			return fmt.Errorf("base %q has %d bytes in %d files", b.Version, b.Bytes, b.Files)
		}
	}
	return nil
}

func (r *Record) validateDeployments() error {
	last := 0
	owner := map[string]string{} // incarnation → overlay
	for _, d := range r.Deployments {
		if d.ID <= last {
			return fmt.Errorf("deployment %d stands after deployment %d", d.ID, last)
		}
		last = d.ID
		if d.ID >= r.Next {
			return fmt.Errorf("deployment %d is not below the next id %d", d.ID, r.Next)
		}
		if r.Base(d.Base) == nil {
			return fmt.Errorf("deployment %d needs base %q, which is not in the record", d.ID, d.Base)
		}
		if err := validateClaims(d.Overlays, func(o OverlayRef) (string, []string) { return o.Name, o.Paths }); err != nil {
			return fmt.Errorf("deployment %d: %w", d.ID, err)
		}
		for _, o := range d.Overlays {
			if o.Subvolume == "" {
				continue
			}
			if _, _, ok := splitIncarnation(o.Subvolume); !ok {
				return fmt.Errorf("deployment %d: %q is no name of an overlay's subvolume", d.ID, o.Subvolume)
			}
			if other, ok := owner[o.Subvolume]; ok && other != o.Name {
				return fmt.Errorf("deployment %d: overlays %q and %q share %q", d.ID, other, o.Name, o.Subvolume)
			}
			owner[o.Subvolume] = o.Name
		}
	}
	return nil
}

// validateClaims checks names and paths of overlays that stand side by side.
func validateClaims[T any](list []T, of func(T) (string, []string)) error {
	names, claims := map[string]bool{}, map[string]string{}
	for _, o := range list {
		name, paths := of(o)
		if err := checkOverlayName(name); err != nil {
			return err
		}
		if names[name] {
			return fmt.Errorf("overlay %q occurs twice", name)
		}
		names[name] = true
		clean, err := cleanClaims(name, paths)
		if err != nil {
			return err
		}
		if !slices.Equal(clean, paths) {
			return &ClaimError{name, strings.Join(paths, ", "), "the paths are not clean and sorted"}
		}
		for _, p := range paths {
			if other, ok := claims[p]; ok {
				return &ClaimError{name, p, fmt.Sprintf("overlay %q claims it already", other)}
			}
			claims[p] = name
		}
	}
	return nil
}
