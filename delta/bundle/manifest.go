package bundle

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// Kind is what every manifest says about itself. It keeps a signature by the
// same key over some other JSON file from passing for a bundle's.
const Kind = "btrovl bundle"

// Format is the newest manifest and payload format that this package writes.
const Format = 1

// BaseID names a state of the system: the version is for people, the digest (of
// subvolumes/tree, lower-case hex) decides.
type BaseID struct {
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// Manifest is the signed part of a bundle. All sizes are bytes.
type Manifest struct {
	Kind   string `json:"kind"`
	Format int    `json:"format"`

	From []BaseID `json:"from,omitempty"` // any one of these suffices; none: a full bundle
	To   BaseID   `json:"to"`

	Compatible string `json:"compatible,omitempty"` // must equal the device's; "" fits every device
	Counter    uint64 `json:"counter"`              // must not fall below the device's
	CreatedBy  string `json:"createdBy,omitempty"`

	Payload Payload `json:"payload"`
	Apply   Needs   `json:"apply"`

	AddKeys    []string `json:"addKeys,omitempty"`    // minisign public keys, the base64 line, trusted from now on
	RevokeKeys []string `json:"revokeKeys,omitempty"` // key ids, never trusted again
}

// Payload says where the payload ends and anchors the hash chain. Create fills it.
type Payload struct {
	Size  int64  `json:"size"`  // of the data, without links
	Chunk int64  `json:"chunk"` // data bytes of every chunk but the last
	First string `json:"first"` // SHA-256 of the first record, hex
}

// Needs says what applying costs, so that a device can refuse before it starts.
type Needs struct {
	Memory  int64 `json:"memory"`            // at most this much is resident
	Written int64 `json:"written"`           // new blocks on the disk: what must be free, without metadata
	Files   int64 `json:"files"`             // entries that are made or changed
	NewData int64 `json:"newData,omitempty"` // content of files that are made or changed
}

// Records returns how many chunks the payload has.
func (p *Payload) Records() int64 {
	if p.Chunk <= 0 {
		return 0
	}
	return (p.Size + p.Chunk - 1) / p.Chunk
}

// parseManifest reads a manifest whose signature was already checked. It still
// trusts no number: a maker may be wrong, and an old key may be in other hands.
func parseManifest(raw []byte) (*Manifest, error) {
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&m); err != nil {
		return nil, &DamageError{Offset: int64(headerSize), Reason: "the manifest is not valid JSON: " + err.Error()}
	}
	if d.More() {
		return nil, &DamageError{Offset: int64(headerSize), Reason: "something follows the manifest's JSON"}
	}
	if m.Kind != Kind {
		return nil, &DamageError{Offset: int64(headerSize), Reason: fmt.Sprintf("what was signed is a %q, not a %q", m.Kind, Kind)}
	}
	if m.Format != Format {
		return nil, &FormatError{Have: m.Format, Know: Format}
	}
	if err := m.check(); err != nil {
		return nil, &DamageError{Offset: int64(headerSize), Reason: "the manifest is wrong: " + err.Error()}
	}
	return &m, nil
}

const (
	maxFrom   = 64
	maxKeys   = 64
	maxText   = 256
	maxAmount = 1 << 50 // 1 PiB: keeps every sum of two sizes far from overflow
)

func (m *Manifest) check() error {
	if len(m.From) > maxFrom || len(m.AddKeys) > maxKeys || len(m.RevokeKeys) > maxKeys {
		return errors.New("too many bases or keys")
	}
	for _, id := range append([]BaseID{m.To}, m.From...) {
		if err := checkText("version", id.Version); err != nil {
			return err
		}
		if id.Version == "" {
			return errors.New("a version is empty")
		}
		if b, err := hex.DecodeString(id.Digest); err != nil || len(b) != 32 {
			return fmt.Errorf("digest %.80q of version %q is not a SHA-256", id.Digest, id.Version)
		}
	}
	for _, t := range []struct{ what, text string }{{"compatible", m.Compatible}, {"createdBy", m.CreatedBy}} {
		if err := checkText(t.what, t.text); err != nil {
			return err
		}
	}
	for _, n := range []int64{m.Payload.Size, m.Apply.Memory, m.Apply.Written, m.Apply.Files, m.Apply.NewData} {
		if n < 0 || n > maxAmount {
			return fmt.Errorf("size %d is out of range", n)
		}
	}
	if m.Payload.Chunk < minChunk || m.Payload.Chunk > maxChunk {
		return fmt.Errorf("chunk size %d is out of range", m.Payload.Chunk)
	}
	if b, err := hex.DecodeString(m.Payload.First); err != nil || len(b) != 32 {
		return errors.New("the first chunk's hash is not a SHA-256")
	}
	_, _, err := m.keyChanges()
	return err
}

// checkText keeps control characters out of what a terminal will show.
func checkText(what, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) {
		return fmt.Errorf("%s is longer than %d bytes or not UTF-8", what, maxText)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%s %q holds a control character", what, s)
		}
	}
	return nil
}
