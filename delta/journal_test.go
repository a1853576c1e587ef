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
	"github.com/btrovl/btrovl/integration/testenv"
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
		_, _, err := makeUntil(t, p, after, resume)
		if e, ok := errors.AsType[*UnfinishedError](err); !ok || e.Path != path || !errors.Is(err, context.Canceled) {
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
		if r.Unfinished != path {
			t.Errorf("to be removed: %q", r.Unfinished)
		}
		if err := os.Remove(path); err != nil {
			t.Error(err)
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
	t.Run("no place to compare", func(t *testing.T) {
		none := open(t, "/proc") // no subvolumes can be made there
		_, _, err := makeUntil(t, p, 0, func(o *MakeOptions) { resume(o); o.Scratch = none })
		if _, ok := errors.AsType[*UnfinishedError](err); !ok || !strings.Contains(err.Error(), "cannot compare") {
			t.Errorf("without scratch: %v", err)
		}
		if finish().Resumed < second {
			t.Error("what was found is lost")
		}
	})
	t.Run("of another bundle", func(t *testing.T) {
		interrupt(12)
		r, _, err := makeUntil(t, p, 0, func(o *MakeOptions) { resume(o); o.Memory = LowMemory })
		if err != nil || r.Resumed != 0 || len(r.Warnings) == 0 || !strings.Contains(r.Warnings[0], "anew") {
			t.Errorf("with other options: %v, %+v", err, r)
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
					_, _, err := makeUntil(t, p, 0, resume)
					if _, ok := errors.AsType[*InUseError](err); !ok {
						t.Errorf("two at once: %v", err)
					}
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("of another kind", func(t *testing.T) {
		dir := t.TempDir()
		foreign := filepath.Join(dir, "foreign")
		if err := os.WriteFile(foreign, []byte("somebody's notes"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{foreign, dir, filepath.Join(dir, strings.Repeat("n", 300)), "/dev/null"} {
			r, b, err := makeUntil(t, p, 0, func(o *MakeOptions) { o.Resume = path })
			if err != nil || !bytes.Equal(b, want) || r.Unfinished != "" || len(r.Warnings) != 1 {
				t.Errorf("%.100s: %v, %+v", path, err, r)
			}
		}
		if b, err := os.ReadFile(foreign); err != nil || string(b) != "somebody's notes" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// What is kept fits where there are several bases, files that travel whole, too, and images.
func TestResumeParts(t *testing.T) {
	p := newPair(t, false)
	image := files{"one": words(1, 90<<10), "two": words(2, 200<<10)}
	other := files{"apps/image": testenv.Squashfs(t, image), "mine": words(4, 30<<10)}
	image["two"] = edit(image["two"], 3000, "more")
	builder{t, p.new.Name()}.file("apps/image", testenv.Squashfs(t, image))
	path := filepath.Join(t.TempDir(), "b.unfinished")
	second := Tree{Version: "other", Root: other.tree(t)}
	change := func(o *MakeOptions) {
		o.From = append(o.From, second)
		o.Rescue, o.leastShared = []string{"usr"}, 1
	}
	_, want, err := makeUntil(t, p, 0, change)
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []int{5, 25, 40, 60} {
		_, _, err := makeUntil(t, p, after, func(o *MakeOptions) { change(o); o.Resume = path })
		if _, ok := errors.AsType[*UnfinishedError](err); !ok {
			t.Fatalf("interrupted after %d files: %v", after, err)
		}
	}
	r, b, err := makeUntil(t, p, 0, func(o *MakeOptions) { change(o); o.Resume = path })
	if err != nil || !bytes.Equal(b, want) || r.Resumed == 0 {
		t.Errorf("%v, %d bytes for %d, %d results", err, len(b), len(want), r.Resumed)
	}
	methods := map[string]string{}
	for _, f := range r.Files {
		methods[f.Path+" of "+f.Source] = f.Method
	}
	if methods["apps/image of apps/image"] != "recompress" {
		t.Errorf("%v", methods)
	}
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
