package subvolumes

import (
	"encoding/json"
	"fmt"
	"os"
)

// meta is what stands beside a base or in an overlay's subvolume, so that a lost
// state can be rebuilt. Nothing else reads it.
type meta struct {
	Pool    string      `json:"pool"`
	Base    *BaseInfo   `json:"base"`    // in bases/<version>.meta
	Overlay *OverlayDef `json:"overlay"` // in overlays/<name>.<n>/meta

	extra extra
}

const (
	nameMeta = "meta"      // in an overlay's subvolume
	tempMeta = ".meta.new" // no version begins with a dot
	maxMeta  = 1 << 20
)

// writeMeta replaces dir/name durably.
func (w *Writer) writeMeta(dir *os.File, name, temp string, m meta) error {
	m.Pool = w.p.id
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return w.writeFile(dir, name, temp, append(data, '\n'))
}

func readMeta(dir *os.File, name string) (meta, error) {
	var m meta
	data, err := readAt(dir, name, maxMeta)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	return m, err
}
