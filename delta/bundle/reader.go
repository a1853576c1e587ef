package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
)

// Reader gives out a bundle's payload, each chunk after its hash was checked.
type Reader struct {
	r        io.Reader
	manifest *Manifest
	signer   string
	front    []byte // manifest as it was signed

	offset int64    // in the bundle, of the next record
	left   int64    // payload data not yet read from r
	want   [32]byte // hash of the next record
	record []byte   // data and link of the current record
	chunk  []byte   // rest of the current data
	err    error
}

var _ io.Reader = (*Reader)(nil)

// NewReader reads the front of a bundle and checks its signature against the
// keys. Errors: *FormatError, *SignatureError, *DamageError. With keys nil the
// signature is not checked and Signer returns "": for looking at a bundle, never
// for applying it.
func NewReader(r io.Reader, keys *Keyring) (*Reader, error) {
	manifest, signature, err := Split(r)
	if err != nil {
		return nil, err
	}
	var signer string
	if keys != nil {
		if signer, err = keys.verify(manifest, signature); err != nil {
			return nil, err
		}
	}
	m, err := parseManifest(manifest)
	if err != nil {
		return nil, err
	}
	if keys != nil {
		if err := keys.checkAfter(m, signer); err != nil {
			return nil, err
		}
	}
	br := &Reader{r: r, manifest: m, signer: signer, front: manifest,
		offset: int64(headerSize + len(manifest) + len(signature)), left: m.Payload.Size}
	if _, err := hex.Decode(br.want[:], []byte(m.Payload.First)); err != nil {
		return nil, err // parseManifest has looked at it
	}
	return br, nil
}

// Manifest returns what was signed. The caller does not change it.
func (r *Reader) Manifest() *Manifest { return r.manifest }

// RawManifest returns the bytes that were signed.
func (r *Reader) RawManifest() []byte { return r.front }

// Signer returns the id of the key that signed, "" if it was not checked.
func (r *Reader) Signer() string { return r.signer }

// Offset returns how many bytes of the bundle were read.
func (r *Reader) Offset() int64 { return r.offset }

// Read gives out checked payload bytes. After an error it never gives out more.
func (r *Reader) Read(p []byte) (int, error) {
	if len(r.chunk) == 0 {
		if r.err == nil {
			r.err = r.next()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// next reads and checks one record.
func (r *Reader) next() error {
	if r.left == 0 {
		return io.EOF
	}
	size, link := r.manifest.Payload.Chunk, linkSize
	if r.left <= size {
		size, link = r.left, 0
	}
	if r.record == nil {
		r.record = make([]byte, size+int64(link))
	}
	record := r.record[:size+int64(link)]
	if n, err := io.ReadFull(r.r, record); err != nil {
		return ended(err, r.offset+int64(n), fmt.Sprintf("%d payload bytes before the end", r.left))
	}
	if sha256.Sum256(record) != r.want {
		return &DamageError{Offset: r.offset, Reason: fmt.Sprintf("the hash of the %d bytes there is wrong", len(record))}
	}
	copy(r.want[:], record[size:])
	r.offset += int64(len(record))
	r.left -= size
	r.chunk = record[:size]
	return nil
}

// Verify reads the rest of the bundle and reports the first damage, including
// bytes that follow its end. No payload can be read afterwards.
func (r *Reader) Verify() error {
	if r.err == io.EOF {
		r.err = nil
	}
	for r.err == nil {
		r.err = r.next()
	}
	r.chunk = nil
	if r.err != io.EOF {
		return r.err
	}
	var one [1]byte
	if n, err := io.ReadFull(r.r, one[:]); n != 0 {
		r.err = &DamageError{Offset: r.offset, Reason: "something follows the end of the bundle"}
		return r.err
	} else if err != io.EOF {
		return fmt.Errorf("cannot read the bundle at byte %d: %w", r.offset, err)
	}
	return nil
}
