package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"aead.dev/minisign"
)

// Signer signs a manifest and returns the text of a .minisig file.
// [PrivateKey] is one; a program that keeps its key elsewhere may bring another.
type Signer interface {
	SignManifest(manifest []byte) (signature []byte, err error)
}

// Create writes a bundle. It completes the manifest (Kind, Format, Payload),
// checks and signs it, and returns the size of the bundle. The payload is read
// twice: once from back to front to make the hash chain, once to be copied.
func Create(w io.Writer, m *Manifest, payload io.ReaderAt, size int64, s Signer) (int64, error) {
	m.Kind, m.Format = Kind, Format
	m.Payload = Payload{Size: size, Chunk: ChunkSize}
	hashes, err := chain(payload, &m.Payload)
	if err != nil {
		return 0, err
	}
	m.Payload.First = hex.EncodeToString(hashes[0][:])
	if err := m.check(); err != nil {
		return 0, fmt.Errorf("cannot make a bundle: %w", err)
	}
	manifest, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return 0, err
	}
	manifest = append(manifest, '\n')
	signature, err := s.SignManifest(manifest)
	if err != nil {
		return 0, fmt.Errorf("cannot sign the bundle: %w", err)
	}
	var by minisign.Signature
	if by.UnmarshalText(signature) == nil {
		if err := m.CheckKeys(formatID(by.KeyID)); err != nil {
			return 0, fmt.Errorf("cannot sign the bundle: %w", err)
		}
	}
	if err := writeFront(w, manifest, signature); err != nil {
		return 0, err
	}
	total := int64(headerSize + len(manifest) + len(signature))
	buf := make([]byte, ChunkSize+linkSize)
	for i := int64(0); i < m.Payload.Records(); i++ {
		data := buf[:min(size-i*ChunkSize, ChunkSize)]
		if err := readAt(payload, data, i*ChunkSize); err != nil {
			return total, err
		}
		record := data
		if int(i)+1 < len(hashes) {
			record = append(record, hashes[i+1][:]...)
		}
		// The payload may lie in a file: what is written must be what was hashed.
		if sha256.Sum256(record) != hashes[i] {
			return total, fmt.Errorf("cannot make a bundle: the payload changed while it was read")
		}
		n, err := w.Write(record)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// chain returns the hash of every record; of nothing for an empty payload.
func chain(payload io.ReaderAt, p *Payload) ([][32]byte, error) {
	n := p.Records()
	if n == 0 {
		return [][32]byte{sha256.Sum256(nil)}, nil
	}
	hashes := make([][32]byte, n)
	buf := make([]byte, p.Chunk+linkSize)
	for i := n - 1; i >= 0; i-- {
		record := buf[:min(p.Size-i*p.Chunk, p.Chunk)]
		if err := readAt(payload, record, i*p.Chunk); err != nil {
			return nil, err
		}
		if i+1 < n {
			record = append(record, hashes[i+1][:]...)
		}
		hashes[i] = sha256.Sum256(record)
	}
	return hashes, nil
}

func readAt(r io.ReaderAt, p []byte, off int64) error {
	if n, err := r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("cannot read the payload at byte %d: %w", off+int64(n), err)
	}
	return nil
}
