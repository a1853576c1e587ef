package delta

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/delta/bundle"
)

// makeUntil makes a bundle and interrupts that when so much is done: after enough calls of Progress; 0: never.
func makeUntil(t *testing.T, p *pair, calls int, change func(*MakeOptions)) (*Report, []byte, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := MakeOptions{From: []Tree{{Version: "1", Root: p.old}}, To: Tree{Version: "2", Root: p.new}, Sign: p.key, Jobs: 2, Counter: 3, Compression: Fast, keepFrom: 1}
	seen := 0
	o.Progress = func(done, total int64) {
		if seen++; seen == calls {
			cancel()
		}
	}
	change(&o)
	var out bytes.Buffer
	r, err := Make(ctx, &out, o)
	return r, out.Bytes(), err
}

// A bundle whose making was interrupted, wherever, is the same in the end, and what was found out is not again.
func TestResume(t *testing.T) {
	p := newPair(t, false)
	_, want, err := makeUntil(t, p, 0, func(*MakeOptions) {})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "b.unfinished")
	resume := func(o *MakeOptions) { o.Resume = path }
	interrupt := func(after int) {
		t.Helper()
		if _, _, err := makeUntil(t, p, after, resume); !errors.Is(err, context.Canceled) {
			t.Fatalf("interrupted: %v", err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Fatal("nothing is kept:", err)
		}
	}
	finish := func() *Report {
		t.Helper()
		r, b, err := makeUntil(t, p, 0, resume)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, want) {
			t.Error("the bundle came out differently")
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("the journal of a finished bundle is left")
		}
		return r
	}
	interrupt(3)
	first := finish().Resumed
	interrupt(3)
	interrupt(12)
	second := finish().Resumed
	if first < 2 || second <= first {
		t.Errorf("there were %d results, then %d", first, second)
	}
	t.Run("cut and written over", func(t *testing.T) {
		for _, damage := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:len(b)-1] },
			func(b []byte) []byte { return append(b, "torn"...) },
			func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
			func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			func(b []byte) []byte { b[20] ^= 1; return b },
			func(b []byte) []byte { return b[:10] },
		} {
			interrupt(12)
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, damage(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			finish()
		}
	})
	t.Run("of another bundle", func(t *testing.T) {
		interrupt(12)
		r, _, err := makeUntil(t, p, 0, func(o *MakeOptions) { resume(o); o.Memory = LowMemory })
		if err != nil || r.Resumed != 0 {
			t.Errorf("with other options: %v, %d results", err, r.Resumed)
		}
	})
	t.Run("in use", func(t *testing.T) {
		interrupt(12)
		_, _, err := makeUntil(t, p, 0, func(o *MakeOptions) {
			resume(o)
			inner := false
			o.Progress = func(_, _ int64) {
				if !inner {
					inner = true
					if _, _, err := makeUntil(t, p, 0, resume); err == nil || !strings.Contains(err.Error(), "in use") {
						t.Errorf("two at once: %v", err)
					}
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("not a file", func(t *testing.T) {
		if _, _, err := makeUntil(t, p, 0, func(o *MakeOptions) { o.Resume = t.TempDir() }); err == nil {
			t.Error("a directory is no journal")
		}
	})
}

// A journal that lies costs nothing but time: the bundle is not signed, and the next run begins anew.
func TestJournalLies(t *testing.T) {
	p := newPair(t, false)
	path := filepath.Join(t.TempDir(), "b.unfinished")
	resume := func(o *MakeOptions) { o.Resume = path }
	if _, _, err := makeUntil(t, p, 12, resume); err == nil {
		t.Fatal("not interrupted")
	}
	lie(t, p, path)
	if _, b, err := makeUntil(t, p, 0, resume); err == nil || !strings.Contains(err.Error(), "made wrong") || len(b) > 0 {
		t.Fatalf("with lies: %v, %d bytes", err, len(b))
	}
	if _, b, err := makeUntil(t, p, 0, resume); err != nil {
		t.Fatal(err)
	} else if _, err := bundle.NewReader(bytes.NewReader(b), p.keys); err != nil {
		t.Fatal(err)
	}
}

// lie changes what a journal says of every file.
func lie(t *testing.T, p *pair, path string) {
	t.Helper()
	o := MakeOptions{Memory: DefaultMemory}
	to, err := take(t.Context(), Tree{Root: p.new}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	old, err := take(t.Context(), Tree{Root: p.old}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(path, to, []*inventory{old}, &o)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close(false)
	lies := 0
	for k := range j.found {
		j.number = k.section
		var f keptFile
		if k.file == allHints || !j.get(k.file, &f) {
			continue
		}
		for i := range f.Actions {
			if d := f.Actions[i].Data; len(d) > 0 {
				d[0] ^= 0x55
				lies++
			}
		}
		j.put(k.file, &f)
	}
	if lies == 0 {
		t.Fatal("the journal says nothing that could be changed")
	}
}

// A journal that cannot be written does not keep a bundle from being made: a warning says so.
func TestJournalCannotWrite(t *testing.T) {
	p := newPair(t, false)
	inv, err := take(t.Context(), Tree{Root: p.new}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "b.unfinished")
	j, err := openJournal(path, inv, nil, &MakeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	j.put(1, &keptFile{Size: 1})
	j.f.Close()
	j.put(2, &keptFile{Size: 2})
	var r Report
	j.report(&r)
	j.close(true)
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "interrupt") {
		t.Errorf("warnings %q", r.Warnings)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the journal is left")
	}
}
