package subvolumes

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

func TestInitAndOpen(t *testing.T) {
	dir := testenv.Btrfs(t)
	p, err := Init(dir + "/pool")
	testenv.Must(t, err)
	defer p.Close()
	q, err := Open(dir + "/pool")
	testenv.Must(t, err)
	defer q.Close()
	if p.ID() == "" || p.ID() != q.ID() || p.Dir() != dir+"/pool" {
		t.Errorf("ids %q and %q, directory %q", p.ID(), q.ID(), p.Dir())
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "state": 0o600, "lock": 0o600, "reserve": 0o600, "bases": 0o700} {
		if st, err := os.Stat(dir + "/pool/" + name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v", name, st.Mode(), err)
		}
	}
	_, err = Init(dir + "/pool")
	if _, ok := errors.AsType[*ExistsError](err); !ok {
		t.Errorf("Init of a pool: %v", err)
	}
}

// TestInitInterrupted: it can be repeated, and nothing takes the half for a pool.
func TestInitInterrupted(t *testing.T) {
	dir := testenv.Btrfs(t)
	for n, done := 0, false; !done; n++ {
		path := fmt.Sprintf("%s/p%d", dir, n)
		testenv.Must(t, os.Mkdir(path, 0o755))
		f, err := openPoolDir(path)
		testenv.Must(t, err)
		left := n
		p := &Pool{dir: f, fault: func(string) error {
			if left--; left < 0 {
				return errCut
			}
			return nil
		}}
		err = p.init()
		done = err == nil
		testenv.Must(t, f.Close())
		if !done && !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		q, err := Open(path)
		if err != nil {
			if e, ok := errors.AsType[*NotPoolError](err); !ok || e.Lost {
				t.Errorf("step %d: %v", n, err)
			}
			q, err = Init(path)
			testenv.Must(t, err)
		}
		if _, err := q.Record(); err != nil {
			t.Errorf("step %d: %v", n, err)
		}
		testenv.Must(t, q.Close())
		if n > 20 {
			t.Fatal("it does not end")
		}
	}
}

func TestOpenWhatIsNoPool(t *testing.T) {
	dir := testenv.Btrfs(t)
	testenv.Must(t, os.Mkdir(dir+"/empty", 0o755))
	testenv.Must(t, os.MkdirAll(dir+"/full/stuff", 0o755))
	for _, d := range []string{"/none", "/empty", "/full"} {
		_, err := Open(dir + d)
		if e, ok := errors.AsType[*NotPoolError](err); !ok || e.Lost {
			t.Errorf("%s: %v", d, err)
		}
	}
	_, err := Init(dir + "/full")
	if _, ok := errors.AsType[*NameError](err); !ok {
		t.Errorf("Init of a full directory: %v", err)
	}
	_, err = Init(testenv.Dir(t) + "/pool")
	if e, ok := errors.AsType[*NotBtrfsError](err); !ok || e.FSType == "" || e.FSType == "btrfs" {
		t.Errorf("Init elsewhere: %v", err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	p, w := standard(t)
	w.Close()
	path := p.Dir() + "/state"
	old, err := os.ReadFile(path)
	testenv.Must(t, err)
	newer := strings.Replace(string(old), `"format": 1`, `"format": 2, "bases": "of another shape"`, 1)
	testenv.Must(t, os.WriteFile(path, []byte(newer), 0o600))
	check := func(what string, err error) {
		t.Helper()
		if e, ok := errors.AsType[*FormatError](err); !ok || e.Have != 2 || e.Know != 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = Open(p.Dir())
	check("Open", err)
	_, err = OpenDamaged(p.Dir())
	check("OpenDamaged", err)
	w = lock(t, p)
	_, err = w.Rebuild(ctx)
	check("Rebuild", err)
	_, err = w.Boot(ctx)
	check("Boot", err)
	_, err = w.Commit(ctx, func(*Record) error { return nil })
	check("Commit", err)
	_, err = w.Collect(ctx, false)
	check("Collect", err)
	testenv.Must(t, w.Close())
	if got, _ := os.ReadFile(path); string(got) != newer {
		t.Error("the state was changed")
	}
}

func TestLock(t *testing.T) {
	p := newPool(t)
	w, err := p.Lock(ctx, "update big.btrovl", 0)
	testenv.Must(t, err)
	start := time.Now()
	_, err = p.Lock(ctx, "gc", 50*time.Millisecond)
	e, ok := errors.AsType[*BusyError](err)
	if !ok || e.PID != os.Getpid() || e.Command != "update big.btrovl" || e.Lock != p.Dir()+"/lock" {
		t.Errorf("got %v", err)
	}
	if time.Since(start) < 50*time.Millisecond {
		t.Error("it did not wait")
	}
	time.AfterFunc(30*time.Millisecond, func() { w.Close() })
	w, err = p.Lock(ctx, "gc", time.Minute)
	testenv.Must(t, err)
	testenv.Must(t, w.Close())
	testenv.Must(t, w.Close())
}

// TestLockDiesWithItsProcess: a killed command blocks nobody.
func TestLockDiesWithItsProcess(t *testing.T) {
	p := newPool(t)
	// --no-fork: flock(1) becomes sleep and keeps the descriptor.
	cmd := exec.Command(testenv.Command(t, "flock"), "--no-fork", p.Dir()+"/lock", "sleep", "60")
	testenv.Must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		w, err := p.Lock(ctx, "probe", 0)
		if err != nil {
			break
		}
		w.Close()
		if time.Now().After(deadline) {
			t.Fatal("flock(1) does not take the lock")
		}
	}
	testenv.Must(t, cmd.Process.Kill())
	cmd.Wait()
	w, err := p.Lock(ctx, "next", 20*time.Second)
	testenv.Must(t, err)
	testenv.Must(t, w.Close())
}

func TestSpace(t *testing.T) {
	p := newPool(t)
	sp, err := p.Space()
	testenv.Must(t, err)
	if sp.Total != 8<<30 || sp.Free < 6<<30 || sp.Free > sp.Total || sp.MetadataFree() < 1<<20 {
		t.Errorf("%+v", sp)
	}
	testenv.Must(t, p.CheckSpace("base 2", 1<<30, 1<<20))
	err = p.CheckSpace("base 2", 1<<40, 0)
	if e, ok := errors.AsType[*NoSpaceError](err); !ok || e.Need != 1<<40 || e.Free != sp.Free && e.Free == 0 {
		t.Errorf("%v", err)
	}
	if err := p.CheckSpace("base 2", 0, 1<<64-1); err == nil {
		t.Error("2^64-1 bytes of metadata fit")
	}
	err = p.CheckSpace("base 2", 0, 1<<40)
	if e, ok := errors.AsType[*NoSpaceError](err); !ok || !strings.Contains(e.What, "metadata") {
		t.Errorf("%v", err)
	}
}

// fill takes all space: of data by one file, of metadata by small ones.
func fill(t *testing.T, dir string) {
	t.Helper()
	testenv.Must(t, os.MkdirAll(dir, 0o755))
	d, err := os.Open(dir)
	testenv.Must(t, err)
	defer d.Close()
	n := 0
	for range 3 { // what a commit gives back is taken again
		f, err := os.Create(fmt.Sprintf("%s/big%d", dir, n))
		if err == nil {
			for size, off := int64(1<<30), int64(0); size >= 4096; size /= 2 {
				for unix.Fallocate(int(f.Fd()), 0, off, size) == nil {
					off += size
				}
			}
			f.Close()
		}
		for ; n < 200000; n++ {
			if os.WriteFile(fmt.Sprintf("%s/%d", dir, n), make([]byte, 2000), 0o644) != nil {
				break
			}
		}
		btrfs.Syncfs(d) // may fail on a full disk
	}
	if err := os.WriteFile(dir+"/last", make([]byte, 2000), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full after %d files: %v", n, err)
	}
}

// TestFullDisk: on a full disk, a boot is counted, a reset works and frees space.
func TestFullDisk(t *testing.T) {
	mnt := testenv.NewBtrfs(t, 256<<20)
	p, err := Init(mnt + "/pool")
	testenv.Must(t, err)
	defer p.Close()
	w := lock(t, p)
	importSystem(t, w, "1", 1)
	addOverlays(t, w)
	_, err = w.EnsureDeployment(ctx, "")
	testenv.Must(t, err)
	stageFrom(t, w, "1", "2", 2)
	_, err = w.Deploy(ctx, Deployment{Base: "2", Reason: "update"}, DeployOptions{Trial: 3})
	testenv.Must(t, err)
	fill(t, file(t, p, "data", "var/lib/app/fill"))
	used := map[string]bool{}
	p.fault = func(step string) error {
		var st unix.Stat_t
		used[step] = unix.Stat(p.Dir()+"/reserve", &st) != nil
		return nil
	}
	for left := 2; left >= 0; left-- {
		c, err := w.Boot(ctx)
		testenv.Must(t, err)
		if !c.Trial || c.TriesLeft != left {
			t.Errorf("boot with %d tries left: %+v", left, c)
		}
	}
	if !used["rename state.new to state"] {
		t.Errorf("the reserve was not needed: %v", used)
	}
	// What reset does.
	r, err := w.Record()
	testenv.Must(t, err)
	ref, err := w.FreshOverlay(ctx, *r.Overlay("data"), "")
	testenv.Must(t, err)
	var refs []OverlayRef
	for _, o := range r.Active().Overlays {
		if o.Name == "data" {
			o = ref
		}
		refs = append(refs, o)
	}
	_, err = w.Deploy(ctx, Deployment{Base: "2", Overlays: refs, Reason: "reset"}, DeployOptions{})
	testenv.Must(t, err)
	_, err = w.MarkGood(ctx)
	testenv.Must(t, err)
	// The wiped overlay is the factory's and the previous deployment's; a second change lets it go.
	_, err = w.AddOverlay(ctx, OverlayDef{Name: "more", Paths: []string{"/opt"}})
	testenv.Must(t, err)
	if _, err = w.Collect(ctx, false); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		testenv.Must(t, btrfs.Sync(p.dir))
		sp, err := p.Space()
		testenv.Must(t, err)
		if sp.Free > 50<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the space is not freed: %+v", sp)
		}
	}
	testenv.Must(t, w.Close())
	var st unix.Stat_t
	w = lock(t, p)
	testenv.Must(t, w.Close()) // whoever closes next, with room again, makes the reserve
	if err := unix.Stat(p.Dir()+"/reserve", &st); err != nil || st.Blocks == 0 {
		t.Errorf("the reserve was not made again: %v", err)
	}
	findings, err := p.Check(ctx, true)
	testenv.Must(t, err)
	for _, f := range findings {
		if f.Severity == "error" {
			t.Errorf("%+v", f)
		}
	}
}
