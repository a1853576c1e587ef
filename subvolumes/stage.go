package subvolumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// Stage is a base being built: the writable subvolume bases/<version>.partial. It
// belongs to the writer that made it; should that die, it is garbage.
type Stage struct {
	w       *Writer
	version string
	bases   *os.File
	root    *os.File
	sealed  bool
}

// NewStage makes a stage: a snapshot of base fromBase, or empty if that is "". What
// interrupted stages left is removed. Errors: *ExistsError, *UnknownError, *NameError.
func (w *Writer) NewStage(ctx context.Context, version, fromBase string) (*Stage, error) {
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	if err := checkVersion(version); err != nil {
		return nil, err
	}
	if r.Base(version) != nil {
		return nil, &ExistsError{"base", version}
	}
	if fromBase != "" && r.Base(fromBase) == nil {
		return nil, &UnknownError{"base", fromBase, r.versions()}
	}
	bases, err := w.p.openDir(dirBases)
	if err != nil {
		return nil, fmt.Errorf("cannot stage base %s: %w", version, err)
	}
	s := &Stage{w: w, version: version, bases: bases}
	if err := s.make(ctx, fromBase); err != nil {
		bases.Close()
		return nil, fmt.Errorf("cannot stage base %s: %w", version, err)
	}
	return s, nil
}

func (s *Stage) make(ctx context.Context, fromBase string) error {
	// Whoever holds the lock is the only one with stages; and a base of this version
	// that no record names was interrupted between its rename and the commit.
	names, err := listNames(s.bases)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, suffixStage) || strings.HasSuffix(name, suffixVerify) || name == s.version {
			if err := s.w.p.at("remove left-over " + name); err != nil {
				return err
			}
			if err := btrfs.DestroyTree(ctx, s.bases, name); err != nil {
				return err
			}
		}
	}
	stage := s.version + suffixStage
	if err := s.w.p.at("create " + stage); err != nil {
		return err
	}
	if fromBase == "" {
		err = btrfs.CreateSubvolume(s.bases, stage)
	} else {
		var from *os.File
		if from, err = s.w.p.OpenBase(fromBase); err == nil {
			err = s.w.withReserve(func() error { return btrfs.Snapshot(s.bases, stage, from, false) })
			from.Close()
		}
	}
	if err != nil {
		return err
	}
	s.root, err = s.w.p.openDir(dirBases, stage)
	return err
}

// Root is the stage's root directory. It is closed by Seal and Discard.
func (s *Stage) Root() *os.File { return s.root }

// Version is that of the base to be.
func (s *Stage) Version() string { return s.version }

// SealOptions are what the record says of the base, and how to read it.
type SealOptions struct {
	Counter    uint64     // against downgrades
	Compatible string     // which devices it is for
	Source     string     // "import tree1", "bundle 1-2.btrovl"
	Received   btrfs.UUID // of the send stream it came from, set on the base
	ReceivedAt uint64     // generation of its original, as the stream says
	Pinned     bool       // kept even if no deployment has ever named it
	Jobs       int        // files read at once; 0 means GOMAXPROCS
	Progress   func(done, total int64)
	Total      int64 // bytes that will be read, for Progress only
}

// Seal turns the stage into a base and records it; durable on return. The content is
// brought to stable storage, snapshotted read-only, and the snapshot's digest is
// computed from what is read back: the snapshot has no pages in the cache, so it comes
// from the disk through btrfs's checksums, and no descriptor can change it. If want is
// not "" and the digest differs, the error is *DigestError. After an error the stage
// must be discarded.
func (s *Stage) Seal(ctx context.Context, want string, o SealOptions) (BaseInfo, error) {
	b, err := s.seal(ctx, want, o)
	if err != nil {
		return BaseInfo{}, fmt.Errorf("cannot seal base %s: %w", s.version, err)
	}
	s.sealed = true
	s.close()
	// The stage is garbage now. If this fails, Collect or the next stage removes it.
	btrfs.DestroySubvolume(s.bases, s.version+suffixStage)
	s.bases.Close()
	return b, nil
}

func (s *Stage) seal(ctx context.Context, want string, o SealOptions) (BaseInfo, error) {
	if s.sealed || s.root == nil {
		return BaseInfo{}, errors.New("the stage is sealed or discarded already")
	}
	p := s.w.p
	verify := s.version + suffixVerify
	if !o.Received.IsZero() {
		// A read-only snapshot keeps it; later incremental receives look for it.
		if err := btrfs.SetReceived(s.root, o.Received, o.ReceivedAt); err != nil {
			return BaseInfo{}, err
		}
	}
	if err := p.at("syncfs"); err != nil {
		return BaseInfo{}, err
	}
	if err := btrfs.Syncfs(s.root); err != nil {
		return BaseInfo{}, err
	}
	if err := p.at("snapshot to " + verify); err != nil {
		return BaseInfo{}, err
	}
	if err := s.w.withReserve(func() error { return btrfs.Snapshot(s.bases, verify, s.root, true) }); err != nil {
		return BaseInfo{}, err
	}
	root, err := p.openDir(dirBases, verify)
	if err != nil {
		return BaseInfo{}, err
	}
	defer root.Close()
	sum, stats, err := tree.Digest(ctx, root, tree.DigestOptions{Jobs: o.Jobs, Progress: o.Progress, Total: o.Total})
	if err != nil {
		return BaseInfo{}, fmt.Errorf("read it back: %w", err)
	}
	if want != "" && sum.String() != want {
		return BaseInfo{}, &DigestError{"the tree of base " + s.version, want, sum.String()}
	}
	info, err := btrfs.SubvolumeInfo(root)
	if err != nil {
		return BaseInfo{}, err
	}
	b := BaseInfo{
		Version:    s.version,
		Digest:     sum.String(),
		Bytes:      stats.Bytes,
		Files:      stats.Files,
		UUID:       info.UUID.String(),
		Received:   o.Received.String(),
		Counter:    o.Counter,
		Compatible: o.Compatible,
		Source:     o.Source,
		Created:    now(),
		Pinned:     o.Pinned,
	}
	metaName := s.version + suffixMeta
	if err := s.w.writeMeta(s.bases, metaName, tempMeta, meta{Base: &b}); err != nil {
		return BaseInfo{}, err
	}
	// Read-only subvolumes can be renamed within one directory, as here; not across.
	if err := p.at("rename " + verify + " to " + s.version); err != nil {
		return BaseInfo{}, err
	}
	if err := unix.Renameat(int(s.bases.Fd()), verify, int(s.bases.Fd()), s.version); err != nil {
		return BaseInfo{}, fmt.Errorf("rename %s/%s to %s: %w", s.bases.Name(), verify, s.version, err)
	}
	if err := p.at("sync directory of bases"); err != nil {
		return BaseInfo{}, err
	}
	if err := s.bases.Sync(); err != nil {
		return BaseInfo{}, err
	}
	_, err = s.w.Commit(ctx, func(r *Record) error {
		if r.Base(s.version) != nil {
			return &ExistsError{"base", s.version}
		}
		r.Bases = append(r.Bases, b)
		return nil
	})
	return b, err
}

// Discard removes the stage; after Seal it does nothing.
func (s *Stage) Discard() error {
	if s.sealed || s.root == nil {
		return nil
	}
	s.close()
	defer s.bases.Close()
	var errs []error
	for _, name := range []string{s.version + suffixStage, s.version + suffixVerify} {
		err := btrfs.DestroyTree(context.Background(), s.bases, name)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	// If sealing failed after its rename, the record may or may not name the base: it is
	// left to garbage collection, with its meta file.
	var st unix.Stat_t
	if unix.Fstatat(int(s.bases.Fd()), s.version, &st, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT {
		unix.Unlinkat(int(s.bases.Fd()), s.version+suffixMeta, 0)
	}
	return errors.Join(errs...)
}

func (s *Stage) close() {
	if s.root != nil {
		s.root.Close()
		s.root = nil
	}
}
