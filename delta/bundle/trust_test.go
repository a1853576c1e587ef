package bundle

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

// line is the base64 line of a public key.
func line(k *PrivateKey) string {
	lines := strings.Split(strings.TrimSpace(string(k.PublicText())), "\n")
	return lines[len(lines)-1]
}

// keyBundle makes a bundle that adds and revokes keys.
func keyBundle(t testing.TB, sign *PrivateKey, add, revoke []*PrivateKey) ([]byte, error) {
	t.Helper()
	m := sample()
	for _, k := range add {
		m.AddKeys = append(m.AddKeys, line(k))
	}
	for _, k := range revoke {
		m.RevokeKeys = append(m.RevokeKeys, strings.ToLower(k.ID()))
	}
	var out bytes.Buffer
	_, err := Create(&out, m, bytes.NewReader(payload(10)), 10, sign)
	return out.Bytes(), err
}

// device is a pool's two key directories.
type device struct{ trusted, revoked string }

func newDevice(t testing.TB, keys ...*PrivateKey) *device {
	t.Helper()
	dir := t.TempDir()
	d := &device{filepath.Join(dir, "trusted.d"), filepath.Join(dir, "revoked.d")}
	for _, k := range keys {
		if _, err := TrustKey(d.trusted, k.ID(), k.PublicText()); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// take is what a device does with the keys of a bundle.
func (d *device) take(t testing.TB, b []byte) error {
	t.Helper()
	ring, err := LoadKeyring(d.trusted, d.revoked)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(b), ring)
	if err != nil {
		return err
	}
	_, _, err = r.TakeKeys(d.trusted, d.revoked, "because")
	return err
}

func mustKeys(t testing.TB) (a, b, c *PrivateKey) {
	t.Helper()
	a, _, _ = keyPair(t)
	b, _, _ = keyPair(t)
	c, _, _ = keyPair(t)
	return a, b, c
}

func TestKeysTravel(t *testing.T) {
	old, next, stranger := mustKeys(t)
	made := func(sign *PrivateKey, add, revoke []*PrivateKey) []byte {
		t.Helper()
		b, err := keyBundle(t, sign, add, revoke)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain := func(k *PrivateKey) []byte { return made(k, nil, nil) }
	refused := func(d *device, b []byte, why string) {
		t.Helper()
		var sig *SignatureError
		if err := d.take(t, b); !errors.As(err, &sig) || !strings.Contains(err.Error(), why) {
			t.Errorf("error %v, expected a SignatureError with %q", err, why)
		}
	}
	accepted := func(d *device, b []byte) {
		t.Helper()
		if err := d.take(t, b); err != nil {
			t.Error(err)
		}
	}

	d := newDevice(t, old)
	refused(d, plain(next), "not trusted")
	accepted(d, made(old, []*PrivateKey{next}, nil))
	accepted(d, plain(next))
	accepted(d, plain(old))
	accepted(d, made(next, nil, []*PrivateKey{old, stranger}))
	refused(d, plain(old), "because")
	// A bundle of before that adds it again does not bring it back.
	accepted(d, made(next, []*PrivateKey{old}, nil))
	refused(d, plain(old), "revoked")
	refused(d, made(old, []*PrivateKey{stranger}, nil), "revoked")

	// The key hands over and goes: the same bundle may come again, nothing else may.
	d = newDevice(t, old)
	handover := made(old, []*PrivateKey{next}, []*PrivateKey{old})
	accepted(d, handover)
	accepted(d, handover)
	accepted(d, plain(next))
	refused(d, plain(old), "revoked")
	refused(d, made(old, []*PrivateKey{stranger}, []*PrivateKey{old}), "revoked")
	// Unless a person revokes it.
	if err := RevokeKey(d.revoked, old.ID(), "stolen"); err != nil {
		t.Fatal(err)
	}
	refused(d, handover, "stolen")

	// A power cut between the two halves: the handover is repeated.
	d = newDevice(t, old, next)
	accepted(d, handover)
	refused(d, plain(old), "revoked")

	// Of two revocations the one without an exception holds.
	d = newDevice(t, old)
	accepted(d, handover)
	other := t.TempDir()
	if err := RevokeKey(other, old.ID(), "elsewhere"); err != nil {
		t.Fatal(err)
	}
	for _, dirs := range [][]string{{d.trusted, d.revoked, other}, {other, d.trusted, d.revoked}} {
		ring, err := LoadKeyring(dirs...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewReader(bytes.NewReader(handover), ring); err == nil {
			t.Error("the weaker revocation won")
		}
		if list := ring.Revocations(); len(list) != 1 || list[0].ID != old.ID() {
			t.Errorf("revocations: %v", list)
		}
	}
}

// No bundle leaves a device that nobody can update any more.
func TestLastKey(t *testing.T) {
	old, next, _ := mustKeys(t)
	for name, keys := range map[string][2][]*PrivateKey{
		"itself":             {nil, {old}},
		"added and revoked":  {{next}, {old, next}},
		"itself, once again": {{old}, {old}},
	} {
		if _, err := keyBundle(t, old, keys[0], keys[1]); err == nil {
			t.Errorf("%s: made", name)
		}
		// And where the maker does not look.
		m := sample()
		for _, k := range keys[0] {
			m.AddKeys = append(m.AddKeys, line(k))
		}
		for _, k := range keys[1] {
			m.RevokeKeys = append(m.RevokeKeys, k.ID())
		}
		ring := new(Keyring)
		if err := ring.Add("", "", old.PublicText()); err != nil {
			t.Fatal(err)
		}
		if err := ring.checkAfter(m, old.ID()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// The key that it brings is revoked here.
	d := newDevice(t, old)
	if err := RevokeKey(d.revoked, next.ID(), "never"); err != nil {
		t.Fatal(err)
	}
	b, err := keyBundle(t, old, []*PrivateKey{next}, []*PrivateKey{old})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.take(t, b); err == nil || !strings.Contains(err.Error(), "no trusted key") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.revoked, old.ID()+revokedSuffix)); err == nil {
		t.Error("revoked all the same")
	}
}

func TestTakeKeysNeedsSignature(t *testing.T) {
	old, next, _ := mustKeys(t)
	b, err := keyBundle(t, old, []*PrivateKey{next}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(b), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.TakeKeys(t.TempDir(), t.TempDir(), ""); err == nil {
		t.Error("keys of an unchecked bundle were taken")
	}
}

func TestTrustReplacesNoOther(t *testing.T) {
	a, b, _ := mustKeys(t)
	dir := t.TempDir()
	for range 2 {
		if _, err := TrustKey(dir, "vendor", a.PublicText()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := TrustKey(dir, "vendor", b.PublicText()); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v", err)
	}
	for _, name := range []string{"", ".", "..", "../vendor", ".hidden", "a/b"} {
		if _, err := TrustKey(dir, name, b.PublicText()); err == nil {
			t.Errorf("a key with the name %q", name)
		}
	}
}

// Minisign signs in two ways. Both are verified; in neither may the algorithm's name be
// exchanged, nor the trusted comment changed.
func TestMinisignLegacy(t *testing.T) {
	tool := testenv.Command(t, "minisign")
	key, keys, name := keyPair(t)
	b := makeBundle(t, key, payload(100))
	manifest, _, err := Split(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "manifest.json")
	if err := os.WriteFile(file, manifest, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ flag, algorithm string }{{"-l", "Ed"}, {"-H", "ED"}} {
		cmd := exec.Command(tool, "-S", tc.flag, "-m", file, "-s", name+".key", "-t", "by hand")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("minisign -S %s: %v\n%s", tc.flag, err, out)
		}
		signature, err := os.ReadFile(file + ".minisig")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(signature), "\n")
		raw, err := base64.StdEncoding.DecodeString(lines[1])
		if err != nil || string(raw[:2]) != tc.algorithm {
			t.Fatalf("minisign %s made algorithm %q, %v", tc.flag, raw[:2], err)
		}
		try := func(signature []byte) error {
			var out bytes.Buffer
			if err := Attach(&out, bytes.NewReader(b), signature); err != nil {
				t.Fatal(err)
			}
			_, err := NewReader(&out, keys)
			return err
		}
		if err := try(signature); err != nil {
			t.Errorf("%s: %v", tc.algorithm, err)
		}
		if err := try(bytes.Replace(signature, []byte("by hand"), []byte("by foot"), 1)); err == nil {
			t.Errorf("%s: another trusted comment was accepted", tc.algorithm)
		}
		raw[1] ^= 'd' ^ 'D'
		swapped := slices.Clone(lines)
		swapped[1] = base64.StdEncoding.EncodeToString(raw)
		if err := try([]byte(strings.Join(swapped, "\n"))); err == nil {
			t.Errorf("%s: accepted as the other algorithm", tc.algorithm)
		}
	}
}

// FuzzKeys feeds what a key directory may hold.
func FuzzKeys(f *testing.F) {
	key, _, _ := keyPair(f)
	f.Add(key.PublicText())
	f.Add([]byte(line(key)))
	f.Add([]byte("stolen\n" + exceptPrefix + strings.Repeat("0", 64) + "\n"))
	f.Add([]byte("RWQ"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ring := new(Keyring)
		if err := ring.Add("x", "x", text); err == nil && len(ring.Keys()[0].ID) != 16 {
			t.Fatal("a key without an id")
		}
		parseRevocation(text)
	})
}
