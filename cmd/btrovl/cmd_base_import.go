package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/btrovl/btrovl/delta/stream"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// streamMagic begins every btrfs send stream.
const streamMagic = "btrfs-stream\x00"

type importFlags struct {
	digest  string
	counter uint64
	jobs    int
}

func (a *app) baseImportCmd() *cobra.Command {
	var f importFlags
	c := a.long(a.reports(command("import VERSION TREE", "Make a base of a directory, a tar archive or a send stream",
		manual{
			effect: `TREE is a directory, a tar archive (plain, gzip, xz or zstd), the output of btrfs
send, or - for one of the latter two on standard input; which it is, its first bytes
say. Everything is taken: owners, modes, times, extended attributes, capabilities,
ACLs, hard links, holes, device nodes. Nothing of TREE is changed. Directories on the
same file system are reflinked, which takes no space.`,
			durable: "the base is complete, read back, and on stable storage when the command returns.",
			exits:   poolExits(codeExists, codeSpace, codeDamage, codeDigest),
			example: "btrovl base import 1 /srv/build/root\nbtrovl base import 12.8 debian-12.8.tar.xz\nssh builder btrfs send /images/5 | btrovl base import 5 -",
		}, cobra.ExactArgs(2),
		func(ctx context.Context, args []string) error {
			return a.write(ctx, "base import "+args[0], func(p *subvolumes.Pool, w *subvolumes.Writer) error {
				return a.baseImport(ctx, w, args[0], args[1], f)
			})
		})))
	c.Flags().StringVar(&f.digest, "digest", "", "refuse the tree unless it has this digest")
	c.Flags().Uint64Var(&f.counter, "counter", 0, "number that must not fall from one update to the next")
	c.Flags().IntVar(&f.jobs, "jobs", 0, "files read at once (default: one per processor)")
	return c
}

func (a *app) baseImport(ctx context.Context, w *subvolumes.Writer, version, from string, f importFlags) (err error) {
	pr, err := a.progress("base import")
	if err != nil {
		return err
	}
	defer func() { pr.finish(err) }()
	step := ""
	o := subvolumes.ImportOptions{Want: f.digest, Counter: f.counter, Jobs: f.jobs, Source: "import " + filepath.Base(from),
		Progress: func(phase string, done, total int64) {
			if phase != step {
				step = phase
				pr.start(phase)
			}
			pr.advance(done, total)
		}}
	var b subvolumes.BaseInfo
	if st, serr := os.Stat(from); from != "-" && serr == nil && st.IsDir() {
		b, err = importDir(ctx, w, version, from, o)
	} else {
		b, err = a.importFile(ctx, w, version, from, o)
	}
	if err != nil {
		return fmt.Errorf("cannot import %s as base %s: %w", from, version, err)
	}
	pr.stop()
	a.say("base %s: %d files, %s, digest %s", b.Version, b.Files, size(b.Bytes), b.Digest)
	if a.json {
		return a.report(newBaseReport(w.Pool(), new(subvolumes.Record), b), nil)
	}
	return nil
}

func importDir(ctx context.Context, w *subvolumes.Writer, version, from string, o subvolumes.ImportOptions) (subvolumes.BaseInfo, error) {
	src, err := os.Open(from)
	if err != nil {
		return subvolumes.BaseInfo{}, err
	}
	defer src.Close()
	return w.ImportTree(ctx, version, src, o)
}

func (a *app) importFile(ctx context.Context, w *subvolumes.Writer, version, from string, o subvolumes.ImportOptions) (subvolumes.BaseInfo, error) {
	in, err := a.input(ctx, from)
	if err != nil {
		return subvolumes.BaseInfo{}, err
	}
	defer in.Close()
	if err := fence(fenced{write: []string{w.Pool().Dir()}}); err != nil {
		return subvolumes.BaseInfo{}, err
	}
	r := bufio.NewReaderSize(in, 1<<20)
	head, err := r.Peek(len(streamMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return subvolumes.BaseInfo{}, err
	}
	if bytes.Equal(head, []byte(streamMagic)) {
		return importStream(ctx, w, version, r, in.size, o)
	}
	o.Size = max(in.size, 0)
	return w.ImportTar(ctx, version, r, o)
}

// importStream receives a send stream into a stage.
func importStream(ctx context.Context, w *subvolumes.Writer, version string, r io.Reader, total int64, o subvolumes.ImportOptions) (subvolumes.BaseInfo, error) {
	stage, err := w.NewStage(ctx, version, "")
	if err != nil {
		return subvolumes.BaseInfo{}, err
	}
	defer stage.Discard()
	res, err := stream.Apply(ctx, r, stage.Root(), stream.ApplyOptions{
		Progress: func(done int64) { o.Progress("receive", done, total) },
	})
	if err != nil {
		return subvolumes.BaseInfo{}, err
	}
	return stage.Seal(ctx, o.Want, subvolumes.SealOptions{
		Counter: o.Counter, Source: o.Source, Pinned: true, Received: btrfs.UUID(res.UUID), Jobs: o.Jobs,
		Progress: func(done, total int64) { o.Progress("verify", done, total) },
	})
}
