package delta

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Mapped content stays what it is when its pages are given back, also that which only the
// process wrote.
func TestMappings(t *testing.T) {
	want := make([]byte, mapFrom+12345)
	rand.NewChaCha8([32]byte{7}).Read(want)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := new(mappings)
	defer m.close()
	got, err := m.content(f, int64(len(want)))
	if err != nil || len(m.all) != 1 {
		t.Fatalf("%d mappings, %v", len(m.all), err)
	}
	small, err := m.content(mustOpen(t, name), 100)
	if err != nil || len(m.all) != 1 || !bytes.Equal(small, want[:100]) {
		t.Fatalf("a small file: %d mappings, %v", len(m.all), err)
	}
	s := m.scratch(t.TempDir(), spillFrom)
	if len(m.all) != 2 {
		t.Fatal("scratch is not mapped")
	}
	for i := 0; i < len(s); i += 4096 {
		s[i] = byte(i >> 12)
	}
	before, err := residentPages()
	if err != nil {
		t.Fatal(err)
	}
	m.drop()
	after, err := residentPages()
	if err != nil {
		t.Fatal(err)
	}
	if after > before-spillFrom/2 {
		t.Errorf("%d bytes of files in memory, %d before they were given back", after, before)
	}
	for i := 0; i < len(s); i += 4096 {
		if s[i] != byte(i>>12) {
			t.Fatalf("scratch has %d at %d", s[i], i)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the file's content differs")
	}
}

// The watch gives pages back while some are being read.
func TestWatch(t *testing.T) {
	m := new(mappings)
	defer m.close()
	b := m.scratch(t.TempDir(), spillFrom)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { m.watch(ctx, 1); close(ended) }()
	for i := 0; i < len(b); i += 4096 {
		b[i]++
	}
	for end := time.Now().Add(20 * time.Second); ; {
		b[0]++ // what is in use comes back
		held, err := residentPages()
		if err != nil {
			t.Fatal(err)
		}
		if held < spillFrom/2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are still in memory", held)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ended
}

func TestLeastWork(t *testing.T) {
	_, err := Make(t.Context(), nil, MakeOptions{Sign: noSigner{}, Work: LeastWork - 1})
	if err == nil || err.Error() != "cannot make a bundle in 511 MiB of memory, only in 512 or more" {
		t.Error(err)
	}
}

func mustOpen(t *testing.T, name string) *os.File {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
