package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// destination looks at where output is to go before any work is done: to a file, whose name is returned with links
// followed, or with stored false to standard output ("-"), a device or a pipe, which are written to as they are.
func (a *app) destination(path string) (file string, stored bool, err error) {
	if path == "-" {
		if isTerminal(a.stdout) {
			return "", false, usagef("standard output is a terminal: name a file with --output, or pipe it on")
		}
		return path, false, nil
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		dir := filepath.Dir(path)
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return "", false, usagef("cannot write %s: there is no directory %s", path, dir)
		}
		return path, true, nil
	case err != nil:
		return "", false, err
	case st.IsDir():
		return "", false, usagef("cannot write %s: it is a directory; name a file in it", path)
	case !st.Mode().IsRegular():
		return path, false, nil
	}
	file, err = filepath.EvalSymlinks(path)
	return file, true, err
}

// output lets fn write to a destination. A file has its name only when it is complete and on stable storage.
func (a *app) output(path string, fn func(w io.Writer) error) error {
	path, stored, err := a.destination(path)
	if err != nil {
		return err
	}
	if path == "-" {
		return fn(a.stdout)
	}
	if !stored {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := fn(f); err != nil {
			return err
		}
		return f.Close()
	}
	// In the directory of the target: by itself renameio tries $TMPDIR first.
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o600), renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if err := fn(f); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return syncParent(path)
}

// syncParent makes a new name durable.
func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
