package subvolumes

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrovl/btrovl/integration/testenv"
)

func sample(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/state-1.json")
	testenv.Must(t, err)
	return data
}

// canonical is JSON with its numbers as they are written, for comparing.
func canonical(t testing.TB, data []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	testenv.Must(t, d.Decode(&v))
	return v
}

// TestFrozenState: what format 1 looked like is read and written for ever, and keys of
// later versions survive a rewrite at every level.
func TestFrozenState(t *testing.T) {
	data := sample(t)
	r, err := decodeRecord(data)
	testenv.Must(t, err)
	if r.Next != 9 || r.Counter != 42 || r.Active().ID != 8 || r.Bases[0].Bytes != 5000000000 ||
		r.Deployment(4).Overlay("data").Subvolume != "data.1" || r.Current != 4 {
		t.Errorf("%+v", r)
	}
	out, err := encodeRecord(r)
	testenv.Must(t, err)
	if d := cmp.Diff(canonical(t, data), canonical(t, out)); d != "" {
		t.Errorf("rewritten: %s", d)
	}
	for _, verbatim := range []string{"123456789012345678901234567890", "1e400", `<&>é\u00e9`} {
		if !bytes.Contains(out, []byte(verbatim)) {
			t.Errorf("%q was not kept as it was", verbatim)
		}
	}
	again, err := decodeRecord(out)
	testenv.Must(t, err)
	out2, err := encodeRecord(again)
	testenv.Must(t, err)
	if !bytes.Equal(out, out2) {
		t.Error("a second rewrite differs")
	}
}

// TestUnknownKeysSurviveCommands on disk.
func TestUnknownKeysSurviveCommands(t *testing.T) {
	p, w := standard(t)
	path := p.Dir() + "/state"
	data, err := os.ReadFile(path)
	testenv.Must(t, err)
	text := strings.Replace(string(data), `"format": 1,`, `"format": 1, "top": [1.50],`, 1)
	text = strings.ReplaceAll(text, `"follow_base": false`, `"follow_base": false, "inner": {"x": 1}`)
	testenv.Must(t, os.WriteFile(path, []byte(text), 0o600))
	_, err = w.AddOverlay(ctx, OverlayDef{Name: "x", Paths: []string{"/opt"}})
	testenv.Must(t, err)
	_, err = w.Rollback(ctx, 0, "")
	testenv.Must(t, err)
	data, err = os.ReadFile(path)
	testenv.Must(t, err)
	if !strings.Contains(string(data), "1.50") || strings.Count(string(data), `"inner"`) < 6 {
		t.Errorf("lost:\n%s", data)
	}
}

func TestInvariants(t *testing.T) {
	for _, c := range []struct{ what, from, to string }{
		{"no JSON", "{", "["},
		{"cut", `"views": {"of": ["a", "later", "version"]}`, ""},
		{"no format", `"format": 1,`, ""},
		{"format 0", `"format": 1,`, `"format": 0,`},
		{"newer", `"format": 1,`, `"format": 2,`},
		{"pool", `"pool": "0b1e`, `"pool": "0`},
		{"next", `"next": 9`, `"next": 8`},
		{"version", `"version": "42"`, `"version": "../42"`},
		{"twice", `"version": "43-rc1"`, `"version": "42"`},
		{"digest", `"digest": "80`, `"digest": "8`},
		{"negative", `"bytes": 0`, `"bytes": -1`},
		{"too large", `"bytes": 0`, `"bytes": 99999999999999999999`},
		{"base", `"base": "42"`, `"base": "41"`},
		{"current", `"current": 4`, `"current": 5`},
		{"none current", `"current": 4`, `"current": 0`},
		{"trial", `"deployment": 8`, `"deployment": 4`},
		{"tries", `"tries_left": 2`, `"tries_left": 4`},
		{"order", `"id": 4`, `"id": 8`},
		{"overlay name", `"name": "data"`, `"name": "../data"`},
		{"overlay twice", `"name": "system"`, `"name": "data"`},
		{"claims twice", `"/home", "/var/lib/app"`, `"/"`},
		{"unclean", `"/home", "/var/lib/app"`, `"/home/../home", "/var/lib/app"`},
		{"relative", `"/home", "/var/lib/app"`, `"home"`},
		{"subvolume", `"subvolume": "data.1"`, `"subvolume": "../../etc.1"`},
		{"subvolume's number", `"subvolume": "data.1"`, `"subvolume": "data.01"`},
		{"type", `"trial": {`, `"trial": [{`},
		{"trailing", `"views"`, `} { "views"`},
	} {
		data := strings.Replace(string(sample(t)), c.from, c.to, 1)
		if data == string(sample(t)) {
			t.Errorf("%s: nothing replaced", c.what)
		}
		if _, err := decodeRecord([]byte(data)); err == nil {
			t.Errorf("%s: accepted", c.what)
		}
	}
	if _, err := decodeRecord(make([]byte, maxState+1)); err == nil {
		t.Error("a state of more than the limit was accepted")
	}
}

// FuzzRecord: whatever is accepted obeys the invariants and survives a rewrite.
func FuzzRecord(f *testing.F) {
	f.Add(sample(f))
	f.Add([]byte(`{"format":1,"pool":"0b1e5a3c-7d1f-4c43-9d25-3f0f6f6a2b11","next":1}`))
	f.Add([]byte(`{"format":1,"format":3}`))
	f.Add([]byte(`{"format":1,"pool":"0b1e5a3c-7d1f-4c43-9d25-3f0f6f6a2b11","next":1,"bases":null,"trial":null,"":{}}`))
	f.Add([]byte(strings.Repeat(`{"format":`, 1000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			return
		}
		out, err := encodeRecord(r)
		if err != nil {
			t.Fatalf("cannot be written again: %v", err)
		}
		again, err := decodeRecord(out)
		if err != nil {
			t.Fatalf("what was written is refused: %v\n%s", err, out)
		}
		out2, err := encodeRecord(again)
		if err != nil || !bytes.Equal(out, out2) {
			t.Fatalf("a second rewrite differs (%v):\n%s\n%s", err, out, out2)
		}
		r.Active()
		for _, d := range r.Deployments {
			r.describe(d.ID)
		}
	})
}
