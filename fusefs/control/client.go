package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Client is a connection to a daemon. Its calls run one after the other.
type Client struct {
	path string
	nc   *net.UnixConn

	mu     sync.Mutex // held for a whole call
	r      *bufio.Reader
	broken error // why no further call is possible
}

// Dial connects to the daemon that listens at path. Where none does, the error
// is os.ErrNotExist (no socket) or unix.ECONNREFUSED (its daemon is dead).
func Dial(path string) (*Client, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	nc, err := d.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the view's daemon: %w", err)
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("cannot reach the view's daemon: %s is not a unix socket", path)
	}
	return &Client{path: path, nc: uc, r: bufio.NewReader(uc)}, nil
}

// Peer returns the process that made the socket.
func (c *Client) Peer() (Peer, error) { return peerOf(c.nc) }

// Close ends the connection; what its requests registered with OnClose runs in the daemon.
func (c *Client) Close() error { return c.nc.Close() }

// Call asks the daemon for op and decodes its result into result (which may be
// nil). It waits as long as the context allows. A refusal by the daemon is an
// *Error, after which the connection is as good as before; after any other error
// the connection is closed, because an answer may still be under way.
func (c *Client) Call(ctx context.Context, op string, args, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return fmt.Errorf("cannot ask the view's daemon for %q: an earlier request failed: %w", op, c.broken)
	}
	m := message{V: Version, Op: op}
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return fmt.Errorf("cannot ask the view's daemon for %q: %w", op, err)
		}
		m.Args = b
	}
	line, err := json.Marshal(&m)
	if err != nil {
		return fmt.Errorf("cannot ask the view's daemon for %q: %w", op, err)
	}
	if len(line) > MaxRequest {
		return fmt.Errorf("cannot ask the view's daemon for %q: the request has %d bytes, at most %d are possible", op, len(line), MaxRequest)
	}
	answer, err := c.exchange(ctx, append(line, '\n'))
	if err != nil {
		c.broken = err
		c.nc.Close()
		return fmt.Errorf("cannot ask the view's daemon for %q: %w", op, err)
	}
	if answer.Error != nil {
		return answer.Error
	}
	if answer.V != Version {
		return &Error{CodeVersion, fmt.Sprintf("the view's daemon answers in version %d, this btrovl speaks version %d: use the btrovl that mounted the view, or mount it again", answer.V, Version)}
	}
	if result != nil && len(answer.Result) > 0 {
		if err := json.Unmarshal(answer.Result, result); err != nil {
			return fmt.Errorf("cannot read what the view's daemon says to %q: %w", op, err)
		}
	}
	return nil
}

// exchange sends a line and reads one.
func (c *Client) exchange(ctx context.Context, line []byte) (*message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.nc.SetDeadline(time.Time{})
	// A deadline in the past wakes a blocked Read or Write.
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, werr := c.nc.Write(line)
	// Read even after a failed write: a daemon that refused says why.
	got, err := readLine(c.r, MaxResponse)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if werr != nil {
			return nil, werr
		}
		return nil, err
	}
	var m message
	if err := json.Unmarshal(got, &m); err != nil {
		return nil, err
	}
	return &m, nil
}
