package fusefs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/overlay"
)

// The view runs in a process of its own: a process that uses its own mount can
// stop itself for good (a page fault holds the processor that would serve it).
// The test binary is that process when serveEnv is set; it takes one JSON request
// a line on stdin.
const serveEnv = "BTROVL_FUSEFS_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		serve()
		return
	}
	testenv.Main(m)
}

// layers is a Config by path.
type layers struct {
	Base   string
	Uppers []upperDir
}

type upperDir struct {
	Name, Dir string
	Paths     []string
	ReadOnly  bool
	Snapshot  bool
}

type request struct {
	Op         string // mount, prepare, switch, discard, freeze, thaw, stats
	Mountpoint string
	Layers     layers
	FreezeMax  time.Duration
	MaxFDs     int
	ReadOnly   bool
	Debug      bool
}

type reply struct {
	Err    string
	Switch SwitchReport
	Stats  Stats
}

func (l layers) open() (c overlay.Config, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			f.Close()
		}
	}
	open := func(p string) *os.File {
		f, e := os.Open(p)
		if e != nil {
			err = e
		}
		files = append(files, f)
		return f
	}
	c.Base = open(l.Base)
	for _, u := range l.Uppers {
		c.Uppers = append(c.Uppers, overlay.Upper{Name: u.Name, Dir: open(u.Dir), Paths: u.Paths, ReadOnly: u.ReadOnly, Snapshot: u.Snapshot})
	}
	return c, done, err
}

func serve() {
	var v *View
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var q request
		var r reply
		err := json.Unmarshal(in.Bytes(), &q)
		if err == nil {
			switch q.Op {
			case "mount":
				var c overlay.Config
				var done func()
				if c, done, err = q.Layers.open(); err == nil {
					var u *overlay.Union
					if u, err = overlay.New(c); err == nil {
						v, err = Mount(q.Mountpoint, u, Options{Logger: log, FreezeMax: q.FreezeMax, MaxFDs: q.MaxFDs, ReadOnly: q.ReadOnly, Debug: q.Debug})
					}
				}
				done()
			case "switch", "prepare":
				var c overlay.Config
				var done func()
				if c, done, err = q.Layers.open(); err == nil && q.Op == "prepare" {
					err = v.Prepare(context.Background(), c)
				} else if err == nil {
					r.Switch, err = v.Switch(context.Background(), c)
				}
				done()
			case "discard":
				v.Discard()
			case "freeze":
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				err = v.Freeze(ctx)
				cancel()
			case "thaw":
				v.Thaw()
			case "stats":
				r.Stats = v.Stats()
			default:
				err = fmt.Errorf("unknown op %q", q.Op)
			}
		}
		if err != nil {
			r.Err = err.Error()
		}
		b, _ := json.Marshal(r)
		fmt.Printf("%s\n", b)
	}
	if v != nil {
		v.Unmount(true)
	}
	os.Exit(0)
}

// server is a view in a child process.
type server struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	mnt string
}

func startServer(t testing.TB, env ...string) *server {
	testenv.FUSE(t)
	s := &server{t: t, cmd: exec.Command("/proc/self/exe")}
	s.cmd.Env = append(append(os.Environ(), serveEnv+"=1"), env...)
	s.cmd.Stderr = os.Stderr
	s.in, _ = s.cmd.StdinPipe()
	out, _ := s.cmd.StdoutPipe()
	s.out = bufio.NewScanner(out)
	s.out.Buffer(nil, 1<<22)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// stop ends the server; if it hangs it is killed, which fails all requests.
func (s *server) stop() {
	s.in.Close()
	if s.mnt != "" {
		unix.Unmount(s.mnt, unix.MNT_DETACH)
	}
	timer := time.AfterFunc(20*time.Second, func() {
		s.t.Error("the server does not end; killed")
		s.cmd.Process.Kill()
	})
	s.cmd.Wait()
	timer.Stop()
}

func (s *server) call(q request) reply {
	s.t.Helper()
	r, err := s.try(q)
	if err != nil {
		s.t.Fatalf("%s: %v", q.Op, err)
	}
	return r
}

func (s *server) try(q request) (r reply, err error) {
	b, _ := json.Marshal(q)
	timer := time.AfterFunc(40*time.Second, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	if _, err := fmt.Fprintf(s.in, "%s\n", b); err != nil {
		return r, err
	}
	if !s.out.Scan() {
		return r, fmt.Errorf("the server ended: %v", s.out.Err())
	}
	if err := json.Unmarshal(s.out.Bytes(), &r); err != nil {
		return r, err
	}
	if r.Err != "" {
		return r, fmt.Errorf("%s", r.Err)
	}
	return r, nil
}

// pool is a base and overlays on btrfs.
type pool struct {
	t   testing.TB
	dir string
	n   int
}

func newPool(t testing.TB) *pool { return &pool{t: t, dir: testenv.Btrfs(t)} }

// base makes a base: script is run by sh in a writable subvolume (a snapshot of
// the base from, or an empty one), then it is made read-only.
func (p *pool) base(from, script string) string {
	p.t.Helper()
	p.n++
	dir := filepath.Join(p.dir, fmt.Sprintf("base%d", p.n))
	if from == "" {
		testenv.Run(p.t, "btrfs", "-q", "subvolume", "create", dir)
	} else {
		testenv.Run(p.t, "btrfs", "-q", "subvolume", "snapshot", from, dir)
	}
	p.sh(dir, script)
	testenv.Run(p.t, "btrfs", "-q", "property", "set", dir, "ro", "true")
	return dir
}

func (p *pool) upper(name string, paths ...string) upperDir {
	p.n++
	dir := filepath.Join(p.dir, fmt.Sprintf("%s.%d", name, p.n))
	testenv.Run(p.t, "btrfs", "-q", "subvolume", "create", dir)
	return upperDir{Name: name, Dir: dir, Paths: paths}
}

// snapshot makes a writable snapshot of an overlay.
func (p *pool) snapshot(u upperDir) upperDir {
	p.n++
	dir := filepath.Join(p.dir, fmt.Sprintf("%s.%d", u.Name, p.n))
	testenv.Run(p.t, "btrfs", "-q", "subvolume", "snapshot", u.Dir, dir)
	u.Dir = dir
	return u
}

func (p *pool) sh(dir, script string) string {
	p.t.Helper()
	out, err := sh(dir, script)
	if err != nil {
		p.t.Fatalf("in %s: %s\n%v\n%s", dir, script, err, out)
	}
	return out
}

func sh(dir, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return strings.TrimRight(string(out), "\n"), err
}

// mount mounts the layers in a new server.
func (p *pool) mount(l layers) *server {
	p.t.Helper()
	return p.mountWith(request{Layers: l})
}

func (p *pool) mountWith(q request, env ...string) *server {
	p.t.Helper()
	s := startServer(p.t, env...)
	q.Op, q.Mountpoint = "mount", testenv.Dir(p.t)
	s.call(q)
	s.mnt = q.Mountpoint
	return s
}

func (s *server) stats() Stats { s.t.Helper(); return s.call(request{Op: "stats"}).Stats }

// requests returns how many requests of each kind fn causes.
func (s *server) requests(fn func()) map[string]uint64 {
	s.t.Helper()
	before := s.stats()
	fn()
	m := map[string]uint64{}
	for _, o := range s.stats().Ops {
		m[o.Op] = o.Count
	}
	for _, o := range before.Ops {
		if m[o.Op] -= o.Count; m[o.Op] == 0 {
			delete(m, o.Op)
		}
	}
	return m
}

// eq compares what a script prints with what it should.
func (s *server) eq(script, want string) {
	s.t.Helper()
	got, err := sh(s.mnt, script)
	if err != nil {
		got += fmt.Sprintf(" [%v]", err)
	}
	if got != want {
		s.t.Errorf("%s:\n got %q\nwant %q", script, got, want)
	}
}
