package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/btrovl/btrovl/delta/bundle"
)

// input is a file that is read once from front to back, or standard input for
// "-". It counts the bytes given out, for progress.
type input struct {
	name string
	size int64 // -1: unknown
	r    io.Reader
	file *os.File // nil: not ours to close
	read atomic.Int64
}

func (a *app) input(path string) (*input, error) {
	if path == "-" {
		if isTerminal(a.stdin) {
			return nil, usagef("standard input is a terminal: give a file, or pipe one in")
		}
		return &input{name: "standard input", size: -1, r: a.stdin}, nil
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
	in := &input{name: path, size: -1, r: f, file: f}
	if st.Mode().IsRegular() {
		in.size = st.Size()
	}
	return in, nil
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	in.read.Add(int64(n))
	return n, err
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
