// Package control is how a command talks to the process that serves a view: a
// unix socket on which the daemon answers one JSON line for each JSON line.
//
//	/run/btrovl/<pool>/        0700, root's
//	    <pid>.sock             0600
//
//	command → daemon   {"v":1,"op":"switch","args":{…}}\n
//	daemon → command   {"v":1,"result":{…}}\n            it was done
//	                   {"v":1,"error":{"code":"busy","message":"…"}}\n
//
// A connection carries any number of requests, one after the other. What an op
// means, and which there are, is the [Handler]'s business.
//
// # Who may connect
//
// Root, and the user that the daemon runs as (which is root outside tests). The
// modes keep others out, and the kernel's word on the peer (SO_PEERCRED) is asked
// before a byte is read.
//
// # Bounds
//
// A request has at most [MaxRequest] bytes and arrives within ten seconds of its
// first one; a response has at most [MaxResponse]; a peer that does not take its
// response within ten seconds is dropped; sixteen peers are served at once and a
// further one waits in the socket's queue.
//
// # A peer that dies
//
// The context of its running request is cancelled, and what it registered with
// [Request.OnClose] runs. So a command that is killed between freeze and thaw
// leaves no frozen view: the daemon thaws when the connection ends.
//
// # Lock order
//
// Server.mu guards the set of connections; no callback runs under it. Each
// connection is served by one goroutine, with a second one that reads ahead by one
// request in order to notice the end of the connection; [Server.Close] waits for all.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Version of the line format. A peer that speaks another one gets an [Error] with
// [CodeVersion], in a line whose "v", "error", "code" and "message" never change.
const Version = 1

// Limits, in bytes of one line without its newline.
const (
	MaxRequest  = 1 << 20
	MaxResponse = 16 << 20
)

// Codes that this package itself uses. A handler chooses its own beside them.
const (
	CodeVersion   = "version"    // the peer speaks another version
	CodeMalformed = "malformed"  // not a request; the connection is closed
	CodeUnknownOp = "unknown-op" // what a handler returns for an op that it lacks
	CodeCancelled = "cancelled"  // the daemon is shutting down
)

// Error is a refusal that crossed the socket. A handler that returns one (wrapped
// or not) decides the code; any other error crosses with an empty code. The caller
// of [Client.Call] branches on Code.
type Error struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// UnknownOp is the error of a handler that does not know an operation.
func UnknownOp(op string) *Error {
	return &Error{Code: CodeUnknownOp, Message: fmt.Sprintf("the daemon of this view does not know the request %q; it may be of an older version: mount the view again", op)}
}

// message is a request, or a response, on the wire.
type message struct {
	V      int             `json:"v"`
	Op     string          `json:"op,omitempty"`
	Args   json.RawMessage `json:"args,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// parseRequest reads one line, without its newline. Its errors are *Error.
func parseRequest(line []byte) (*message, error) {
	if len(line) > MaxRequest {
		return nil, &Error{CodeMalformed, fmt.Sprintf("a request of more than %d bytes", MaxRequest)}
	}
	var m message
	// The version comes first: the rest of another version's line may look different.
	var v struct {
		V *int `json:"v"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return nil, &Error{CodeMalformed, "not a request: " + err.Error()}
	}
	if v.V == nil {
		return nil, &Error{CodeMalformed, `not a request: it has no version ("v")`}
	}
	if *v.V != Version {
		return nil, &Error{CodeVersion, fmt.Sprintf("the request has version %d, this daemon speaks version %d: use the btrovl that mounted the view, or mount it again", *v.V, Version)}
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return nil, &Error{CodeMalformed, "not a request: " + err.Error()}
	}
	if m.Op == "" || len(m.Op) > 64 || strings.ContainsFunc(m.Op, func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') }) {
		return nil, &Error{CodeMalformed, "not a request: an op is 1 to 64 lower-case letters and dashes"}
	}
	if len(m.Args) > 0 && !bytes.Equal(m.Args, []byte("null")) && m.Args[0] != '{' {
		return nil, &Error{CodeMalformed, "not a request: args is not an object"}
	}
	return &m, nil
}

// response makes the line, with its newline, that answers a request.
func response(result any, err error) []byte {
	m := message{V: Version}
	if err == nil {
		if m.Result, err = json.Marshal(result); err == nil && len(m.Result) > MaxResponse/2 {
			err = fmt.Errorf("the answer has %d bytes, at most %d are sent", len(m.Result), MaxResponse/2)
		}
	}
	if err != nil {
		m.Result, m.Error = nil, &Error{Message: err.Error()}
		if e, ok := errors.AsType[*Error](err); ok {
			m.Error.Code = e.Code
		}
		if len(m.Error.Message) > MaxResponse/16 { // escapes take up to six bytes
			m.Error.Message = m.Error.Message[:MaxResponse/16]
		}
	}
	line, err := json.Marshal(&m)
	if err != nil { // a result that was marshalled once cannot fail here
		line = []byte(`{"v":1,"error":{"message":"the answer cannot be written as JSON"}}`)
	}
	return append(line, '\n')
}

// List returns the paths of the sockets in dir whose daemon lives, and removes
// those whose daemon is dead. A directory that does not exist has none.
func List(dir string) ([]string, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the views' sockets: %w", err)
	}
	var live []string
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		if !strings.HasSuffix(path, ".sock") || n.Type() != os.ModeSocket {
			continue
		}
		if dead, err := removeDead(path); err == nil && !dead {
			live = append(live, path)
		}
	}
	return live, nil
}

// removeDead removes the socket at path if no process listens on it, and says
// whether there is none (any more).
func removeDead(path string) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case nil, unix.EAGAIN: // listening; EAGAIN: and its queue is full
		return false, nil
	case unix.ENOENT:
		return true, nil
	case unix.ECONNREFUSED:
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		return true, nil
	default:
		return false, &os.PathError{Op: "connect", Path: path, Err: err}
	}
}
