package bundle

import (
	"errors"
	"fmt"
	"os"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"
)

// PrivateKey signs bundles. Its text form is minisign's.
type PrivateKey struct{ key minisign.PrivateKey }

var _ Signer = (*PrivateKey)(nil)

// ErrPassword says that a private key is encrypted and that the password is
// missing or wrong.
var ErrPassword = errors.New("the private key is encrypted: missing or wrong password")

// GenerateKey makes a key pair in NAME.key (mode 0600, encrypted if there is a
// password) and NAME.pub and returns its id. It overwrites nothing. Both files
// are on stable storage when it returns.
func GenerateKey(name, password string) (id string, err error) {
	pub, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return "", err
	}
	var secret []byte
	if password != "" {
		secret, err = minisign.EncryptKey(password, key)
	} else {
		secret, err = key.MarshalText()
	}
	if err != nil {
		return "", err
	}
	public, err := pub.MarshalText()
	if err != nil {
		return "", err
	}
	if err := writeNew(name+".key", append(secret, '\n'), 0o600); err != nil {
		return "", err
	}
	if err := writeNew(name+publicSuffix, append(public, '\n'), 0o644); err != nil {
		os.Remove(name + ".key")
		return "", err
	}
	return formatID(pub.ID()), nil
}

func writeNew(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// Encrypted reports whether a private key file needs a password.
func Encrypted(path string) (bool, error) {
	text, err := readSmall(path)
	if err != nil {
		return false, err
	}
	return minisign.IsEncrypted(text), nil
}

// ReadPrivateKey reads a private key file, of ours or of minisign.
// Error: ErrPassword.
func ReadPrivateKey(path, password string) (*PrivateKey, error) {
	text, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	var k PrivateKey
	if !minisign.IsEncrypted(text) {
		if err := k.key.UnmarshalText(text); err != nil {
			return nil, fmt.Errorf("%s is not a minisign private key", path)
		}
		return &k, nil
	}
	if k.key, err = minisign.DecryptKey(password, text); err != nil {
		return nil, fmt.Errorf("%s: %w", path, ErrPassword)
	}
	return &k, nil
}

// ID returns the key id as minisign prints it.
func (k *PrivateKey) ID() string { return formatID(k.key.ID()) }

// PublicText returns the public key as the text of a .pub file.
func (k *PrivateKey) PublicText() []byte {
	pub, ok := k.key.Public().(minisign.PublicKey)
	if !ok {
		return nil
	}
	text, err := pub.MarshalText()
	if err != nil {
		return nil
	}
	return append(text, '\n')
}

// SignManifest signs prehashed (minisign's default). The comments carry no time:
// the same manifest and key give the same bundle.
func (k *PrivateKey) SignManifest(manifest []byte) ([]byte, error) {
	return minisign.SignWithComments(k.key, manifest, "btrovl bundle manifest", "signature from btrovl key "+k.ID()), nil
}
