package delta

import (
	"encoding/hex"

	"github.com/btrovl/btrovl/delta/bundle"
)

// NewPlan chooses the base among those present (their digests decide; the first of
// the bundle's list that is here) and says what is needed. Error: *WrongBaseError.
func NewPlan(m *bundle.Manifest, have []bundle.BaseID) (*Plan, error) {
	p := &Plan{Memory: m.Apply.Memory, Written: m.Apply.Written, Files: m.Apply.Files}
	// Metadata: an inode, its names and its extent items take about 1 KiB of leaves, twice with DUP;
	// rewritten leaves are kept until the transaction commits.
	p.Space = m.Apply.Written + 4<<10*m.Apply.Files + 16<<20
	if len(m.From) == 0 {
		return p, nil
	}
	for _, want := range m.From {
		for _, h := range have {
			if h.Digest == want.Digest {
				h := h
				p.From = &h
				return p, nil
			}
		}
	}
	return nil, &WrongBaseError{Want: m.From, Have: have}
}

// CheckDevice refuses bundles for other devices and older ones.
// Errors: *CompatibleError, *DowngradeError.
func CheckDevice(m *bundle.Manifest, compatible string, counter uint64) error {
	if m.Compatible != "" && m.Compatible != compatible {
		return &CompatibleError{Want: m.Compatible, Have: compatible}
	}
	if m.Counter < counter {
		return &DowngradeError{Bundle: m.Counter, Device: counter}
	}
	return nil
}

func parseDigest(s string) ([]byte, error) { return hex.DecodeString(s) }
