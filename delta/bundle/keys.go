package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"aead.dev/minisign"
	"github.com/google/renameio/v2"
)

// A key directory holds, one file each, the keys that are trusted (NAME.pub, as
// minisign writes them) and the ids that never are again (ID.revoked, its content
// says why; see trust.go). A revocation in one directory holds for all.
const (
	publicSuffix  = ".pub"
	revokedSuffix = ".revoked"
	maxKeyFile    = 4 << 10
)

// Key is one entry of a keyring.
type Key struct {
	ID      string // as minisign prints it: 16 upper-case hex digits
	Name    string // of the file, without .pub
	Path    string
	Revoked bool
	public  minisign.PublicKey
}

// Keyring is the set of keys whose bundles are accepted.
type Keyring struct {
	keys    []Key
	revoked map[string]revocation // by id
}

// LoadKeyring reads key directories. One that does not exist is empty. A file
// that cannot be read or parsed is an error: a key or a revocation must not
// vanish silently.
func LoadKeyring(dirs ...string) (*Keyring, error) {
	k := &Keyring{revoked: make(map[string]revocation)}
	for _, dir := range dirs {
		names, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read trusted keys: %w", err)
		}
		for _, e := range names {
			path := filepath.Join(dir, e.Name())
			switch {
			case strings.HasPrefix(e.Name(), "."):
			case strings.HasSuffix(e.Name(), publicSuffix):
				err = k.AddFile(path)
			case strings.HasSuffix(e.Name(), revokedSuffix):
				var id string
				if id, err = parseID(strings.TrimSuffix(e.Name(), revokedSuffix)); err == nil {
					var why []byte
					if why, err = readSmall(path); err == nil {
						k.revoke(id, parseRevocation(why))
					}
				}
			}
			if err != nil {
				return nil, fmt.Errorf("cannot read trusted keys: %s: %w", path, err)
			}
		}
	}
	return k, nil
}

// AddFile trusts the public key in a file.
func (k *Keyring) AddFile(path string) error {
	text, err := readSmall(path)
	if err != nil {
		return err
	}
	return k.Add(strings.TrimSuffix(filepath.Base(path), publicSuffix), path, text)
}

// Add trusts a public key: the text of a .pub file or its base64 line alone.
func (k *Keyring) Add(name, path string, text []byte) error {
	pub, err := parsePublic(text)
	if err != nil {
		return err
	}
	k.keys = append(k.keys, Key{ID: formatID(pub.ID()), Name: name, Path: path, public: pub})
	return nil
}

// Revoke takes the trust from a key id, whether the keyring has the key or not.
func (k *Keyring) Revoke(id, why string) {
	k.revoke(strings.ToUpper(id), revocation{why: why})
}

// Keys lists the keyring by id.
func (k *Keyring) Keys() []Key {
	keys := make([]Key, 0, len(k.keys))
	for _, key := range k.keys {
		_, key.Revoked = k.revoked[key.ID]
		keys = append(keys, key)
	}
	sort.SliceStable(keys, func(i, j int) bool { return keys[i].ID < keys[j].ID })
	return keys
}

func (k *Keyring) trusted() []string {
	var ids []string
	for _, key := range k.Keys() {
		if !key.Revoked {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

// verify returns the id of the trusted key that signed the message. Both kinds of
// minisign's signatures are accepted, prehashed and legacy: what is signed is bounded
// and in memory, and a prehashed signature passed off as a legacy one would be over 64
// bytes that are no manifest.
func (k *Keyring) verify(message, signature []byte) (string, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return "", &SignatureError{Reason: "it is not a minisign signature", Trusted: k.trusted()}
	}
	id := formatID(s.KeyID)
	if r, ok := k.revoked[id]; ok && r.except != hexSum(message) {
		reason := "the key is revoked"
		if r.why != "" {
			reason += fmt.Sprintf(" (%.200q)", r.why)
		}
		return "", &SignatureError{KeyID: id, Reason: reason, Trusted: k.trusted()}
	}
	known := false
	for _, key := range k.keys {
		if key.ID != id {
			continue
		}
		known = true
		// Key ids are not protected: two keys may carry the same one.
		if minisign.Verify(key.public, message, signature) {
			return id, nil
		}
	}
	if known {
		return "", &SignatureError{KeyID: id, Reason: "the signature does not fit the manifest", Trusted: k.trusted()}
	}
	return "", &SignatureError{KeyID: id, Reason: "the key is not trusted", Trusted: k.trusted()}
}

// TrustKey durably adds a public key to a key directory and returns its entry. It
// replaces no other key; the error is an os.ErrExist then.
func TrustKey(dir, name string, text []byte) (*Key, error) {
	pub, err := parsePublic(text)
	if err != nil {
		return nil, err
	}
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("%q cannot name a key", name)
	}
	key := &Key{ID: formatID(pub.ID()), Name: name, Path: filepath.Join(dir, name+publicSuffix), public: pub}
	if text, err := readSmall(key.Path); err == nil {
		have, err := parsePublic(text)
		if err == nil && have.Equal(pub) {
			return key, nil
		}
		return nil, fmt.Errorf("%s holds another key: %w", key.Path, os.ErrExist)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out, err := pub.MarshalText()
	if err != nil {
		return nil, err
	}
	return key, writeKeyFile(key.Path, append(out, '\n'), 0o644)
}

// RevokeKey durably marks a key id as revoked in a key directory.
func RevokeKey(dir, id, why string) error {
	id, err := parseID(id)
	if err != nil {
		return err
	}
	return writeKeyFile(filepath.Join(dir, id+revokedSuffix), []byte(why+"\n"), 0o644)
}

// writeKeyFile is atomic and on stable storage when it returns: a revocation
// that a power cut takes back would be none.
func writeKeyFile(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = syncDir(filepath.Dir(dir))
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// What a power cut left of an earlier attempt. Nobody else writes this key: the caller
	// holds the pool.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+filepath.Base(path)) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	// Not by way of $TMPDIR, where nobody would sweep.
	if err := renameio.WriteFile(path, data, mode, renameio.WithTempDir(dir)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s is too long for a key file", path)
	}
	return text, nil
}

func parsePublic(text []byte) (minisign.PublicKey, error) {
	var pub minisign.PublicKey
	text = bytes.TrimSpace(text)
	if !bytes.ContainsRune(text, '\n') {
		text = append([]byte("untrusted comment: minisign public key\n"), text...)
	}
	if err := pub.UnmarshalText(text); err != nil {
		return pub, errors.New("not a minisign public key")
	}
	return pub, nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func formatID(id uint64) string { return fmt.Sprintf("%016X", id) }

// parseID accepts a key id in either case and returns it as minisign prints it.
func parseID(s string) (string, error) {
	id, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) > 16 {
		return "", fmt.Errorf("%.80q is not a key id (16 hex digits)", s)
	}
	return formatID(id), nil
}
