package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Handler does one request and returns what is sent back as its result (nil sends
// null). The context ends when the peer goes away or the server closes. Requests of
// different connections run at the same time.
type Handler func(ctx context.Context, r *Request) (result any, err error)

// Request is one request of a peer.
type Request struct {
	Op   string
	Peer Peer

	args json.RawMessage
	conn *conn
}

// Peer is the process at the other end when it connected, as the kernel says.
type Peer struct {
	PID int
	UID uint32
	GID uint32
}

// Args decodes the request's arguments into v; absent ones leave it as it is.
func (r *Request) Args(v any) error {
	if len(r.args) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.args, v); err != nil {
		return &Error{CodeMalformed, fmt.Sprintf("the arguments of %q: %v", r.Op, err)}
	}
	return nil
}

// OnClose lets f run once when the connection of this request ends, for whatever
// reason, after its running request has returned. A second call with the same key
// replaces the first one's function; nil takes it back.
func (r *Request) OnClose(key string, f func()) {
	r.conn.mu.Lock()
	defer r.conn.mu.Unlock()
	if f == nil {
		delete(r.conn.onClose, key)
		return
	}
	if r.conn.onClose == nil {
		r.conn.onClose = map[string]func(){}
	}
	r.conn.onClose[key] = f
}

// Timeouts of a server, in the order in which a connection meets them.
const (
	lineTime  = 10 * time.Second // from the first byte of a request to its last
	writeTime = 10 * time.Second // for a response
	maxConns  = 16
)

// Server answers on one socket.
type Server struct {
	path   string
	ln     *net.UnixListener
	handle Handler
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{} // one element for each connection being served

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{}
	wg     sync.WaitGroup // Serve, and one for each connection
}

// Listen makes the socket, and its directory (0700) where there is none. A socket
// that a dead process left at the path is replaced; a live one is an error.
// Nothing is answered before [Server.Serve] runs.
func Listen(path string, h Handler) (*Server, error) {
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("cannot make the control socket: %w", err)
	}
	if dead, err := removeDead(path); err != nil {
		return nil, fmt.Errorf("cannot make the control socket: %w", err)
	} else if !dead {
		return nil, fmt.Errorf("cannot make the control socket: another process listens on %s", path)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot make the control socket: %w", err)
	}
	// Between bind and here the directory's mode keeps others out.
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("cannot make the control socket: %w", err)
	}
	s := &Server{path: path, ln: ln, handle: h, slots: make(chan struct{}, maxConns), conns: map[*conn]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// privateDir makes sure that dir is a directory that only its owner, this
// process's user, can enter.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, expected %d: remove it", dir, st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return fmt.Errorf("%s has mode %04o, expected 0700: others could reach the socket; run chmod 0700 on it, or remove it", dir, st.Mode&0o7777)
	}
	return nil
}

// Path returns where the socket is.
func (s *Server) Path() string { return s.path }

// Serve answers until [Server.Close]; then it returns nil.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			return nil
		}
		nc, err := s.ln.AcceptUnix()
		if err != nil {
			<-s.slots
			if s.ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				time.Sleep(50 * time.Millisecond) // passes; the view must not lose its socket for it
				continue
			}
			return fmt.Errorf("the control socket %s failed: %w", s.path, err)
		}
		s.start(nc)
	}
}

func (s *Server) start(nc *net.UnixConn) {
	peer, err := peerOf(nc)
	if err != nil || (peer.UID != 0 && int(peer.UID) != os.Geteuid()) {
		nc.Close()
		<-s.slots
		return
	}
	c := &conn{nc: nc, peer: peer}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		<-s.slots
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		c.serve(s.ctx, s.handle)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		<-s.slots
	})
}

// Close stops the server: it removes the socket, cancels running requests, waits
// for their handlers, and runs what OnClose left. A handler must not call it.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closed = true
	s.cancel()
	err := s.ln.Close() // unlinks the socket too
	for c := range s.conns {
		c.nc.CloseRead() // the answer of a running request still goes out
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

func peerOf(nc *net.UnixConn) (Peer, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if cerr != nil {
		return Peer{}, cerr
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

// conn is one connection.
type conn struct {
	nc   *net.UnixConn
	peer Peer

	mu      sync.Mutex
	onClose map[string]func()
}

// serve answers the requests of one connection, in their order.
func (c *conn) serve(ctx context.Context, h Handler) {
	ctx, cancel := context.WithCancel(ctx)
	lines := make(chan []byte) // unbuffered: the reader holds at most one request
	readErr := make(chan error, 1)
	go func() {
		readErr <- c.read(ctx, lines)
		cancel() // the peer is gone, or talks nonsense: its running request is pointless
		close(lines)
	}()
	for line := range lines {
		r, err := c.request(line)
		var result any
		if err == nil {
			result, err = h(ctx, r)
		}
		c.nc.SetWriteDeadline(time.Now().Add(writeTime))
		if _, werr := c.nc.Write(response(result, err)); werr != nil {
			break
		}
		if e, ok := errors.AsType[*Error](err); ok && e.Code == CodeMalformed && r == nil {
			break // the two ends no longer agree where lines begin
		}
	}
	cancel()
	c.nc.CloseRead() // ends the reader
	for range lines {
	}
	if err := <-readErr; errors.Is(err, bufio.ErrTooLong) {
		c.nc.SetWriteDeadline(time.Now().Add(writeTime))
		c.nc.Write(response(nil, &Error{CodeMalformed, fmt.Sprintf("a request of more than %d bytes", MaxRequest)}))
	}
	c.nc.Close()
	c.mu.Lock()
	fs := c.onClose
	c.onClose = nil
	c.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

func (c *conn) request(line []byte) (*Request, error) {
	m, err := parseRequest(line)
	if err != nil {
		return nil, err
	}
	return &Request{Op: m.Op, Peer: c.peer, args: m.Args, conn: c}, nil
}

// read sends each line of the connection to lines, until the connection ends.
func (c *conn) read(ctx context.Context, lines chan<- []byte) error {
	r := bufio.NewReader(c.nc)
	for {
		c.nc.SetReadDeadline(time.Time{}) // a peer may hold a frozen view as long as it lives
		if _, err := r.Peek(1); err != nil {
			return err
		}
		c.nc.SetReadDeadline(time.Now().Add(lineTime))
		line, err := readLine(r, MaxRequest)
		if err != nil {
			return err
		}
		select {
		case lines <- line:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readLine reads to the next newline, which it drops. A longer line than limit is
// bufio.ErrTooLong, and no more than limit bytes are ever held.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit+1 {
			return nil, bufio.ErrTooLong
		}
		line = append(line, part...)
		switch err {
		case nil:
			return line[:len(line)-1], nil
		case bufio.ErrBufferFull:
		case io.EOF:
			if len(line) > 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, io.EOF
		default:
			return nil, err
		}
	}
}
