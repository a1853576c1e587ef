package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/stream"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// Every error that another package documents has its code, also when wrapped.
func TestExplain(t *testing.T) {
	for want, errs := range map[int][]error{
		codeDone:         {nil},
		codeError:        {errors.New("x"), syscall.EIO},
		codeUsage:        {usagef("x"), &subvolumes.NameError{}, &subvolumes.ClaimError{}},
		codePool:         {&subvolumes.NotPoolError{}, &subvolumes.NotPoolError{Lost: true}},
		codeBtrfs:        {&subvolumes.NotBtrfsError{}},
		codeFormat:       {&subvolumes.FormatError{}},
		codeBusy:         {&subvolumes.BusyError{}, &subvolumes.InUseError{}, &delta.InUseError{}},
		codeUnknown:      {&subvolumes.UnknownError{}},
		codeExists:       {&subvolumes.ExistsError{}},
		codeSpace:        {&subvolumes.NoSpaceError{}, syscall.ENOSPC, syscall.EDQUOT},
		codeSignature:    {&bundle.SignatureError{}},
		codeDamage:       {&bundle.DamageError{}, &bundle.FormatError{Have: 0}, &tree.ArchiveError{}, &stream.FormatError{}},
		codeBundleFormat: {&bundle.FormatError{Have: 2}},
		codeBase:         {&delta.WrongBaseError{}},
		codeCompatible:   {&delta.CompatibleError{}},
		codeDowngrade:    {&delta.DowngradeError{}, &subvolumes.DowngradeError{}},
		codeDigest:       {&delta.SourceError{}, &subvolumes.DigestError{}},
		codeInterrupted:  {context.Canceled},
		codeViews:        {coded(codeViews, errors.New("x"))},
	} {
		for _, err := range errs {
			if err != nil {
				err = fmt.Errorf("cannot do it: %w", err)
			}
			if got, _ := explain(err); got != want {
				t.Errorf("%T: exit code %d (%s), expected %d (%s)", errors.Unwrap(err), got, kindOf(got), want, kindOf(want))
			}
		}
	}
	// A refused thing inside of an error of ours keeps our code.
	if got, _ := explain(coded(codeViews, &subvolumes.BusyError{})); got != codeViews {
		t.Errorf("code %d", got)
	}
}

func TestFailPrintsHints(t *testing.T) {
	var b bytes.Buffer
	ui := tui{stderr: &b}
	if code := ui.fail(&subvolumes.NotBtrfsError{Dir: "/x", FSType: "ext4"}); code != codeBtrfs {
		t.Errorf("code %d", code)
	}
	if !strings.HasPrefix(b.String(), "btrovl: /x lies on ext4, a pool needs btrfs\nhint: ") {
		t.Errorf("printed %q", b.String())
	}
	b.Reset()
	if code := ui.fail(&silent{42}); code != 42 || b.Len() > 0 {
		t.Errorf("code %d, printed %q", code, b.String())
	}
}

func TestParseMounts(t *testing.T) {
	list, err := parseMounts(strings.NewReader(`22 1 0:21 / / rw,relatime - btrfs /dev/vda rw
36 22 0:98 / /mnt/a\040view rw,noatime master:1 - fuse.btrovl btrovl rw,user_id=0
37 22 0:98 / /mnt/b ro,noatime - fuse.btrovl btrovl rw
38 22 0:99 / /mnt/c rw - fuse.btrovl btrovl ro
nonsense
`))
	if err != nil || len(list) != 4 {
		t.Fatalf("%v %v", list, err)
	}
	for i, want := range []mountEntry{
		{unix.Mkdev(0, 21), "/", "btrfs", "/dev/vda", false, false},
		{unix.Mkdev(0, 98), "/mnt/a view", fsType, "btrovl", false, false},
		{unix.Mkdev(0, 98), "/mnt/b", fsType, "btrovl", true, false},
		{unix.Mkdev(0, 99), "/mnt/c", fsType, "btrovl", true, true},
	} {
		if list[i] != want {
			t.Errorf("%+v, expected %+v", list[i], want)
		}
	}
}

func TestHelperArgs(t *testing.T) {
	for in, want := range map[string]string{
		"btrovl status --json":                        "status --json",
		"@btrovl boot /root":                          "boot /root",
		"mount.btrovl /p /m -o rw,nosuid -t btrovl":   "mount --pool /p --option rw,nosuid -- /m",
		"/sbin/mount.btrovl btrovl /m":                "mount -- /m",
		"mount.btrovl none /m -n -v -o boot,noatime":  "boot --option noatime -- /m",
		"mount.btrovl none / -o boot,ro,remount":      "mount --option ro,remount -- /",
		"mount.btrovl -o x-systemd.automount,boot /p": "",
		"mount.fuse.btrovl /p /m -f":                  "version",
	} {
		got, err := helperArgs(strings.Fields(in))
		if s := strings.Join(got, " "); s != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q %v, expected %q", in, s, err, want)
		}
	}
}

func TestProgressLines(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.Dup(int(w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	p, err := newProgress("update", io.Discard, false, fd)
	if err != nil {
		t.Fatal(err)
	}
	show := p.start("apply")
	for i := range int64(1000) {
		show(i, 1000)
	}
	show(1000, 1000)
	p.finish(&bundle.DamageError{Reason: "x"})
	p.lines.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	var last progressLine
	for line := range strings.Lines(string(b)) {
		last = progressLine{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, last.Step)
	}
	if len(steps) > 20 || !slices.Contains(steps, "apply") {
		t.Errorf("%d lines: %v", len(steps), steps)
	}
	if last.Step != "failed" || last.Code != codeDamage || last.Kind != "damage" || last.Op != "update" {
		t.Errorf("last line %+v", last)
	}
	if _, err := newProgress("x", io.Discard, false, int(r.Fd())); err == nil {
		t.Error("a descriptor for reading was taken")
	}
}

func TestWrap(t *testing.T) {
	got := wrap("one two three\nfour\n\nfive", 9)
	if want := "one two\nthree\nfour\n\nfive"; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
}

func TestMountOptions(t *testing.T) {
	o := mountOptions{options: []string{"ro,nosuid", "x-initrd.mount", "noatime"}}
	if err := o.parse(); err != nil || !o.readOnly || o.flags != unix.MS_NOSUID|unix.MS_NOATIME {
		t.Errorf("%+v %v", o, err)
	}
	o = mountOptions{options: []string{"suid=1"}}
	if err := o.parse(); err == nil {
		t.Error("an unknown option was taken")
	}
}

func TestManPages(t *testing.T) {
	var b bytes.Buffer
	for _, c := range leaves(newTestApp().commands()) {
		b.Reset()
		manPage(&b, c)
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, ".") && !slices.Contains([]string{".TH", ".SH", ".nf", ".fi"}, line[:3]) {
				t.Errorf("%s: %q is taken for a request", c.Name(), line)
			}
		}
	}
}

// FuzzConfig: a configuration is refused or has only values that are allowed.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{"", `pool = "/btrovl"`, "tries = 3\nlog-level = \"info\"\n", `trusted = ["/etc/btrovl/trusted.d"]`,
		"tries = -1", "pool = 'x'", "[pool]", "a.b.c = 1", "trusted = [1]", "\xff", "tries = 99999999999999999999"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		if c.Tries < 1 || c.Tries > 100 || c.Pool != "" && c.Pool[0] != '/' {
			t.Errorf("%q gives %+v", b, c)
		}
	})
}

// FuzzMounts: whatever the kernel or a hostile mount source says, nothing breaks.
func FuzzMounts(f *testing.F) {
	f.Add("36 22 0:98 / /mnt/a\\040view rw,noatime master:1 - fuse.btrovl btrovl rw\n")
	f.Add(" - - - ")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := parseMounts(strings.NewReader(s))
		if err == nil && len(list) > strings.Count(s, "\n")+1 {
			t.Errorf("%d mounts of %q", len(list), s)
		}
	})
}

// What has its name only when it is complete is made beside it and not in $TMPDIR, where
// nobody would sweep up after a killed command.
func TestNothingInTMPDIR(t *testing.T) {
	tmp, dir := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(tmp, long, long); err != nil {
		t.Fatal(err)
	}
	a := &app{}
	if err := a.output(filepath.Join(dir, "out"), func(w io.Writer) error {
		_, err := io.WriteString(w, "x")
		return err
	}); err != nil {
		t.Error(err)
	}
	if err := bundle.RevokeKey(filepath.Join(dir, "keys"), "0123456789ABCDEF", "a test"); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(tmp); err != nil || !st.ModTime().Equal(long.Truncate(time.Nanosecond)) {
		t.Errorf("something was made in %s", tmp)
	}
}
