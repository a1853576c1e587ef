package main

import (
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// output lets fn write to a new file, which has its name only when complete and
// on stable storage, or to standard output for "-".
func (a *app) output(path string, fn func(w io.Writer) error) error {
	if path == "-" {
		if isTerminal(a.stdout) {
			return usagef("standard output is a terminal: name a file with --output, or pipe it on")
		}
		return fn(a.stdout)
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
