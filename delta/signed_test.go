package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/integration/testenv"
)

// A victim is a device with a pool: the program as it is shipped, base 1, a deployment
// of it, and a file beside the pool that nothing may touch.
type victim struct {
	program string
	dir     string
	key     *bundle.PrivateKey
	from    bundle.BaseID // base 1
	listing []byte        // of it, encoded
}

func newVictim(t *testing.T) *victim {
	v := &victim{program: filepath.Join(t.TempDir(), "btrovl"), dir: testenv.Btrfs(t)}
	build := []string{"build", "-o", v.program}
	if strconv.IntSize == 32 { // go-fuse needs a patch there, see make cross
		mod := t.TempDir()
		testenv.Run(t, "sh", "-c", "cd .. && integration/go-fuse-32bit.sh "+mod)
		build = append(build, "-modfile", filepath.Join(mod, "go.mod"))
	}
	testenv.Run(t, "go", append(build, "github.com/btrovl/btrovl/cmd/btrovl")...)
	tree := filepath.Join(t.TempDir(), "tree")
	steps := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	// What a bundle may take for a source: each kind of file.
	steps(os.MkdirAll(filepath.Join(tree, "dir"), 0o755),
		os.WriteFile(filepath.Join(tree, "file"), []byte("hello"), 0o644),
		os.Symlink("../../outside", filepath.Join(tree, "link")),
		unix.Mknod(filepath.Join(tree, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(filepath.Join(tree, "pipe"), 0o600),
		os.WriteFile(filepath.Join(v.dir, "outside"), []byte("safe"), 0o600))
	root, err := os.Open(tree)
	steps(err)
	defer root.Close()
	olds, err := list(context.Background(), root)
	steps(err)
	v.listing = olds.encode()
	v.run(t, "bundle", "keygen", filepath.Join(v.dir, "k"), "--no-password")
	v.key, err = bundle.ReadPrivateKey(filepath.Join(v.dir, "k.key"), "")
	steps(err)
	v.run(t, "init", filepath.Join(v.dir, "pool"))
	v.run(t, "key", "add", filepath.Join(v.dir, "k.pub"))
	v.run(t, "base", "import", "1", tree)
	v.run(t, "overlay", "add", "system", "--path", "/")
	v.run(t, "bundle", "create", "--to", "1", "--key", filepath.Join(v.dir, "k.key"), "-o", filepath.Join(v.dir, "1.btrovl"))
	v.run(t, "update", "--tries", "0", filepath.Join(v.dir, "1.btrovl")) // makes the first deployment
	var bases struct{ Bases []bundle.BaseID }
	steps(json.Unmarshal([]byte(v.run(t, "base", "list", "--json")), &bases))
	v.from = bases.Bases[0]
	return v
}

// command runs the program and returns its exit code and what it printed to standard
// output and to standard error. It dies where it wants much more memory than manifests here state.
func (v *victim) command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	limited := fmt.Sprintf(`ulimit -d %d; exec "$@"`, 2*DefaultMemory>>10)
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", limited, "sh", v.program}, args...)...)
	cmd.Env = append(os.Environ(), "BTROVL_POOL="+filepath.Join(v.dir, "pool"), "BTROVL_CONFIG="+filepath.Join(v.dir, "none"))
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s hangs", strings.Join(args, " "))
	}
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

func (v *victim) run(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := v.command(t, args...)
	if code != 0 {
		t.Fatalf("btrovl %s: exit code %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// look describes everything below the victim's directory, content included.
func (v *victim) look(t *testing.T) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(v.dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", name, info.Mode())
		if info.Mode().IsRegular() && d.Name() != "lock" && !strings.HasPrefix(d.Name(), "hostile") {
			line += fmt.Sprint(" ", info.Size())
			if d.Name() != "reserve" {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %x", sha256.Sum256(b))
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// manifest is right for the payload and leads from base 1, or from nothing, to base 2.
func (v *victim) manifest(payload []byte, full bool) *bundle.Manifest {
	first := sha256.Sum256(payload)
	m := &bundle.Manifest{Kind: bundle.Kind, Format: bundle.Format, From: []bundle.BaseID{v.from},
		To:      bundle.BaseID{Version: "2", Digest: strings.Repeat("0", 64)},
		Payload: bundle.Payload{Size: int64(len(payload)), Chunk: 1 << 20, First: hex.EncodeToString(first[:])},
		Apply:   bundle.Needs{Memory: DefaultMemory, NewData: 100}}
	if full {
		m.From = nil
	}
	return m
}

// sign makes a bundle of whatever there is. The container does not look at it first, as
// [bundle.Create] would.
func (v *victim) sign(t *testing.T, manifest, payload []byte) []byte {
	t.Helper()
	signature, err := v.key.SignManifest(manifest)
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(bundle.Magic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(manifest)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(signature)))
	return slices.Concat(b, manifest, signature, payload)
}

// onBase makes a section that takes base 1 as its source; its tree is the base's.
func (v *victim) onBase(t *testing.T, write func(w *streamWriter)) []byte {
	s := handmadeSection(t, v.listing, write)
	sum := sha256.Sum256(v.listing)
	copy(s[sectionHeadSize-4-32:], sum[:])
	return s
}

// Bundles that are signed by a trusted key and are hostile all the same: the program
// refuses each with its exit code and a message, leaves no trace in the pool or beside it, and stays within
// the memory that it promises.
func TestSignedHostileBundles(t *testing.T) {
	testenv.Root(t)
	v := newVictim(t)
	const (
		usage, space, signature, damage, base, compatible, digest = 2, 10, 11, 12, 14, 15, 17
	)
	hello := func(w *streamWriter) {
		(&opWriter{w: w}).op(op{kind: opInsert, length: 5})
		w.bytes(streamExtra, []byte("hello"))
	}
	one := func(r record, rest func(*streamWriter)) func(*streamWriter) {
		return func(w *streamWriter) {
			var c cursor
			w.uint(streamControl, 1)
			w.record(&c, &r)
			rest(w)
		}
	}
	good := one(record{index: 2, method: methodPatch, size: 5, crc: 0x9a71bb4c}, hello)
	nothing := func(*streamWriter) {}
	tree := func(change func(*listing)) []byte { return handmadeSection(t, handmade(change), good) }
	// Entries of base 1 by name.
	olds, err := decodeListing(v.listing)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) int { return olds.byPath[name] }
	from := func(name string, change func(*record)) func(*streamWriter) {
		r := record{index: at("file"), method: methodCopy, size: 5, sources: []source{{index: at(name)}}, crc: 0x9a71bb4c}
		if change != nil {
			change(&r)
		}
		return one(r, nothing)
	}
	bomb := func() []byte { // four gigabytes of operations that make nothing, in one small frame
		h := sectionHead{listing: 100}
		h.codecs[streamControl], h.dicts[streamControl] = codecZstd, 1<<20
		b := h.encode()
		frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50} // zstd: a window of 1 MiB, then blocks of one repeated byte
		for range 1 << 15 {
			frame = append(frame, 0x02, 0x00, 0x10, 0x02)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(frame))<<8|streamControl)
		return append(append(b, frame...), 0xff, 0xff, 0xff, 0xff)
	}

	type hostile struct {
		name    string
		code    int
		section []byte                 // of the payload; nil: one that is right
		delta   bool                   // the section is for base 1
		change  func(*bundle.Manifest) // of the manifest
		raw     func(manifest string) string
		payload func([]byte) []byte
	}
	cases := []hostile{
		// The tree that it leads to.
		{name: "name is dot dot", code: damage, section: tree(func(l *listing) { l.entries[2].path = "dir/.." })},
		{name: "dot dot on top", code: damage, section: tree(func(l *listing) { l.entries[1].path, l.entries[2].path = "..", "../file" })},
		{name: "empty names make it absolute", code: damage, section: tree(func(l *listing) { l.entries[1].path, l.entries[2].path = "", "/file" })},
		{name: "name twice", code: damage, section: tree(func(l *listing) { l.entries[3].path = "dir" })},
		{name: "file below a symbolic link", code: damage, section: func() []byte {
			b := handmade(nil)
			dir := bytes.LastIndex(b, []byte{0xed, 0x41}) // its mode, S_IFDIR|0755
			b[dir], b[dir+1] = 0xff, 0xa1
			return handmadeSection(t, b, good)
		}()},
		{name: "device that counts as none", code: damage, section: func() []byte {
			b := handmade(func(l *listing) { l.entries[2].mode = unix.S_IFCHR | 0o666; l.entries[2].rdev = 0x103 })
			clear(b[8:12])
			return handmadeSection(t, b, good)
		}()},
		{name: "content for a device", code: damage, section: tree(func(l *listing) { l.entries[2].mode = unix.S_IFBLK | 0o666; l.entries[2].rdev = 0x700 })},
		{name: "content for a FIFO", code: damage, section: tree(func(l *listing) { l.entries[2].mode = unix.S_IFIFO | 0o666 })},
		{name: "four billion entries", code: damage, section: func() []byte {
			b := handmade(nil)
			binary.LittleEndian.PutUint32(b, 1<<32-1)
			return handmadeSection(t, b, good)
		}()},
		{name: "another tree than its digest", code: digest, section: tree(nil)},

		// What it asks of the decoder.
		{name: "four billion bytes of list", code: damage, section: func() []byte {
			s := tree(nil)
			binary.LittleEndian.PutUint32(s[sectionHeadSize-4:], 1<<32-1)
			return s
		}()},
		{name: "windows of four billion bytes", code: damage, section: func() []byte {
			s := tree(nil)
			s[1] = byte(codecLZMA2)
			binary.LittleEndian.PutUint32(s[2:], 1<<32-1)
			return s
		}()},
		{name: "windows beyond its memory", code: damage, section: func() []byte {
			h := sectionHead{listing: 100}
			for i := range h.codecs {
				h.codecs[i], h.dicts[i] = codecLZMA2, maxDict
			}
			return h.encode()
		}()},
		{name: "zstd bomb", code: damage, section: bomb()},
		{name: "records without end", code: damage, section: handmadeSection(t, handmade(nil), func(w *streamWriter) { w.uint(streamControl, 1<<62) })},
		{name: "9 GiB where 100 bytes are signed", code: damage, section: handmadeSection(t, handmade(nil),
			one(record{index: 2, method: methodPatch, size: 9 << 30}, hello))},
		{name: "9 GiB that are not there", code: damage, section: handmadeSection(t, handmade(nil),
			one(record{index: 2, method: methodPatch, size: 9 << 30}, hello)),
			change: func(m *bundle.Manifest) { m.Apply.NewData = 1 << 40 }},
		{name: "exbibytes", code: damage, section: handmadeSection(t, handmade(nil),
			one(record{index: 2, method: methodPatch, size: 1<<63 - 1}, hello)),
			change: func(m *bundle.Manifest) { m.Apply.NewData = 1 << 49 }},
		{name: "an object of 9 GiB", code: damage, delta: true, section: v.onBase(t, from("file", func(r *record) { r.method, r.size = methodObject, 9<<30 })),
			change: func(m *bundle.Manifest) { m.Apply.NewData = 1 << 40 }},
		{name: "a recipe of 4 GiB", code: damage, section: handmadeSection(t, handmade(nil),
			one(record{index: 2, method: methodRestore, size: 5, plain: 5, recipe: 1<<32 - 1}, hello))},
		{name: "a recipe of nonsense", code: damage, section: handmadeSection(t, handmade(nil),
			one(record{index: 2, method: methodRestore, size: 5, plain: 5, recipe: 4}, func(w *streamWriter) {
				w.bytes(streamRecipe, []byte{0xff, 0xff, 0xff, 0xff})
				hello(w)
			}))},
		{name: "no content", code: damage, section: handmadeSection(t, handmade(nil), func(w *streamWriter) { w.uint(streamControl, 0) })},
		{name: "255 sections", code: damage, payload: func(p []byte) []byte { p[1] = 255; return p }},
		{name: "a section before it of 8 EiB", code: damage, delta: true, section: v.onBase(t, from("file", nil)),
			change: func(m *bundle.Manifest) {
				other := bundle.BaseID{Version: "0", Digest: strings.Repeat("1", 64)}
				m.From = []bundle.BaseID{other, v.from}
			},
			payload: func(p []byte) []byte {
				return append(payloadHead([]part{{bases: 1, size: 1<<63 - 1}, {bases: 2, size: int64(len(p) - 19)}}), p[19:]...)
			}},
		{name: "something behind the end", code: damage, payload: func(p []byte) []byte { return append(p, "more"...) }},

		// What it takes from the base.
		{name: "copy of a symbolic link", code: damage, delta: true, section: v.onBase(t, from("link", nil))},
		{name: "copy of a device", code: damage, delta: true, section: v.onBase(t, from("null", nil))},
		{name: "copy of a FIFO", code: damage, delta: true, section: v.onBase(t, from("pipe", nil))},
		{name: "copy of a directory", code: damage, delta: true, section: v.onBase(t, from("dir", nil))},
		{name: "clone of a device", code: damage, delta: true, section: v.onBase(t, from("null", func(r *record) { r.method, r.cloned = methodPatch, true }))},
		{name: "copy of what the base does not have", code: damage, delta: true,
			section: v.onBase(t, from("file", func(r *record) { r.sources[0].index = 1000 }))},
		{name: "copy beyond the end", code: damage, delta: true,
			section: v.onBase(t, one(record{index: at("file"), method: methodPatch, size: 5, sources: []source{{index: at("file")}}},
				func(w *streamWriter) { (&opWriter{w: w}).op(op{kind: opCopy, length: 5, pos: 1 << 40}) }))},
		{name: "for a base with other names", code: base, delta: true, section: func() []byte {
			s := v.onBase(t, from("file", nil))
			s[sectionHeadSize-5] ^= 1
			return s
		}()},

		// The manifest.
		{name: "version leaves the pool", code: usage, change: func(m *bundle.Manifest) { m.To.Version = "../../outside" }},
		{name: "version is absolute", code: usage, change: func(m *bundle.Manifest) { m.To.Version = "/etc" }},
		{name: "version is a stage", code: usage, change: func(m *bundle.Manifest) { m.To.Version = "1.partial" }},
		{name: "version is hidden", code: usage, change: func(m *bundle.Manifest) { m.To.Version = ".." }},
		{name: "version writes to the terminal", code: damage, change: func(m *bundle.Manifest) { m.To.Version = "\x1b]0;x\a" }},
		{name: "the digest is a path", code: damage, change: func(m *bundle.Manifest) { m.To.Digest = "../../../../etc/passwd" }},
		{name: "a payload of 4 EiB", code: damage, change: func(m *bundle.Manifest) { m.Payload.Size = 1 << 62 }},
		{name: "a payload of 9 GiB that is not there", code: damage, change: func(m *bundle.Manifest) { m.Payload.Size = 9 << 30 }},
		{name: "chunks of 1 GiB", code: damage, change: func(m *bundle.Manifest) { m.Payload.Chunk = 1 << 30 }},
		{name: "no chunks", code: damage, change: func(m *bundle.Manifest) { m.Payload.Chunk = 0 }},
		{name: "negative needs", code: damage, change: func(m *bundle.Manifest) { m.Apply.Written = -1 << 62 }},
		{name: "more than the disk", code: space, change: func(m *bundle.Manifest) { m.Apply.Written = 1 << 45 }},
		{name: "a million bases", code: damage, change: func(m *bundle.Manifest) { m.From = make([]bundle.BaseID, 10000) }},
		{name: "another device", code: compatible, change: func(m *bundle.Manifest) { m.Compatible = "toaster" }},
		{name: "a key that is none", code: damage, change: func(m *bundle.Manifest) { m.AddKeys = []string{"RWQ" + strings.Repeat("A", 53)[:3]} }},
		{name: "revokes a path", code: damage, change: func(m *bundle.Manifest) { m.RevokeKeys = []string{"../../outside"} }},
		{name: "revokes the only key", code: signature, change: func(m *bundle.Manifest) { m.RevokeKeys = []string{v.key.ID()} }},
		{name: "deep nesting", code: damage, raw: func(string) string { return strings.Repeat("[", 900_000) }},
		{name: "a number with a million digits", code: damage, raw: func(s string) string {
			return strings.Replace(s, `"counter":0`, `"counter":`+strings.Repeat("9", 900_000), 1)
		}},
		{name: "another kind of file", code: damage, raw: func(s string) string { return strings.Replace(s, bundle.Kind, "a letter", 1) }},
	}
	before := v.look(t)
	for _, c := range cases {
		section := c.section
		if section == nil {
			section = tree(nil)
		}
		payload := append(payloadHead([]part{{bases: 1, size: int64(len(section))}}), section...)
		if c.payload != nil {
			payload = c.payload(payload)
		}
		m := v.manifest(payload, !c.delta)
		if c.change != nil {
			c.change(m)
		}
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if c.raw != nil {
			text = []byte(c.raw(string(text)))
		}
		file := filepath.Join(v.dir, "hostile")
		if err := os.WriteFile(file, v.sign(t, text, payload), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := v.command(t, "update", file)
		os.Remove(file)
		if code != c.code || !strings.HasPrefix(stderr, "btrovl: ") || strings.Contains(stderr, "goroutine") {
			t.Errorf("%s: exit code %d, expected %d, and it says:\n%.2000s", c.name, code, c.code, stderr)
		}
		if after := v.look(t); after != before {
			t.Fatalf("%s: it left traces:\n%s\nbefore:\n%s", c.name, after, before)
		}
	}
	v.run(t, "doctor")
}
