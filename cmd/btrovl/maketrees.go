package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// makeTrees opens the trees that a bundle is made from: bases of the pool, held
// against garbage collection, or directories and unpacked archives.
type makeTrees struct {
	*app
	spool string
	pool  *subvolumes.Pool // opened when a version is asked for
	files []*os.File
	temps []string
}

// open fills in the trees, the counter, and where the result is tried out.
func (t *makeTrees) open(ctx context.Context, f createFlags, o *delta.MakeOptions) error {
	for _, name := range split(f.from) {
		from, _, err := t.tree(ctx, name)
		if err != nil {
			return err
		}
		o.From = append(o.From, from)
	}
	to, counter, err := t.tree(ctx, f.to)
	if err != nil {
		return err
	}
	o.To = to
	if o.Counter == 0 {
		o.Counter = counter
	}
	if t.pool == nil {
		return nil
	}
	return t.scratch(o)
}

// scratchPrefix begins the name of a directory in the pool in which a bundle is
// tried out. It is removed afterwards. A killed command leaves it behind, unlocked,
// and the next one removes it.
const scratchPrefix = "scratch."

// scratch makes a place on the pool's btrfs, where the trial run costs reflinks only.
func (t *makeTrees) scratch(o *delta.MakeOptions) error {
	left, _ := filepath.Glob(filepath.Join(t.pool.Dir(), scratchPrefix+"*"))
	for _, dir := range left {
		if f, err := os.Open(dir); err == nil {
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				os.RemoveAll(dir)
			}
			f.Close()
		}
	}
	dir, err := os.MkdirTemp(t.pool.Dir(), scratchPrefix)
	if err != nil {
		return nil // a read-only pool: a plain temporary directory will do
	}
	t.temps = append(t.temps, dir)
	if o.Scratch, err = os.Open(dir); err != nil {
		return err
	}
	t.files = append(t.files, o.Scratch)
	return unix.Flock(int(o.Scratch.Fd()), unix.LOCK_SH)
}

// tree opens VERSION, of the pool, or VERSION=PATH.
func (t *makeTrees) tree(ctx context.Context, name string) (delta.Tree, uint64, error) {
	version, path, outside := strings.Cut(name, "=")
	if outside {
		tr, err := t.outside(ctx, version, path)
		return tr, 0, err
	}
	if t.pool == nil {
		p, err := t.app.open()
		if err != nil {
			if c, ok := errors.AsType[*codedError](err); ok {
				c.hints = append(c.hints, "a tree needs no pool: "+name+"=PATH, with a directory or a tar archive")
			}
			return delta.Tree{}, 0, err
		}
		t.pool = p
	}
	r, err := t.pool.Record()
	if err != nil {
		return delta.Tree{}, 0, err
	}
	b := r.Base(version)
	if b == nil {
		return delta.Tree{}, 0, &subvolumes.UnknownError{Kind: "base", Name: version, Known: versions(r)}
	}
	root, err := t.pool.OpenBase(version)
	if err != nil {
		return delta.Tree{}, 0, err
	}
	t.files = append(t.files, root)
	if err := unix.Flock(int(root.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return delta.Tree{}, 0, fmt.Errorf("base %s is being removed: %w", version, err)
	}
	return delta.Tree{Version: version, Digest: b.Digest, Root: root}, b.Counter, nil
}

// outside opens a directory, or unpacks an archive into a temporary one.
func (t *makeTrees) outside(ctx context.Context, version, path string) (delta.Tree, error) {
	st, err := os.Stat(path)
	if err != nil {
		return delta.Tree{}, coded(codeUsage, fmt.Errorf("cannot read base %s: %w", version, err),
			"VERSION=PATH names a directory or a tar archive")
	}
	if !st.IsDir() {
		if path, err = t.unpack(ctx, path); err != nil {
			return delta.Tree{}, err
		}
	}
	root, err := os.Open(path)
	if err != nil {
		return delta.Tree{}, err
	}
	t.files = append(t.files, root)
	return delta.Tree{Version: version, Root: root}, nil
}

func (t *makeTrees) unpack(ctx context.Context, path string) (string, error) {
	if err := needRoot("unpacking an archive with its owners and device nodes"); err != nil {
		return "", err
	}
	in, err := t.input(ctx, path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	dir, err := os.MkdirTemp(t.spool, "btrovl-tree-")
	if err != nil {
		return "", err
	}
	t.temps = append(t.temps, dir)
	dst, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer dst.Close()
	if _, err := tree.Extract(ctx, dst, in, tree.ExtractOptions{}); err != nil {
		return "", fmt.Errorf("cannot unpack %s: %w", path, err)
	}
	return dir, nil
}

func (t *makeTrees) Close() {
	for _, f := range t.files {
		f.Close()
	}
	for _, dir := range t.temps {
		os.RemoveAll(dir)
	}
	if t.pool != nil {
		t.pool.Close()
	}
}

// publicLine is the base64 line of a public key file.
func publicLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", usagef("cannot read the key: %v", err)
	}
	if err := new(bundle.Keyring).Add("", path, text); err != nil {
		return "", usagef("%s: %v", path, err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.TrimSpace(lines[len(lines)-1]), nil
}

func versions(r *subvolumes.Record) []string {
	var out []string
	for _, b := range r.Bases {
		out = append(out, b.Version)
	}
	return out
}
