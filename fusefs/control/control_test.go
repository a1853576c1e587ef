package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// long is more than any step here takes on a loaded machine.
const long = 30 * time.Second

// serve starts a server in a directory of its own and returns the socket's path.
func serve(t *testing.T, h Handler) (*Server, string) {
	t.Helper()
	// t.TempDir contains the test's name: a socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "pool", "1.sock")
	s, err := Listen(path, h)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := within(t, done); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, path
}

func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(long):
		t.Fatal("nothing happened")
		panic("unreachable")
	}
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

type echo struct{ Text string }

func echoHandler(_ context.Context, r *Request) (any, error) {
	switch r.Op {
	case "echo":
		var a echo
		if err := r.Args(&a); err != nil {
			return nil, err
		}
		return a, nil
	case "refuse":
		return nil, fmt.Errorf("cannot do it: %w", &Error{Code: "busy", Message: "the view is frozen"})
	case "whoami":
		return r.Peer, nil
	case "huge":
		return strings.Repeat("x", MaxResponse), nil
	}
	return nil, UnknownOp(r.Op)
}

func TestCall(t *testing.T) {
	_, path := serve(t, echoHandler)
	c := dial(t, path)
	for _, text := range []string{"", "hello", "line\nbreak \x00 ünï", strings.Repeat("x", MaxRequest-100)} {
		var got echo
		if err := c.Call(t.Context(), "echo", echo{text}, &got); err != nil {
			t.Fatal(err)
		}
		if got.Text != text {
			t.Fatalf("%d bytes came back as %d", len(text), len(got.Text))
		}
	}
	if err := c.Call(t.Context(), "echo", nil, nil); err != nil {
		t.Error(err)
	}
	var p Peer
	if err := c.Call(t.Context(), "whoami", nil, &p); err != nil || p.PID != os.Getpid() || int(p.UID) != os.Geteuid() {
		t.Errorf("peer %+v, %v", p, err)
	}
	if p, err := c.Peer(); err != nil || p.PID != os.Getpid() {
		t.Errorf("the server is %+v, %v", p, err)
	}
}

func TestErrorsLeaveTheConnection(t *testing.T) {
	_, path := serve(t, echoHandler)
	c := dial(t, path)
	for _, tc := range []struct {
		op, code, message string
		args              any
	}{
		{"refuse", "busy", "cannot do it: the view is frozen", nil},
		{"nosuch", CodeUnknownOp, "nosuch", nil},
		{"echo", CodeMalformed, "arguments", map[string]int{"Text": 7}},
		{"huge", "", "at most", nil},
	} {
		err := c.Call(t.Context(), tc.op, tc.args, nil)
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != tc.code || !strings.Contains(e.Message, tc.message) {
			t.Errorf("%s: %v, expected code %q and %q", tc.op, err, tc.code, tc.message)
		}
	}
	if err := c.Call(t.Context(), "echo", map[string]string{"Text": strings.Repeat("x", MaxRequest)}, nil); err == nil {
		t.Error("a request that is too long was sent")
	}
	if err := c.Call(t.Context(), "echo", echo{"still"}, nil); err != nil {
		t.Error(err)
	}
}

func TestModes(t *testing.T) {
	_, path := serve(t, echoHandler)
	for p, want := range map[string]uint32{path: 0o600, filepath.Dir(path): 0o700} {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o777 != want {
			t.Errorf("%s has mode %o, expected %o", p, st.Mode&0o777, want)
		}
	}
	open := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if s, err := Listen(filepath.Join(open, "s.sock"), echoHandler); err == nil {
		s.Close()
		t.Error("a directory that others can enter was accepted")
	}
	link := filepath.Join(t.TempDir(), "l")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		t.Fatal(err)
	}
	if s, err := Listen(filepath.Join(link, "s.sock"), echoHandler); err == nil {
		s.Close()
		t.Error("a symbolic link was accepted as directory")
	}
}

// Another user gets no answer even where the modes were opened.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("BTROVL_TEST_ALL") == "1" {
			t.Fatal("this test needs root")
		}
		t.Skip("this test needs root")
	}
	_, path := serve(t, echoHandler)
	for _, p := range []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	// The test binary itself may lie where nobody can read it; stay in this process.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperProcess$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "CONTROL_SOCKET="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("refused")) {
		t.Errorf("another user was answered: %s", out)
	}
}

func TestHelperProcess(t *testing.T) {
	path := os.Getenv("CONTROL_SOCKET")
	if path == "" {
		t.Skip("runs only as a child of TestOtherUser")
	}
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	if err := c.Call(ctx, "echo", nil, nil); err != nil && ctx.Err() == nil {
		fmt.Println("refused")
	}
}

// A peer that dies while it holds something must not hold it for ever.
func TestPeerDies(t *testing.T) {
	thawed := make(chan string, 3)
	running := make(chan struct{})
	_, path := serve(t, func(ctx context.Context, r *Request) (any, error) {
		switch r.Op {
		case "freeze":
			r.OnClose("freeze", func() { thawed <- "replaced" })
			r.OnClose("freeze", func() { thawed <- "freeze" })
			r.OnClose("other", func() { thawed <- "other" })
		case "thaw":
			r.OnClose("other", nil)
		case "wait":
			close(running)
			<-ctx.Done()
			thawed <- "cancelled"
			return nil, ctx.Err()
		}
		return nil, nil
	})
	c := dial(t, path)
	for _, op := range []string{"freeze", "thaw"} {
		if err := c.Call(t.Context(), op, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	called := make(chan error, 1)
	go func() { called <- c.Call(context.Background(), "wait", nil, nil) }()
	within(t, running)
	c.Close()
	if err := within(t, called); err == nil {
		t.Error("a call on a closed connection succeeded")
	}
	if got := within(t, thawed); got != "cancelled" {
		t.Errorf("first %q, expected the running request to be cancelled", got)
	}
	if got := within(t, thawed); got != "freeze" {
		t.Errorf("then %q, expected freeze", got)
	}
	select {
	case got := <-thawed:
		t.Errorf("%q ran too", got)
	default:
	}
}

func TestCallTimeout(t *testing.T) {
	_, path := serve(t, func(ctx context.Context, r *Request) (any, error) {
		<-ctx.Done()
		return nil, nil
	})
	c := dial(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Call(ctx, "wait", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, expected the deadline", err)
	}
	if err := c.Call(t.Context(), "wait", nil, nil); err == nil {
		t.Error("the connection is used after an answer was given up")
	}
}

func TestRawLines(t *testing.T) {
	_, path := serve(t, echoHandler)
	for _, tc := range []struct {
		name, send, code string
		closed           bool
	}{
		{"garbage", "GET / HTTP/1.1\n", CodeMalformed, true},
		{"array", "[]\n", CodeMalformed, true},
		{"no version", `{"op":"echo"}` + "\n", CodeMalformed, true},
		{"newer", `{"v":2,"op":["echo"]}` + "\n", CodeVersion, false},
		{"two values", `{"v":1,"op":"echo"}{"v":1}` + "\n", CodeMalformed, true},
		{"op", `{"v":1,"op":"../x"}` + "\n", CodeMalformed, true},
		{"args", `{"v":1,"op":"echo","args":[1]}` + "\n", CodeMalformed, true},
		{"too long", strings.Repeat(" ", MaxRequest+2) + "\n", CodeMalformed, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nc, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(long))
			nc.Write([]byte(tc.send)) // fails where the server stopped reading
			r := bufio.NewReader(nc)
			line, err := r.ReadBytes('\n')
			if err != nil {
				t.Fatal(err)
			}
			var m message
			if err := json.Unmarshal(line, &m); err != nil || m.Error == nil || m.Error.Code != tc.code {
				t.Fatalf("%s, expected code %q", line, tc.code)
			}
			nc.Write([]byte(`{"v":1,"op":"echo"}` + "\n"))
			_, err = r.ReadBytes('\n')
			if closed := err != nil; closed != tc.closed {
				t.Errorf("closed: %v, expected %v", closed, tc.closed)
			}
		})
	}
}

func TestPipelined(t *testing.T) {
	_, path := serve(t, echoHandler)
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(long))
	go func() {
		for i := range 100 {
			fmt.Fprintf(nc, `{"v":1,"op":"echo","args":{"Text":"%d"}}`+"\n", i)
		}
	}()
	r := bufio.NewReader(nc)
	for i := range 100 {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(`{"v":1,"result":{"Text":"%d"}}`+"\n", i); line != want {
			t.Fatalf("%s, expected %s", line, want)
		}
	}
}

func TestManyClients(t *testing.T) {
	var n atomic.Int32
	_, path := serve(t, func(_ context.Context, r *Request) (any, error) { return n.Add(1), nil })
	var wg sync.WaitGroup
	for range 3 * maxConns {
		wg.Go(func() {
			c, err := Dial(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for range 5 {
				if err := c.Call(t.Context(), "count", nil, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := n.Load(); got != 15*maxConns {
		t.Errorf("%d requests were served, expected %d", got, 15*maxConns)
	}
}

func TestStaleAndLiveSockets(t *testing.T) {
	s, path := serve(t, echoHandler)
	if s2, err := Listen(path, echoHandler); err == nil {
		s2.Close()
		t.Fatal("a live socket was taken over")
	}
	stale := filepath.Join(filepath.Dir(path), "2.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "note.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(stale); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("Dial of a dead daemon: %v", err)
	}
	live, err := List(filepath.Dir(path))
	if err != nil || len(live) != 1 || live[0] != path {
		t.Errorf("List: %v, %v", live, err)
	}
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead socket is still there: %v", err)
	}
	s.Close()
	if _, err := Dial(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Dial after Close: %v", err)
	}
	if live, err := List(filepath.Join(filepath.Dir(path), "none")); live != nil || err != nil {
		t.Errorf("List of nothing: %v, %v", live, err)
	}
}

func TestCloseCancelsAndWaits(t *testing.T) {
	running := make(chan struct{})
	var ended atomic.Bool
	s, path := serve(t, func(ctx context.Context, r *Request) (any, error) {
		close(running)
		<-ctx.Done()
		ended.Store(true)
		return nil, &Error{Code: CodeCancelled, Message: "the daemon ends"}
	})
	c := dial(t, path)
	called := make(chan error, 1)
	go func() { called <- c.Call(context.Background(), "wait", nil, nil) }()
	within(t, running)
	s.Close()
	if !ended.Load() {
		t.Error("Close did not wait for the handler")
	}
	if e, ok := errors.AsType[*Error](within(t, called)); !ok || e.Code != CodeCancelled {
		t.Errorf("the answer of the cancelled request was lost: %v", e)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		`{"v":1,"op":"status"}`,
		`{"v":1,"op":"switch","args":{"base":"/mnt/pool/bases/2"}}`,
		`{"v":2}`, `{"v":1e3,"op":"x"}`, `{"v":1,"op":"a","args":null}`, `{"V":1,"OP":"a"}`, `[]`, ``, `{"v":1,"op":"a"}{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseRequest(line)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("%T", err)
			}
			if m != nil {
				t.Fatal("both a request and an error")
			}
			if b := response(nil, err); bytes.Count(b, []byte("\n")) != 1 {
				t.Fatalf("an error of several lines: %q", b)
			}
			return
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if m2, err := parseRequest(b); err != nil || m2.Op != m.Op {
			t.Fatalf("%q does not survive: %v", line, err)
		}
	})
}
