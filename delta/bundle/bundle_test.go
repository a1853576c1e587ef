package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

// keyPair makes a key and a keyring that trusts it.
func keyPair(t testing.TB) (*PrivateKey, *Keyring, string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "vendor")
	id, err := GenerateKey(name, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ReadPrivateKey(name+".key", "")
	if err != nil {
		t.Fatal(err)
	}
	if key.ID() != id {
		t.Fatalf("key has id %s, was made with %s", key.ID(), id)
	}
	keys, err := LoadKeyring(filepath.Dir(name))
	if err != nil {
		t.Fatal(err)
	}
	return key, keys, name
}

func sample() *Manifest {
	d := sha256.Sum256([]byte("a tree"))
	return &Manifest{From: []BaseID{{Version: "1", Digest: hex.EncodeToString(d[:])}}, To: BaseID{Version: "2", Digest: hex.EncodeToString(d[:])}, Counter: 7, Compatible: "board-x"}
}

func payload(n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return b
}

func makeBundle(t testing.TB, key Signer, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	n, err := Create(&out, sample(), bytes.NewReader(data), int64(len(data)), key)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(out.Len()) {
		t.Fatalf("Create says %d bytes, wrote %d", n, out.Len())
	}
	return out.Bytes()
}

func TestRoundTrip(t *testing.T) {
	key, keys, _ := keyPair(t)
	for _, n := range []int{0, 1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 3*ChunkSize + 17} {
		data := payload(n)
		b := makeBundle(t, key, data)
		if !bytes.Equal(b, makeBundle(t, key, data)) {
			t.Errorf("%d bytes: two bundles of the same differ", n)
		}
		r, err := NewReader(bytes.NewReader(b), keys)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: got %d, %v", n, len(got), err)
		}
		if err := r.Verify(); err != nil {
			t.Error(err)
		}
		if r.Signer() != key.ID() || r.Offset() != int64(len(b)) {
			t.Errorf("signer %s, offset %d of %d", r.Signer(), r.Offset(), len(b))
		}
	}
}

// Whatever byte is flipped and wherever the file ends, no wrong payload byte is
// given out and the reader does not end well.
func TestDamage(t *testing.T) {
	key, keys, _ := keyPair(t)
	data := payload(2*ChunkSize + 100)
	good := makeBundle(t, key, data)
	check := func(what string, b []byte) {
		t.Helper()
		r, err := NewReader(bytes.NewReader(b), keys)
		if err == nil {
			var got []byte
			got, err = io.ReadAll(r)
			if !bytes.HasPrefix(data, got) {
				t.Fatalf("%s: wrong bytes were given out", what)
			}
			if err == nil {
				err = r.Verify()
			}
		}
		var damage *DamageError
		var sig *SignatureError
		var format *FormatError
		if !errors.As(err, &damage) && !errors.As(err, &sig) && !errors.As(err, &format) {
			t.Fatalf("%s: error %v", what, err)
		}
	}
	front := len(good) - len(data)
	for i := 0; i < len(good); i += 1 + i/front*4099 {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		// The untrusted comment is the one part that nothing vouches for.
		if bytes.Contains(good[max(0, i-60):min(len(good), i+20)], []byte("untrusted comment")) {
			continue
		}
		check("flipped byte", b)
	}
	for _, n := range []int{0, 5, 16, 23, 24, 100, front - 1, front, front + 1, len(good) - 1} {
		check("cut", good[:n])
	}
	check("longer", append(bytes.Clone(good), 0))
	second := bytes.Clone(good)
	copy(second[len(second)-100-ChunkSize:], second[len(second)-100-2*ChunkSize-linkSize:][:ChunkSize])
	check("chunk repeated", second)
}

func TestTrust(t *testing.T) {
	key, keys, name := keyPair(t)
	_, others, _ := keyPair(t)
	b := makeBundle(t, key, payload(10))
	var sig *SignatureError
	if _, err := NewReader(bytes.NewReader(b), others); !errors.As(err, &sig) || sig.KeyID != key.ID() || len(sig.Trusted) != 1 {
		t.Errorf("unknown key: %v", err)
	}
	if _, err := NewReader(bytes.NewReader(b), &Keyring{}); !errors.As(err, &sig) {
		t.Errorf("no keys: %v", err)
	}
	dir := filepath.Dir(name)
	if err := RevokeKey(dir, strings.ToLower(key.ID()), "lost"); err != nil {
		t.Fatal(err)
	}
	again, err := LoadKeyring(dir, filepath.Join(dir, "absent"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewReader(bytes.NewReader(b), again); !errors.As(err, &sig) || !strings.Contains(err.Error(), "lost") {
		t.Errorf("revoked key: %v", err)
	}
	if k := again.Keys(); len(k) != 1 || !k[0].Revoked {
		t.Errorf("keys: %+v", k)
	}
	if _, err := NewReader(bytes.NewReader(b), keys); err != nil {
		t.Errorf("the keyring of before: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "broken.pub"), []byte("nonsense"), 0o644)
	if _, err := LoadKeyring(dir); err == nil {
		t.Error("a broken key vanished silently")
	}
}

func TestSignedNonsense(t *testing.T) {
	key, keys, _ := keyPair(t)
	good := sample()
	good.Kind, good.Format = Kind, Format
	good.Payload = Payload{Size: 0, Chunk: ChunkSize, First: strings.Repeat("0", 64)}
	for name, change := range map[string]func(*Manifest){
		"other kind":     func(m *Manifest) { m.Kind = "a letter" },
		"newer":          func(m *Manifest) { m.Format = 2 },
		"huge":           func(m *Manifest) { m.Payload.Size = 1 << 60 },
		"negative":       func(m *Manifest) { m.Apply.NewData = -1 },
		"chunk":          func(m *Manifest) { m.Payload.Chunk = 1 << 40 },
		"no chunk":       func(m *Manifest) { m.Payload.Chunk = 0 },
		"digest":         func(m *Manifest) { m.To.Digest = "../../etc" },
		"escape":         func(m *Manifest) { m.To.Version = "\x1b[2J" },
		"revoked is not": func(m *Manifest) { m.RevokeKeys = []string{"../x"} },
		"key is not":     func(m *Manifest) { m.AddKeys = []string{"RWQx"} },
		"many bases":     func(m *Manifest) { m.From = make([]BaseID, 1000) },
	} {
		m := *good
		change(&m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := key.SignManifest(text)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := writeFront(&b, text, signature); err != nil {
			t.Fatal(err)
		}
		if _, err := NewReader(&b, keys); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEncryptedKey(t *testing.T) {
	name := filepath.Join(t.TempDir(), "k")
	if _, err := GenerateKey(name, "secret"); err != nil {
		t.Fatal(err)
	}
	if enc, err := Encrypted(name + ".key"); err != nil || !enc {
		t.Errorf("encrypted: %v, %v", enc, err)
	}
	if _, err := ReadPrivateKey(name+".key", "wrong"); !errors.Is(err, ErrPassword) {
		t.Errorf("wrong password: %v", err)
	}
	if _, err := ReadPrivateKey(name+".key", "secret"); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(name + ".key"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", st.Mode(), err)
	}
	if _, err := GenerateKey(name, ""); err == nil {
		t.Error("a key was overwritten")
	}
}

// Debian's minisign verifies what we sign, and we verify what it signs.
func TestMinisign(t *testing.T) {
	testenv.Command(t, "minisign")
	key, keys, name := keyPair(t)
	data := payload(1000)
	b := makeBundle(t, key, data)
	manifest, signature, err := Split(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "manifest.json")
	os.WriteFile(file, manifest, 0o644)
	os.WriteFile(file+".minisig", signature, 0o644)
	testenv.Run(t, "minisign", "-Vm", file, "-p", name+".pub")

	os.Remove(file + ".minisig")
	cmd := exec.Command("minisign", "-Sm", file, "-s", name+".key", "-t", "by hand")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("minisign -S: %v\n%s", err, out)
	}
	if signature, err = os.ReadFile(file + ".minisig"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Attach(&out, bytes.NewReader(b), signature); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&out, keys)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Fatal(err)
	}
}

func FuzzReader(f *testing.F) {
	name := filepath.Join(f.TempDir(), "k")
	if _, err := GenerateKey(name, ""); err != nil {
		f.Fatal(err)
	}
	key, err := ReadPrivateKey(name+".key", "")
	if err != nil {
		f.Fatal(err)
	}
	keys := &Keyring{}
	if err := keys.AddFile(name + ".pub"); err != nil {
		f.Fatal(err)
	}
	f.Add(makeBundle(f, key, payload(100)))
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := NewReader(bytes.NewReader(b), keys); err == nil {
			r.Verify()
		}
		// And behind the signature, as a maker gone wrong would have it.
		if r, err := NewReader(bytes.NewReader(b), nil); err == nil {
			io.Copy(io.Discard, r)
		}
	})
}

func FuzzManifest(f *testing.F) {
	m := sample()
	m.Kind, m.Format = Kind, Format
	m.Payload = Payload{Size: 5, Chunk: ChunkSize, First: strings.Repeat("0", 64)}
	text, _ := json.Marshal(m)
	f.Add(text)
	f.Add([]byte(`{"kind":"btrovl bundle","format":1,"payload":{"size":9223372036854775807}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseManifest(b); err == nil && (m.Payload.Size < 0 || m.Payload.Records() < 0) {
			t.Fatal("accepted")
		}
	})
}
