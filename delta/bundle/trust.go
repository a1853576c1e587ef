package bundle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// A bundle may bring keys and revoke others. Any trusted key may do that to any
// other: among trusted keys there is no order. Three things keep a device from locking
// itself out:
//
//   - a bundle that revokes the key that signed it brings another one,
//   - and after any bundle there is still a key that is trusted,
//   - and a bundle that revoked its own key stays acceptable to the device that has
//     taken it, so that an update which a power cut ended can be repeated. The
//     revocation names the manifest that is meant by its hash: nothing else that
//     the key has signed or will sign is accepted.

// exceptPrefix starts the line of a revocation that names the manifest which made it.
const exceptPrefix = "except manifest "

// A revocation is a .revoked file: a text for people, and perhaps one exception.
type revocation struct {
	why    string
	except string // SHA-256 of the manifest that stays acceptable, hex; "": none
}

func parseRevocation(text []byte) revocation {
	var r revocation
	var why []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if hash, ok := strings.CutPrefix(line, exceptPrefix); ok {
			r.except = hash
		} else if line != "" {
			why = append(why, line)
		}
	}
	r.why = strings.Join(why, " ")
	return r
}

// revoke notes a revocation. Of two for one key the stricter holds.
func (k *Keyring) revoke(id string, r revocation) {
	if k.revoked == nil {
		k.revoked = make(map[string]revocation)
	}
	if have, ok := k.revoked[id]; ok && have.except != r.except {
		if r.except = ""; have.why != "" {
			r.why = have.why
		}
	}
	k.revoked[id] = r
}

// Revocation says that a key is not trusted, whether the keyring has it or not.
type Revocation struct{ ID, Why string }

// Revocations lists the revoked key ids.
func (k *Keyring) Revocations() []Revocation {
	list := make([]Revocation, 0, len(k.revoked))
	for id, r := range k.revoked {
		list = append(list, Revocation{id, r.why})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID })
	return list
}

// keyChanges returns the ids of the keys that a manifest adds and revokes.
func (m *Manifest) keyChanges() (add, revoke []string, err error) {
	for _, line := range m.AddKeys {
		pub, err := parsePublic([]byte(line))
		if err != nil {
			return nil, nil, err
		}
		add = append(add, formatID(pub.ID()))
	}
	for _, s := range m.RevokeKeys {
		id, err := parseID(s)
		if err != nil {
			return nil, nil, err
		}
		if slices.Contains(add, id) {
			return nil, nil, fmt.Errorf("key %s is both added and revoked", id)
		}
		revoke = append(revoke, id)
	}
	return add, revoke, nil
}

var errOwnKey = errors.New("the bundle revokes the key that signed it and brings no other")

// AddedKeys returns the ids of the keys that the manifest adds.
func (m *Manifest) AddedKeys() []string {
	add, _, _ := m.keyChanges() // a Reader has looked at them
	return add
}

// CheckKeys refuses what a bundle signed by this key cannot do to keys: contradict
// itself, or leave nobody to sign the next bundle.
func (m *Manifest) CheckKeys(signer string) error {
	add, revoke, err := m.keyChanges()
	if err == nil && len(add) == 0 && slices.Contains(revoke, signer) {
		err = errOwnKey
	}
	return err
}

// checkAfter refuses a manifest after which the keyring would trust no key.
func (k *Keyring) checkAfter(m *Manifest, signer string) error {
	if err := m.CheckKeys(signer); err != nil {
		return &SignatureError{KeyID: signer, Reason: err.Error(), Trusted: k.trusted()}
	}
	add, revoke, err := m.keyChanges()
	if err != nil || len(revoke) == 0 {
		return err
	}
	for _, id := range append(k.trusted(), add...) {
		if _, gone := k.revoked[id]; !gone && !slices.Contains(revoke, id) {
			return nil
		}
	}
	return &SignatureError{KeyID: signer, Reason: "the bundle would leave no trusted key", Trusted: k.trusted()}
}

// TakeKeys does what the manifest says of keys: it durably adds public keys to one
// key directory, and only then revokes others in another. A key that is revoked already
// stays so. Repeating it changes nothing. It is for a reader that has checked the
// signature.
func (r *Reader) TakeKeys(trusted, revoked, why string) (added, gone []string, err error) {
	if r.signer == "" {
		return nil, nil, errors.New("cannot take keys from a bundle whose signature was not checked")
	}
	if added, gone, err = r.manifest.keyChanges(); err != nil {
		return nil, nil, err
	}
	for i, id := range added {
		if _, err := TrustKey(trusted, id, []byte(r.manifest.AddKeys[i])); err != nil {
			return nil, nil, fmt.Errorf("cannot trust key %s: %w", id, err)
		}
	}
	for _, id := range gone {
		path := filepath.Join(revoked, id+revokedSuffix)
		if _, err := os.Lstat(path); err == nil {
			continue // what is there is as strict or stricter
		}
		text := why + "\n"
		if id == r.signer {
			text += exceptPrefix + hexSum(r.front) + "\n"
		}
		if err := writeKeyFile(path, []byte(text), 0o644); err != nil {
			return added, nil, fmt.Errorf("cannot revoke key %s: %w", id, err)
		}
	}
	return added, gone, nil
}
