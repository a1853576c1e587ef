package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
)

// input is a file that is read once from front to back, or standard input for
// "-".
type input struct {
	ctx  context.Context
	name string
	size int64 // -1: unknown
	r    io.Reader
	file *os.File // nil: not ours to close
}

// A pipe that stands still does not keep a signal from ending the command.
func (a *app) input(ctx context.Context, path string) (*input, error) {
	if path == "-" {
		if isTerminal(a.stdin) {
			return nil, usagef("standard input is a terminal: give a file, or pipe one in")
		}
		return &input{ctx: ctx, name: "standard input", size: -1, r: a.stdin}, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, coded(codeUsage, fmt.Errorf("%s does not exist", path))
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = coded(codeUsage, fmt.Errorf("%s is a directory, not a file", path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	in := &input{ctx: ctx, name: path, size: -1, r: f, file: f}
	if st.Mode().IsRegular() {
		in.size = st.Size()
	}
	return in, nil
}

func (in *input) Read(p []byte) (int, error) {
	if err := waitReadable(in.ctx, in.r); err != nil {
		return 0, err
	}
	return in.r.Read(p)
}

// waitReadable returns when a read of r would not block, or ctx has ended.
func waitReadable(ctx context.Context, r io.Reader) error {
	f, ok := r.(*os.File)
	if !ok {
		return ctx.Err()
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, 200)
		if n > 0 || err != nil && err != unix.EINTR {
			return nil // the read says what is wrong
		}
	}
	return ctx.Err()
}

func (in *input) Close() error {
	if in.file == nil {
		return nil
	}
	return in.file.Close()
}

// bundle reads the front of the bundle. keys nil: the signature is not checked.
func (in *input) bundle(keys *bundle.Keyring) (*bundle.Reader, error) {
	br, err := bundle.NewReader(in, keys)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.name, err)
	}
	return br, nil
}
