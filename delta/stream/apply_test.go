package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

// Streams of the running kernel, applied by us and by btrfs receive: the trees must
// be those that were sent.
func TestApplyIsReceive(t *testing.T) {
	for _, tt := range []struct {
		name  string
		mount []string // compression of the file system
		send  []string
	}{
		{"version 1", nil, []string{"--proto", "1"}},
		{"version 2", nil, []string{"--proto", "2"}},
		{"zlib", []string{"compress-force=zlib"}, []string{"--proto", "2", "--compressed-data"}},
		{"zstd", []string{"compress-force=zstd"}, []string{"--proto", "2", "--compressed-data"}},
		{"lzo", []string{"compress-force=lzo"}, []string{"--proto", "2", "--compressed-data"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mnt := testenv.NewBtrfs(t, 512<<20)
			for _, o := range tt.mount {
				run(t, nil, "mount", "-o", "remount,"+o, mnt)
			}
			at := func(name string) string { return filepath.Join(mnt, name) }
			btrfs := func(args ...string) []byte { return run(t, nil, "btrfs", args...) }
			btrfs("subvolume", "create", at("work"))
			plant(t, at("work"))
			btrfs("subvolume", "snapshot", "-r", at("work"), at("one"))
			change(t, at("work"))
			btrfs("subvolume", "snapshot", "-r", at("work"), at("two"))
			full := btrfs(append([]string{"-q", "send", at("one")}, tt.send...)...)
			incremental := btrfs(append([]string{"-q", "send", "-p", at("one"), at("two")}, tt.send...)...)

			if n := encodedWrites(t, full); (n > 0) != (tt.mount != nil) {
				t.Fatalf("%d encoded writes in the stream", n)
			}

			btrfs("subvolume", "create", at("ours1"))
			res := apply(t, full, at("ours1"), ApplyOptions{})
			if res.Name != "one" || res.Commands < 200 || res.Bytes != int64(len(full)) {
				t.Errorf("result: %+v", res)
			}
			sameTree(t, "full stream", at("one"), at("ours1"))

			btrfs("subvolume", "snapshot", at("ours1"), at("ours2"))
			res = apply(t, incremental, "", ApplyOptions{
				Begin: func(c *Command) (*os.File, error) {
					if c.Kind != Snapshot || c.CloneUUID != res.UUID {
						t.Errorf("incremental stream begins with %+v", c)
					}
					return opened(t, at("ours2"))
				},
				Source: func(id UUID, ctransid uint64) (*os.File, error) {
					if id != res.UUID {
						return nil, errors.New("unknown subvolume " + id.String())
					}
					return opened(t, at("ours1"))
				},
			})
			sameTree(t, "incremental stream", at("two"), at("ours2"))
			if tt.mount == nil && res.Cloned == 0 {
				t.Error("nothing was cloned")
			}

			s := steps{t}
			s.do(os.Mkdir(at("theirs"), 0o755))
			run(t, full, "btrfs", "-q", "receive", at("theirs"))
			sameTree(t, "btrfs receive", at("ours1"), at("theirs/one"))
			run(t, incremental, "btrfs", "-q", "receive", at("theirs"))
			sameTree(t, "btrfs receive -p", at("ours2"), at("theirs/two"))
		})
	}
}

// encodedWrites counts.
func encodedWrites(t testing.TB, data []byte) int {
	t.Helper()
	cmds, err := decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range cmds {
		if c.Kind == EncodedWrite {
			n++
		}
	}
	return n
}

// opened opens a directory for the rest of the test.
func opened(t testing.TB, dir string) (*os.File, error) {
	f, err := os.Open(dir)
	t.Cleanup(func() { f.Close() })
	return f, err
}

// apply applies a stream and fails the test if that fails.
func apply(t testing.TB, data []byte, root string, o ApplyOptions) *Result {
	t.Helper()
	var f *os.File
	if root != "" {
		var err error
		if f, err = os.Open(root); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	res, err := Apply(context.Background(), bytes.NewReader(data), f, o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// What the Writer makes of a stream's commands is received by the stock tool.
func TestWriterIsReceived(t *testing.T) {
	dir := testenv.Btrfs(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, nil, "btrfs", "subvolume", "create", at("work"))
	plant(t, at("work"))
	run(t, nil, "btrfs", "subvolume", "snapshot", "-r", at("work"), at("one"))
	full := run(t, nil, "btrfs", "-q", "send", "--proto", "2", at("one"))
	var out bytes.Buffer
	copyStream(t, &out, bytes.NewReader(full), func(c *Command) bool {
		if c.Kind == Subvol {
			c.Path = "written"
		}
		return true
	})
	run(t, out.Bytes(), "btrfs", "-q", "receive", dir)
	sameTree(t, "rewritten stream", at("one"), at("written"))
	// Version 1 rewritten is the same, byte for byte but for inode numbers.
	run(t, nil, "btrfs", "-q", "receive", "--dump", "-f", writeFile(t, at("stream"), out.Bytes()))
}

func writeFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// copyStream copies the commands that keep allows.
func copyStream(t testing.TB, w io.Writer, r io.Reader, keep func(*Command) bool) {
	t.Helper()
	sr, err := NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	sw, err := NewWriter(w)
	if err != nil {
		t.Fatal(err)
	}
	var c Command
	for {
		err := sr.Next(&c)
		if err == io.EOF {
			return
		}
		if err == nil && keep(&c) {
			err = sw.Write(&c)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// make builds a stream of commands behind a Subvol.
func makeStream(t testing.TB, cmds ...Command) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	all := append([]Command{{Kind: Subvol, Path: "s", UUID: UUID{1}}}, cmds...)
	for _, c := range append(all, Command{Kind: End}) {
		if err := w.Write(&c); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// Streams that try to leave the subvolume, or to do harm in it. Each must fail, and
// what lies outside must stay as it is.
func TestApplyIsConfined(t *testing.T) {
	testenv.Root(t)
	self := UUID{1}
	mkfile := func(p string) Command { return Command{Kind: Mkfile, Path: p} }
	symlink := func(p, to string) Command { return Command{Kind: Symlink, Path: p, Target: to} }
	for name, cmds := range map[string][]Command{
		"dot dot":                       {mkfile("../evil")},
		"dot dot inside":                {{Kind: Mkdir, Path: "a"}, mkfile("a/../../evil")},
		"absolute":                      {mkfile("/evil")},
		"absolute deep":                 {mkfile("/tmp/evil")},
		"name is dot dot":               {{Kind: Mkdir, Path: ".."}},
		"name is dot":                   {{Kind: Mkdir, Path: "a/."}},
		"trailing slash":                {{Kind: Mkdir, Path: "a/"}},
		"root again":                    {{Kind: Mkdir, Path: ""}},
		"rename out":                    {mkfile("a"), {Kind: Rename, Path: "a", To: "../evil"}},
		"rename in":                     {{Kind: Rename, Path: "../outside", To: "a"}},
		"link in":                       {{Kind: Link, Path: "a", Target: "../outside"}},
		"unlink":                        {{Kind: Unlink, Path: "../outside"}},
		"remove root":                   {{Kind: Rmdir, Path: ""}},
		"rename root":                   {{Kind: Rename, Path: "", To: "a"}},
		"through symlink":               {symlink("a", ".."), mkfile("a/evil")},
		"absolute symlink":              {symlink("a", "/"), {Kind: Unlink, Path: "a/tmp"}},
		"write symlink":                 {symlink("a", "../outside"), {Kind: Write, Path: "a", Data: []byte("x")}},
		"truncate symlink":              {symlink("a", "../outside"), {Kind: Truncate, Path: "a"}},
		"chmod symlink":                 {symlink("a", "../outside"), {Kind: Chmod, Path: "a", Mode: 0o777}},
		"mkfile symlink":                {symlink("a", "../outside"), mkfile("a")},
		"clone symlink":                 {symlink("a", "../outside"), mkfile("b"), {Kind: Clone, Path: "b", CloneUUID: self, ClonePath: "a", Size: 4}},
		"clone dot dot":                 {mkfile("b"), {Kind: Clone, Path: "b", CloneUUID: self, ClonePath: "../outside", Size: 4}},
		"clone unknown":                 {mkfile("b"), {Kind: Clone, Path: "b", CloneUUID: UUID{9}, ClonePath: "a", Size: 4}},
		"clone beyond end":              {mkfile("a"), mkfile("b"), {Kind: Clone, Path: "b", CloneUUID: self, ClonePath: "a", Size: 4}},
		"clone nothing":                 {mkfile("a"), mkfile("b"), {Kind: Clone, Path: "b", CloneUUID: self, ClonePath: "a"}},
		"write fifo":                    {{Kind: Mkfifo, Path: "a"}, {Kind: Write, Path: "a", Data: []byte("x")}},
		"write device":                  {{Kind: Mknod, Path: "a", Mode: unix.S_IFCHR, Rdev: 1<<8 | 3}, {Kind: Write, Path: "a", Data: []byte("x")}},
		"clone from device":             {{Kind: Mknod, Path: "a", Mode: unix.S_IFCHR, Rdev: 1<<8 | 5}, mkfile("b"), {Kind: Clone, Path: "b", CloneUUID: self, ClonePath: "a", Size: 4}},
		"mkfile twice":                  {mkfile("a"), mkfile("a")},
		"write at the end of the world": {mkfile("a"), {Kind: Write, Path: "a", Offset: 1<<63 - 1, Data: []byte("xx")}},
		"second subvolume":              {{Kind: Subvol, Path: "t"}},
		"snapshot":                      {{Kind: Snapshot, Path: "t"}},
		"device number":                 {{Kind: Mknod, Path: "a", Mode: unix.S_IFCHR, Rdev: 1 << 40}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := steps{t}
			s.do(os.Mkdir(filepath.Join(dir, "root"), 0o755))
			s.do(os.WriteFile(filepath.Join(dir, "outside"), []byte("safe"), 0o600))
			before := outside(t, dir)
			root, err := os.Open(filepath.Join(dir, "root"))
			s.do(err)
			defer root.Close()
			_, err = Apply(context.Background(), bytes.NewReader(makeStream(t, cmds...)), root, ApplyOptions{})
			if err == nil {
				t.Error("no error")
			}
			if after := outside(t, dir); after != before {
				t.Errorf("outside changed:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// outside describes what lies beside the directory "root". Names inside of that may hold
// any bytes, so nothing of it is listed.
func outside(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		if path == filepath.Join(dir, "root") {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%q %o %d:%d %d %d.%d", path, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			fmt.Fprintf(&out, " %q", b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
