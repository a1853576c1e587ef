package delta

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/stream"
)

// ExportStream expands a bundle to a plain btrfs send stream that stock `btrfs
// receive` accepts. base is the tree that the bundle starts from, nil for a full one.
// New contents lie in a temporary directory meanwhile. Errors are Apply's.
func ExportStream(ctx context.Context, br *bundle.Reader, base *os.File, w io.Writer, o ExportOptions) error {
	m := br.Manifest()
	which, err := chooseBase(m, ApplyOptions{BaseDigest: o.BaseDigest}, base)
	if err != nil {
		return err
	}
	p, r, err := openSection(br, which)
	if err != nil {
		return err
	}
	defer r.close()
	olds, news, err := p.listings(ctx, r, base)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.Spool, "btrovl-export-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	spool, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer spool.Close()
	a := newApplier(m, base, newStage(spool, olds, news), ApplyOptions{Jobs: o.Jobs, Progress: o.Progress})
	a.target = &spoolTarget{dir: spool}
	if err := a.all(ctx, p, r); err != nil {
		return err
	}
	if err := br.Verify(); err != nil {
		return err
	}
	sw, err := stream.NewWriter(w)
	if err != nil {
		return err
	}
	e := &exporter{a: a, base: base, spool: spool, w: sw}
	return e.run(ctx, m, o)
}

// spoolTarget keeps each content in a file named by its index.
type spoolTarget struct{ dir *os.File }

type spoolFile struct{ f *os.File }

func (t *spoolTarget) open(rec *record, _ []*view) (sink, error) {
	f, err := openBeneath(t.dir, strconv.Itoa(rec.index), unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	return &spoolFile{f}, err
}

func (s *spoolFile) put(p []byte, at int64, _ []bool) error {
	_, err := s.f.WriteAt(p, at)
	return err
}

func (s *spoolFile) Close() error { return s.f.Close() }

func (t *spoolTarget) close(_ *record, s sink) error { return s.(*spoolFile).f.Close() }

func (t *spoolTarget) openNew(index int) (*os.File, int64, error) {
	return openRegular(t.dir, strconv.Itoa(index))
}

// An exporter writes the steps of Apply as commands of a stream.
type exporter struct {
	a     *applier
	base  *os.File
	spool *os.File
	w     *stream.Writer
	err   error // the first one
}

func (e *exporter) put(c *stream.Command) {
	if e.err == nil {
		e.err = e.w.Write(c)
	}
}

func (e *exporter) run(ctx context.Context, m *bundle.Manifest, o ExportOptions) error {
	name := o.Name
	if name == "" {
		name = m.To.Version
	}
	head := &stream.Command{Kind: stream.Subvol, Path: name, Ctransid: max(m.Counter, 1)}
	// The stream's id of the new subvolume is its digest: the same state has the same id everywhere.
	if raw, err := parseDigest(m.To.Digest); err == nil {
		copy(head.UUID[:], raw[:16])
	}
	if e.base != nil && len(m.From) > 0 {
		head.Kind = stream.Snapshot
		head.CloneUUID, head.CloneCtransid = stream.UUID(o.Parent.UUID), o.Parent.CTransID
	}
	e.put(head)
	e.removeXattrs()
	e.clear()
	for i := range e.a.news.entries {
		if e.a.recorded[i] && e.err == nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := e.content(i); err != nil {
				return fmt.Errorf("cannot export %s: %w", e.a.news.entries[i].path, err)
			}
		}
	}
	e.nodes()
	for i := len(e.a.news.entries) - 1; i >= 0; i-- {
		e.attributes(i)
	}
	e.put(&stream.Command{Kind: stream.End})
	return e.err
}

// removeXattrs writes what kept entries lose, before anything is written to them:
// with a write or a chown the receiver's kernel drops security.capability by itself,
// and btrfs receive takes it for an error if it then finds nothing to remove.
func (e *exporter) removeXattrs() {
	s := e.a.stage
	for i := range s.news.entries {
		n, k := &s.news.entries[i], s.keep[i]
		if n.link >= 0 || k < 0 {
			continue
		}
		for _, x := range s.olds.entries[k].xattrs {
			if !n.hasXattr(x.Name) {
				e.put(&stream.Command{Kind: stream.RemoveXattr, Path: n.path, XattrName: x.Name})
			}
		}
	}
}

// clear mirrors stage.clear.
func (e *exporter) clear() {
	s := e.a.stage
	stays := make([]bool, len(s.olds.entries))
	for _, k := range s.keep {
		if k >= 0 {
			stays[k] = true
		}
	}
	for i := len(s.olds.entries) - 1; i > 0; i-- {
		if o := &s.olds.entries[i]; !stays[i] {
			kind := stream.Unlink
			if o.isDir() {
				kind = stream.Rmdir
			}
			e.put(&stream.Command{Kind: kind, Path: o.path})
			s.touchParent(o.path)
		}
	}
	for i := range s.news.entries {
		n := &s.news.entries[i]
		if i == 0 || s.keep[i] >= 0 {
			continue
		}
		s.touchParent(n.path)
		if n.isDir() {
			e.put(&stream.Command{Kind: stream.Mkdir, Path: n.path, Ino: uint64(i) + 256})
			s.touched[i] = true
		}
	}
}

// content writes a file, or of a kept one what differs from the base's.
func (e *exporter) content(i int) error {
	s := e.a.stage
	n := &s.news.entries[i]
	f, size, err := openRegular(e.spool, strconv.Itoa(i))
	if err != nil {
		return err
	}
	defer f.Close()
	var old *os.File
	var oldSize int64
	if k := s.keep[i]; k >= 0 {
		if old, oldSize, err = openRegular(e.base, n.path); err != nil {
			return err
		}
		defer old.Close()
		if oldSize != size {
			e.put(&stream.Command{Kind: stream.Truncate, Path: n.path, Size: uint64(size)})
		}
	} else {
		e.put(&stream.Command{Kind: stream.Mkfile, Path: n.path, Ino: uint64(i) + 256})
	}
	s.touched[i] = true
	buf, was := make([]byte, 48<<10), make([]byte, 48<<10)
	for at := int64(0); at < size && e.err == nil; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-at)]
		if _, err := f.ReadAt(p, at); err != nil {
			return err
		}
		if old != nil && at+int64(len(p)) <= oldSize {
			q := was[:len(p)]
			if _, err := old.ReadAt(q, at); err != nil {
				return err
			}
			if bytes.Equal(p, q) {
				continue
			}
		}
		e.put(&stream.Command{Kind: stream.Write, Path: n.path, Offset: uint64(at), Data: p})
	}
	return e.err
}

// nodes mirrors stage.nodes.
func (e *exporter) nodes() {
	s := e.a.stage
	for i := range s.news.entries {
		n := &s.news.entries[i]
		if s.keep[i] >= 0 || n.isDir() || n.isRegular() && n.link < 0 {
			continue
		}
		c := &stream.Command{Path: n.path, Ino: uint64(i) + 256}
		switch {
		case n.link >= 0:
			c.Kind, c.Target = stream.Link, s.news.entries[n.link].path
		case n.target != "":
			c.Kind, c.Target = stream.Symlink, n.target
		case n.isDevice():
			c.Kind, c.Mode, c.Rdev = stream.Mknod, n.mode, n.rdev
		case n.mode&unix.S_IFMT == unix.S_IFIFO:
			c.Kind = stream.Mkfifo
		default:
			c.Kind = stream.Mksock
		}
		e.put(c)
		s.touched[i] = true
	}
}

// attributes mirrors stage.attributes.
func (e *exporter) attributes(i int) {
	s := e.a.stage
	n := &s.news.entries[i]
	if n.link >= 0 {
		return
	}
	var o *entry
	if k := s.keep[i]; k >= 0 {
		o = &s.olds.entries[k]
		if !s.touched[i] && n.sameMeta(o) {
			return
		}
	}
	// Receivers, too, lose capabilities by writing and by chown: chown first, then mode, then attributes.
	owned := o != nil && o.uid == n.uid && o.gid == n.gid
	if !owned {
		e.put(&stream.Command{Kind: stream.Chown, Path: n.path, UID: n.uid, GID: n.gid})
	}
	if n.target == "" {
		e.put(&stream.Command{Kind: stream.Chmod, Path: n.path, Mode: n.mode & 0o7777})
	}
	for _, x := range n.xattrs {
		e.put(&stream.Command{Kind: stream.SetXattr, Path: n.path, XattrName: x.Name, Data: x.Value})
	}
	t := stream.Time{Sec: n.sec, Nsec: uint32(n.nsec)}
	e.put(&stream.Command{Kind: stream.Utimes, Path: n.path, Atime: t, Mtime: t, Ctime: t})
}
