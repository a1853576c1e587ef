package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// explainBase says whether a base is one that the bundle starts from and, if not, where
// it differs from the one of its version, or else the first.
func (a *app) explainBase(ctx context.Context, in *input, ring *bundle.Keyring, name string) error {
	root, err := a.explained(name)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := fence(fenced{read: []string{root.Name()}}); err != nil {
		return err
	}
	br, err := in.bundle(ring)
	if err != nil {
		return err
	}
	from := br.Manifest().From
	if len(from) == 0 {
		return usagef("%s is a full bundle: it starts from no base", in.name)
	}
	sum, _, err := tree.Digest(ctx, root, tree.DigestOptions{})
	if err != nil {
		return err
	}
	which := 0
	for i, f := range from {
		if f.Digest == sum.String() {
			a.say("base %s is what the bundle starts from", f.Version)
			return nil
		}
		if f.Version == name {
			which = i
		}
	}
	return fmt.Errorf("%s: %w", in.name, delta.Explain(ctx, br, which, bundle.BaseID{Version: name, Digest: sum.String()}, root))
}

// explained opens a version of the pool, or a directory: what has a slash in it.
func (a *app) explained(name string) (*os.File, error) {
	if strings.Contains(name, "/") {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, usagef("cannot open the base: %v", err)
		}
		return f, nil
	}
	p, err := a.open()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	r, err := p.Record()
	if err != nil {
		return nil, err
	}
	if r.Base(name) == nil {
		return nil, &subvolumes.UnknownError{Kind: "base", Name: name, Known: versions(r)}
	}
	return p.OpenBase(name)
}
