package viewtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/fusefs"
	"github.com/btrovl/btrovl/fusefs/control"
	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/overlay"
)

// serveEnv tells a process of this test binary that it serves a view. No test
// shares a process with the view that it uses: a process that waits for itself can
// not be stopped, and one that dies takes its mount along instead of the tests.
const serveEnv = "BTROVL_VIEWTEST_SERVE"

// serveSpec says what to serve, and is the argument of a switch.
type serveSpec struct {
	Mountpoint string
	Socket     string
	ReadOnly   bool
	Base       string
	Uppers     []upperSpec
}

type upperSpec struct {
	Name     string
	Dir      string
	Paths    []string
	Snapshot bool // of what is shown, taken while frozen
}

func TestMain(m *testing.M) {
	ActorMain()
	if spec := os.Getenv(serveEnv); spec != "" {
		if err := serve([]byte(spec)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testenv.Main(m)
}

// config opens the layers of a spec.
func (s *serveSpec) config() (c overlay.Config, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			f.Close()
		}
	}
	open := func(path string) *os.File {
		f, oerr := os.Open(path)
		err = errors.Join(err, oerr)
		files = append(files, f)
		return f
	}
	c.Base = open(s.Base)
	for _, u := range s.Uppers {
		c.Uppers = append(c.Uppers, overlay.Upper{Name: u.Name, Dir: open(u.Dir), Paths: u.Paths, Snapshot: u.Snapshot})
	}
	return c, done, err
}

func serve(b []byte) error {
	var spec serveSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	c, done, err := spec.config()
	if err != nil {
		return err
	}
	u, err := overlay.New(c)
	done()
	if err != nil {
		return err
	}
	var released atomic.Int32
	v, err := fusefs.Mount(spec.Mountpoint, u, fusefs.Options{
		ReadOnly: spec.ReadOnly, MountFlags: unix.MS_NOATIME,
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Released: func(string) { released.Add(1) },
	})
	if err != nil {
		return err
	}
	srv, err := control.Listen(spec.Socket, func(ctx context.Context, r *control.Request) (any, error) {
		switch r.Op {
		case "switch", "prepare":
			var next serveSpec
			if err := r.Args(&next); err != nil {
				return nil, err
			}
			c, done, err := next.config()
			if err != nil {
				return nil, err
			}
			defer done()
			if r.Op == "prepare" {
				return nil, v.Prepare(ctx, c)
			}
			return v.Switch(ctx, c)
		case "freeze":
			return nil, v.Freeze(ctx)
		case "thaw":
			v.Thaw()
			return nil, nil
		case "stats":
			return v.Stats(), nil
		case "released":
			return released.Load(), nil
		case "unmount":
			return nil, v.Unmount(false)
		}
		return nil, control.UnknownOp(r.Op)
	})
	if err != nil {
		return errors.Join(err, v.Unmount(true))
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	fmt.Println("ready")
	v.Wait()
	srv.Close()
	return errors.Join(<-served, u.Close())
}

// viewProcess is a view that another process serves.
type viewProcess struct {
	spec   serveSpec
	cmd    *exec.Cmd
	client *control.Client
	exited chan struct{}
	log    *logBuffer
}

// logBuffer keeps what the server writes.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.b.Bytes()
	return string(b[:min(len(b), 1<<16)])
}

// startView mounts a view in another process.
func startView(ctx context.Context, spec serveSpec) (*viewProcess, error) {
	if err := os.MkdirAll(spec.Mountpoint, 0o755); err != nil {
		return nil, err
	}
	// A socket's path is short; the mount point's may not be.
	dir, err := os.MkdirTemp("", "view")
	if err != nil {
		return nil, err
	}
	spec.Socket = filepath.Join(dir, "s")
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	p := &viewProcess{spec: spec, exited: make(chan struct{}), log: &logBuffer{}}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), serveEnv+"="+string(b), "GOTRACEBACK=1")
	p.cmd.Stderr = p.log
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer pr.Close()
	p.cmd.Stdout = pw
	err = p.cmd.Start()
	pw.Close()
	if err != nil {
		return nil, err
	}
	go func() { p.cmd.Wait(); close(p.exited) }()
	ready := make([]byte, len("ready\n"))
	pr.SetReadDeadline(time.Now().Add(Patience))
	if _, err := pr.Read(ready); err != nil || string(ready) != "ready\n" {
		p.kill()
		return nil, fmt.Errorf("the view did not start: %v\n%s", err, p.log)
	}
	if p.client, err = control.Dial(spec.Socket); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// kill ends the server and its mount, whatever state they are in. The server
// writes first what its goroutines are doing.
func (p *viewProcess) kill() {
	p.cmd.Process.Signal(unix.SIGQUIT)
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.exited // a server that runs no request of its own always dies
	}
	unix.Unmount(p.spec.Mountpoint, unix.MNT_DETACH)
	os.RemoveAll(filepath.Dir(p.spec.Socket))
}

func (p *viewProcess) call(ctx context.Context, op string, args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return p.client.Call(ctx, op, args, result)
}

// stop unmounts the view and waits for the server's end.
func (p *viewProcess) stop() error {
	var err error
	for range 50 { // EBUSY for a moment after a user's death
		err = p.call(context.Background(), "unmount", nil, nil)
		if _, ok := errors.AsType[*control.Error](err); !ok {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.client.Close()
	if err == nil {
		select {
		case <-p.exited:
			os.RemoveAll(filepath.Dir(p.spec.Socket))
			if !p.cmd.ProcessState.Success() {
				return fmt.Errorf("the view's server: %v\n%s", p.cmd.ProcessState, p.log)
			}
			return nil
		case <-time.After(Patience):
			err = errors.New("it did not end after unmounting")
		}
	}
	p.kill()
	return fmt.Errorf("the view's server: %w\n%s", err, p.log)
}

// View is btrovl's own view as a target.
func View() Target {
	return Target{Name: "view", Mount: func(ctx context.Context, l Layers, mnt string) (*Mounted, error) {
		p, err := startView(ctx, serveSpec{Mountpoint: mnt, Base: l.Base, Uppers: []upperSpec{{Name: "system", Dir: l.Upper, Paths: []string{"/"}}}})
		if err != nil {
			return nil, err
		}
		return &Mounted{Root: mnt, Unmount: p.stop}, nil
	}}
}
