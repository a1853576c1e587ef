package delta

import (
	"fmt"
	"strings"

	"github.com/btrovl/btrovl/delta/bundle"
)

// WrongBaseError says that a bundle starts from a base that is not here.
type WrongBaseError struct {
	Want      []bundle.BaseID
	Have      []bundle.BaseID
	FirstDiff string // first path that differs from the wanted base, where known
}

func (e *WrongBaseError) Error() string {
	s := "bundle starts from " + bases(e.Want) + ", here is " + bases(e.Have)
	if e.FirstDiff != "" {
		s += fmt.Sprintf("; first difference: %s", e.FirstDiff)
	}
	return s
}

func bases(ids []bundle.BaseID) string {
	if len(ids) == 0 {
		return "no base"
	}
	var s []string
	for _, id := range ids {
		if id.Digest == "" {
			s = append(s, id.Version)
		} else {
			s = append(s, fmt.Sprintf("%s (%.12s)", id.Version, id.Digest))
		}
	}
	return "base " + strings.Join(s, " or ")
}

// SourceError says that a file of the base is not what it was when the bundle
// was made: bit rot, or somebody wrote to a base. Nothing made from it is kept.
type SourceError struct {
	Path       string
	Want, Have string // checksums, or what else differs
}

func (e *SourceError) Error() string {
	return fmt.Sprintf("%s in the base is damaged or was changed: expected %s, found %s", e.Path, e.Want, e.Have)
}

// CompatibleError says that a bundle is for another kind of device.
type CompatibleError struct{ Want, Have string }

func (e *CompatibleError) Error() string {
	return fmt.Sprintf("bundle is for devices %q, this one is %q", e.Want, e.Have)
}

// DowngradeError says that a bundle is older than what the device has seen.
type DowngradeError struct{ Bundle, Device uint64 }

func (e *DowngradeError) Error() string {
	return fmt.Sprintf("bundle has counter %d, this device has seen %d: going back needs permission", e.Bundle, e.Device)
}
