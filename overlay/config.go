package overlay

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// MaxUppers bounds the overlays of one union: the inode number that the view
// shows has seven bits for the layer (see viewIno).
const MaxUppers = 126

// Config names the layers of a union. New and Prepare duplicate the
// descriptors: the caller keeps and closes its own.
type Config struct {
	Base   *os.File // root of the read-only base
	Uppers []Upper  // in the order of the record; the order gives each its inode numbers
}

// Upper is one writable overlay.
type Upper struct {
	Name     string
	Dir      *os.File // the overlay's subvolume, with upper/ and work/
	Paths    []string // claims, absolute or relative to the view's root; "/" claims all
	ReadOnly bool     // claims are visible but refuse changes (EROFS)

	// Snapshot says that Dir is a snapshot of what the union shows for this
	// overlay, taken while it was frozen, which it still is. Then a plan that was
	// prepared before fits: see [Plan.Follow].
	Snapshot bool
}

// ConfigError says what is wrong with a Config.
type ConfigError struct {
	Upper  string // name of the overlay, "" for the whole
	Reason string
}

func (e *ConfigError) Error() string {
	if e.Upper == "" {
		return "cannot make a view: " + e.Reason
	}
	return fmt.Sprintf("cannot make a view: overlay %q: %s", e.Upper, e.Reason)
}

// cleanClaim returns the claim as a path relative to the view's root, "" for
// the root itself.
func cleanClaim(p string) (string, error) {
	if p == "" {
		return "", fmt.Errorf("an empty path claims nothing (use \"/\" for the whole view)")
	}
	if strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("the path %q has a NUL byte", p)
	}
	if slices.Contains(strings.Split(p, "/"), "..") {
		return "", fmt.Errorf("the path %q has a \"..\" component", p)
	}
	return strings.TrimPrefix(path.Clean("/"+p), "/"), nil
}
