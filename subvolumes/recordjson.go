package subvolumes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// maxState bounds what is read of a state file.
const maxState = 16 << 20

// encodeRecord returns the text of the state file.
func encodeRecord(r *Record) ([]byte, error) {
	raw, err := marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// errNewer is returned for a format that this version does not know.
type errNewer int

func (e errNewer) Error() string { return fmt.Sprintf("format %d is newer than %d", int(e), Format) }

// decodeRecord reads the text of a state file. The format is looked at first, as
// anything else may have another shape in a newer one.
func decodeRecord(data []byte) (*Record, error) {
	if len(data) > maxState {
		return nil, fmt.Errorf("it has more than %d bytes", maxState)
	}
	head := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, err
	}
	var format int
	if err := json.Unmarshal(head["format"], &format); err != nil {
		return nil, errors.New(`it has no "format"`)
	}
	if format > Format {
		return nil, errNewer(format)
	}
	r := new(Record)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if err := r.validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// Every object of the record keeps the members that it does not know. The methods
// below say so once per type; decodeObject and encodeObject do it.

// UnmarshalJSON keeps unknown members.
func (v *Record) UnmarshalJSON(b []byte) (err error) { v.extra, err = decodeObject(b, v); return err }

// MarshalJSON writes them again.
func (v Record) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *Trial) UnmarshalJSON(b []byte) (err error) { v.extra, err = decodeObject(b, v); return err }

// MarshalJSON writes them again.
func (v Trial) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *OverlayDef) UnmarshalJSON(b []byte) (err error) {
	v.extra, err = decodeObject(b, v)
	return err
}

// MarshalJSON writes them again.
func (v OverlayDef) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *BaseInfo) UnmarshalJSON(b []byte) (err error) { v.extra, err = decodeObject(b, v); return err }

// MarshalJSON writes them again.
func (v BaseInfo) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *Deployment) UnmarshalJSON(b []byte) (err error) {
	v.extra, err = decodeObject(b, v)
	return err
}

// MarshalJSON writes them again.
func (v Deployment) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *OverlayRef) UnmarshalJSON(b []byte) (err error) {
	v.extra, err = decodeObject(b, v)
	return err
}

// MarshalJSON writes them again.
func (v OverlayRef) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *Fallback) UnmarshalJSON(b []byte) (err error) { v.extra, err = decodeObject(b, v); return err }

// MarshalJSON writes them again.
func (v Fallback) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }

// UnmarshalJSON keeps unknown members.
func (v *meta) UnmarshalJSON(b []byte) (err error) { v.extra, err = decodeObject(b, v); return err }

// MarshalJSON writes them again.
func (v meta) MarshalJSON() ([]byte, error) { return encodeObject(v, v.extra) }
