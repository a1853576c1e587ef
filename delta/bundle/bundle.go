// Package bundle is the signed container in which a system travels: one file,
// read once from front to back, of which no byte is believed before it was
// checked. It knows nothing about what the payload means.
//
//	offset   size  field
//	0        16    magic "btrovl bundle 1\n": the digit is the container's version
//	16       4     M, length of the manifest, little endian, 1 … 1 MiB
//	20       4     S, length of the signature, little endian, 1 … 2 KiB
//	24       M     manifest: JSON
//	24+M     S     signature: the text of a minisign .minisig file over the manifest
//	24+M+S   …     payload in chunks:  data 0, link 1, data 1, link 2, … data n-1
//
// The manifest names the payload's size, the chunk size and the hash of the
// first record. A record is a chunk's data followed by the hash of the next
// record (32 bytes, its "link"); the last one has no link. So
//
//	hash(n-1) = SHA-256(data n-1)
//	hash(i)   = SHA-256(data i || hash(i+1))      and the manifest holds hash(0)
//
// and every chunk is known to be the maker's before a byte of it is given out,
// with a manifest that stays small for any payload, in memory of one chunk.
//
// Trust: [NewReader] reads the 24 bytes (two bounded lengths), the manifest and
// the signature as opaque bytes, and checks the signature before it parses the
// manifest. Keys and signatures are minisign's: see [Split] for how
// Debian's minisign verifies a bundle, and [Attach] for how it signs one.
//
// Nothing here is concurrent; a Reader belongs to one goroutine.
package bundle

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Magic starts every bundle of container version 1.
const Magic = "btrovl bundle 1\n"

const (
	headerSize   = len(Magic) + 8
	maxManifest  = 1 << 20
	maxSignature = 2 << 10
	linkSize     = 32

	minChunk = 4 << 10
	maxChunk = 1 << 20
	// ChunkSize is what Create uses: the link costs 1/8192 of the payload and a
	// reader holds one chunk.
	ChunkSize = 256 << 10
)

// SignatureError says that nobody whom the device trusts signed the bundle.
type SignatureError struct {
	KeyID   string   // of the key that made the signature, "" when unreadable
	Reason  string   // what is wrong
	Trusted []string // the key ids that would be accepted
}

func (e *SignatureError) Error() string {
	s := "bundle signature refused: " + e.Reason
	if e.KeyID != "" {
		s = fmt.Sprintf("bundle signed by key %s refused: %s", e.KeyID, e.Reason)
	}
	switch len(e.Trusted) {
	case 0:
		s += "; no key is trusted here"
	case 1:
		s += "; trusted key: " + e.Trusted[0]
	default:
		s += "; trusted keys:"
		for i, id := range e.Trusted {
			if i == 8 {
				s += fmt.Sprintf(" and %d more", len(e.Trusted)-i)
				break
			}
			s += " " + id
		}
	}
	return s
}

// DamageError says that the bytes are not those that were signed, or end early.
type DamageError struct {
	Offset int64 // in the bundle, of the record or field that is damaged
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("bundle is damaged at byte %d: %s", e.Offset, e.Reason)
}

// FormatError says that this is not a bundle (Have 0) or one of another version.
type FormatError struct{ Have, Know int }

func (e *FormatError) Error() string {
	if e.Have == 0 {
		return "not a btrovl bundle (the magic is missing)"
	}
	return fmt.Sprintf("bundle has format %d, this btrovl knows format %d: update btrovl first", e.Have, e.Know)
}

// Split reads the front of a bundle and returns its manifest and signature as
// they stand there, unverified. Written to two files they are what minisign
// wants:
//
//	minisign -Vm manifest.json -x manifest.json.minisig -p vendor.pub
//
// A good signature over the manifest vouches for the payload too, through the
// hash chain.
func Split(r io.Reader) (manifest, signature []byte, err error) {
	var head [headerSize]byte
	if n, err := io.ReadFull(r, head[:]); err != nil {
		if n < len(Magic) || string(head[:len(Magic)-2]) != Magic[:len(Magic)-2] {
			return nil, nil, notBundle(err, n)
		}
		return nil, nil, ended(err, int64(n), "in the header")
	}
	if string(head[:len(Magic)]) != Magic {
		return nil, nil, &FormatError{Have: magicVersion(head[:]), Know: 1}
	}
	m := binary.LittleEndian.Uint32(head[len(Magic):])
	s := binary.LittleEndian.Uint32(head[len(Magic)+4:])
	if m == 0 || m > maxManifest {
		return nil, nil, &DamageError{Offset: int64(len(Magic)), Reason: fmt.Sprintf("the manifest cannot have %d bytes", m)}
	}
	if s == 0 || s > maxSignature {
		return nil, nil, &DamageError{Offset: int64(len(Magic)) + 4, Reason: fmt.Sprintf("the signature cannot have %d bytes", s)}
	}
	both := make([]byte, int(m)+int(s))
	if n, err := io.ReadFull(r, both); err != nil {
		return nil, nil, ended(err, int64(headerSize+n), "in the manifest")
	}
	return both[:m:m], both[m:], nil
}

// Attach copies a bundle with another signature, as made by
//
//	minisign -Sm manifest.json -s vendor.key
//
// over the manifest that Split returned. The signature is not checked here.
func Attach(w io.Writer, r io.Reader, signature []byte) error {
	manifest, _, err := Split(r)
	if err != nil {
		return err
	}
	if err := writeFront(w, manifest, signature); err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return err
}

func writeFront(w io.Writer, manifest, signature []byte) error {
	if len(manifest) == 0 || len(manifest) > maxManifest {
		return fmt.Errorf("manifest of %d bytes does not fit into a bundle (at most %d)", len(manifest), maxManifest)
	}
	if len(signature) == 0 || len(signature) > maxSignature {
		return fmt.Errorf("signature of %d bytes does not fit into a bundle (at most %d)", len(signature), maxSignature)
	}
	front := make([]byte, 0, headerSize+len(manifest)+len(signature))
	front = append(front, Magic...)
	front = binary.LittleEndian.AppendUint32(front, uint32(len(manifest)))
	front = binary.LittleEndian.AppendUint32(front, uint32(len(signature)))
	front = append(front, manifest...)
	front = append(front, signature...)
	_, err := w.Write(front)
	return err
}

// magicVersion tells a newer bundle from something else.
func magicVersion(head []byte) int {
	stem := Magic[:len(Magic)-2]
	if len(head) < len(Magic) || string(head[:len(stem)]) != stem {
		return 0
	}
	if d := head[len(stem)]; d >= '1' && d <= '9' {
		return int(d - '0')
	}
	return 0
}

func notBundle(err error, n int) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &FormatError{Have: 0, Know: 1}
	}
	return fmt.Errorf("cannot read the bundle at byte %d: %w", n, err)
}

// ended turns the two ends of file into a DamageError and leaves other errors.
func ended(err error, at int64, where string) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &DamageError{Offset: at, Reason: "it ends early, " + where}
	}
	return fmt.Errorf("cannot read the bundle at byte %d: %w", at, err)
}
