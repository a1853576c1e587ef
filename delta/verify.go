package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// verifyMade decodes what was made as a device would, from every base, and compares
// the list of files and every byte with the original. With a scratch
// directory it also applies it there and compares digests.
func verifyMade(ctx context.Context, o *MakeOptions, m *bundle.Manifest, to *inventory, payload *spool) error {
	from := o.From
	if len(from) == 0 {
		from = []Tree{{}}
	}
	for i, f := range from {
		src, err := unsigned(m, payload)
		if err != nil {
			return err
		}
		if err := compareSection(ctx, src, i, f.Root, to, o.Jobs); err != nil {
			return fmt.Errorf("from %q: %w", f.Version, err)
		}
		if o.Scratch == nil {
			continue
		}
		if src, err = unsigned(m, payload); err != nil {
			return err
		}
		if err := applyScratch(ctx, src, i, f.Root, o); err != nil {
			return fmt.Errorf("from %q: %w", f.Version, err)
		}
	}
	return nil
}

// unsigned reads a payload back through the container, without a signature.
func unsigned(m *bundle.Manifest, payload *spool) (*bundle.Reader, error) {
	copied := *m
	pr, pw := io.Pipe()
	go func() {
		_, err := bundle.Create(pw, &copied, payload.f, payload.n, noSigner{})
		pw.CloseWithError(err)
	}()
	return bundle.NewReader(pr, nil)
}

type noSigner struct{}

func (noSigner) SignManifest([]byte) ([]byte, error) { return []byte("unsigned"), nil }

func compareSection(ctx context.Context, br *bundle.Reader, which int, base *os.File, to *inventory, jobs int) error {
	p, r, err := openSection(br, which)
	if err != nil {
		return err
	}
	defer r.close()
	olds, news, err := p.listings(ctx, r, base)
	if err != nil {
		return err
	}
	if !bytes.Equal(news.encode(), to.encode()) {
		return errors.New("the list of files came out differently")
	}
	a := newApplier(br.Manifest(), base, newStage(to.root, olds, news), ApplyOptions{Jobs: jobs})
	a.target, a.checkAll = &compareTarget{a: a, to: to}, true
	if err := a.all(ctx, p, r); err != nil {
		return err
	}
	// What has no record must be the same already: the digests of the inventory say so
	// (see order); here only that nothing was left out.
	for i := range news.entries {
		e := &news.entries[i]
		if k := a.stage.keep[i]; e.isRegular() && e.link < 0 && !a.recorded[i] && (k < 0 || olds.entries[k].size != to.entries[i].size) {
			return fmt.Errorf("%s has no content", e.path)
		}
	}
	return br.Verify()
}

// compareTarget compares content instead of writing it. It finds what the stage would
// hold: a block that is not written must be the clone's.
type compareTarget struct {
	a  *applier
	to *inventory
}

type compareFile struct {
	f      *os.File
	path   string
	size   int64
	at     int64
	clone  *view
	buf    []byte
	buffer []byte
}

func (t *compareTarget) open(rec *record, views []*view) (sink, error) {
	f, size, err := openRegular(t.to.root, t.to.entries[rec.index].path)
	if err != nil {
		return nil, err
	}
	c := &compareFile{f: f, size: size, path: t.to.entries[rec.index].path}
	if rec.cloned || rec.method == methodCopy {
		v := *views[0]
		if v.open != nil {
			v.ReaderAt = nil
		}
		v.win = nil
		c.clone = &v
	}
	return c, nil
}

func (c *compareFile) put(p []byte, at int64, changed []bool) error {
	if at != c.at {
		return fmt.Errorf("%s came out in another order", c.path)
	}
	c.at += int64(len(p))
	if cap(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	want := c.buf[:len(p)]
	if _, err := c.f.ReadAt(want, at); err != nil {
		return fmt.Errorf("%s came out too long: %w", c.path, err)
	}
	if !bytes.Equal(want, p) {
		return fmt.Errorf("%s came out differently behind byte %d", c.path, at)
	}
	if c.clone == nil {
		return nil
	}
	for i, ch := range changed {
		if ch {
			continue
		}
		from := i * blockSizeFS
		q := p[from:min(from+blockSizeFS, len(p))]
		have := make([]byte, len(q)) // a clone that is extended holds zeros
		if n := min(int64(len(q)), c.clone.size-at-int64(from)); n > 0 {
			b, err := c.clone.bytes(at+int64(from), int(n))
			if err != nil {
				return err
			}
			copy(have, b)
		}
		if !bytes.Equal(have, q) {
			return fmt.Errorf("%s would keep a wrong block at %d", c.path, at+int64(from))
		}
	}
	return nil
}

func (c *compareFile) Close() error { return c.f.Close() }

func (t *compareTarget) close(rec *record, s sink) error {
	c := s.(*compareFile)
	if c.clone != nil {
		c.clone.Close()
	}
	if c.at != c.size {
		return fmt.Errorf("%s came out with %d bytes instead of %d", c.path, c.at, c.size)
	}
	return c.f.Close()
}

func (t *compareTarget) openNew(index int) (*os.File, int64, error) {
	return openRegular(t.to.root, t.to.entries[index].path)
}

// applyScratch applies to a snapshot and compares the digest of the tree.
func applyScratch(ctx context.Context, br *bundle.Reader, which int, base *os.File, o *MakeOptions) (err error) {
	name := fmt.Sprintf("verify-%d", os.Getpid())
	if base != nil {
		err = btrfs.Snapshot(o.Scratch, name, base, false)
	} else {
		err = btrfs.CreateSubvolume(o.Scratch, name)
	}
	if err != nil {
		return fmt.Errorf("cannot make a scratch snapshot: %w", err)
	}
	defer func() {
		if derr := btrfs.DestroySubvolume(o.Scratch, name); err == nil {
			err = derr
		}
	}()
	stage, err := openBeneath(o.Scratch, name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer stage.Close()
	m := br.Manifest()
	opts := ApplyOptions{Jobs: o.Jobs}
	if which < len(m.From) {
		opts.BaseDigest = m.From[which].Digest
	}
	if _, err := Apply(ctx, br, base, stage, opts); err != nil {
		return err
	}
	sum, _, err := tree.Digest(ctx, stage, tree.DigestOptions{Jobs: o.Jobs})
	if err != nil {
		return err
	}
	if sum.String() != m.To.Digest {
		return fmt.Errorf("applied, it has digest %s instead of %s", sum, m.To.Digest)
	}
	return nil
}
