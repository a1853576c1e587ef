package subvolumes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/subvolumes/btrfs"
)

// Names in the pool directory.
const (
	nameState    = "state"
	nameStateNew = "state.new"
	nameStateOld = "state.old"
	nameLock     = "lock"
	nameReserve  = "reserve"

	nameReserveNew = "reserve.new"
	dirBases       = "bases"
	dirOverlays    = "overlays"
	dirBackups     = "backups"
)

// Pool is an open pool. It holds a directory handle and no copy of the record: the
// disk decides. It may be used by several goroutines.
type Pool struct {
	dir *os.File
	id  string // "" if the state is damaged

	// fault, if not nil, is called before every step that changes the disk; an
	// error takes the step's place. Tests interrupt commands with it.
	fault func(step string) error
}

// at marks the next step.
func (p *Pool) at(step string) error {
	if p.fault == nil {
		return nil
	}
	return p.fault(step)
}

// Init makes a pool of the directory dir, which is made if it does not exist, must
// be empty and on btrfs. An Init that was interrupted can be repeated. Durable on
// return. Errors: *NotBtrfsError, *ExistsError (it is a pool already), *NameError
// (it is not empty).
func Init(dir string) (*Pool, error) {
	// 0700: bases hold set-id programs and secrets that only a view's mount options
	// and permissions guard.
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot make pool %s: %w", dir, err)
	}
	f, err := openPoolDir(dir)
	if err != nil {
		return nil, err
	}
	p := &Pool{dir: f}
	if err := p.init(); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pool) init() error {
	names, err := listNames(p.dir)
	if err != nil {
		return fmt.Errorf("cannot make pool: %w", err)
	}
	if slices.Contains(names, nameState) {
		return &ExistsError{"pool", p.Dir()}
	}
	// What an interrupted Init leaves may be there, nothing else.
	for _, name := range names {
		switch name {
		case nameStateNew, nameLock, nameReserve, nameReserveNew:
			continue
		case dirBases, dirOverlays, dirBackups:
			sub, err := p.openDir(name)
			if err != nil {
				return fmt.Errorf("cannot make pool: %w", err)
			}
			inside, err := listNames(sub)
			sub.Close()
			if err != nil {
				return fmt.Errorf("cannot make pool: %w", err)
			}
			if len(inside) == 0 {
				continue
			}
			return &NotPoolError{Dir: p.Dir(), Lost: true, Reason: name + " holds " + inside[0] + " but there is no state"}
		}
		return &NameError{"a new pool", p.Dir(), "the directory is not empty: it holds " + name}
	}
	if err := p.dir.Chmod(0o700); err != nil {
		return fmt.Errorf("cannot make pool: %w", err)
	}
	for _, name := range []string{dirBases, dirOverlays, dirBackups} {
		if err := unix.Mkdirat(int(p.dir.Fd()), name, 0o700); err != nil && err != unix.EEXIST {
			return fmt.Errorf("cannot make pool: make %s/%s: %w", p.Dir(), name, err)
		}
	}
	w, err := p.Lock(context.Background(), "init", 0)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.MakeReserve(); err != nil {
		return fmt.Errorf("cannot make pool: %w", err)
	}
	r := &Record{Format: Format, Pool: newUUID(), Next: 1}
	if err := w.writeState(r, nil); err != nil {
		return fmt.Errorf("cannot make pool: %w", err)
	}
	p.id = r.Pool
	// The pool's own name stands in a directory that nobody has synced.
	if err := btrfs.WaitSync(p.dir, 0); err != nil {
		return fmt.Errorf("cannot make pool: %w", err)
	}
	return nil
}

func newUUID() string {
	var u btrfs.UUID
	rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u.String()
}

// openPoolDir opens a directory on btrfs by its absolute path.
func openPoolDir(dir string) (*os.File, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", dir, err)
	}
	fd, err := unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, &NotPoolError{Dir: abs, Reason: "there is no such directory"}
		}
		return nil, fmt.Errorf("open pool %s: %w", abs, err)
	}
	f := os.NewFile(uintptr(fd), abs)
	is, typ, err := btrfs.IsBtrfs(f)
	if err == nil && !is {
		err = &NotBtrfsError{abs, typ}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open opens a pool for reading; nothing is changed, not even after a crash. Errors:
// *NotPoolError, *NotBtrfsError, *FormatError.
func Open(dir string) (*Pool, error) {
	f, err := openPoolDir(dir)
	if err != nil {
		return nil, err
	}
	p := &Pool{dir: f}
	r, err := p.Record()
	if err != nil {
		f.Close()
		return nil, err
	}
	p.id = r.Pool
	return p, nil
}

// OpenDamaged opens a pool whose state may be lost or unreadable, for [Pool.Check]
// and [Writer.Rebuild]. A newer format is refused here too: *FormatError.
func OpenDamaged(dir string) (*Pool, error) {
	p, err := Open(dir)
	var np *NotPoolError
	if !errors.As(err, &np) || !np.Lost {
		return p, err
	}
	f, err := openPoolDir(dir)
	if err != nil {
		return nil, err
	}
	return &Pool{dir: f}, nil
}

// Close releases the handle.
func (p *Pool) Close() error { return p.dir.Close() }

// Dir returns the pool's absolute path, for messages and for peers like mount(8).
func (p *Pool) Dir() string { return p.dir.Name() }

// ID returns the pool's UUID, "" if the state is damaged.
func (p *Pool) ID() string { return p.id }

// Record reads the state from disk. Errors: *NotPoolError, *FormatError.
func (p *Pool) Record() (*Record, error) {
	data, err := p.readFile(nameState, maxState)
	if errors.Is(err, os.ErrNotExist) {
		// Init writes the state last, so a pool without it holds something only if it was lost.
		for _, name := range []string{dirBases, dirOverlays} {
			d, err := p.openDir(name)
			if err != nil {
				return nil, &NotPoolError{Dir: p.Dir()}
			}
			inside, err := listNames(d)
			d.Close()
			if err == nil && len(inside) > 0 {
				return nil, &NotPoolError{Dir: p.Dir(), Lost: true, Reason: "there is no file state"}
			}
		}
		return nil, &NotPoolError{Dir: p.Dir()}
	}
	if err != nil {
		return nil, fmt.Errorf("read state of pool %s: %w", p.Dir(), err)
	}
	r, err := decodeRecord(data)
	var newer errNewer
	if errors.As(err, &newer) {
		return nil, &FormatError{p.Dir(), int(newer), Format}
	}
	if err != nil {
		return nil, &NotPoolError{Dir: p.Dir(), Lost: true, Reason: "the file state is damaged: " + err.Error()}
	}
	return r, nil
}

// readFile reads a file of the pool directory of at most limit bytes.
func (p *Pool) readFile(name string, limit int64) ([]byte, error) {
	return readAt(p.dir, name, limit)
}

func readAt(dir *os.File, name string, limit int64) ([]byte, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir.Name()+"/"+name)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), limit)
	}
	return data, err
}

// openDir opens a directory below the pool, name by name, never through a link.
func (p *Pool) openDir(names ...string) (*os.File, error) {
	dir := p.dir
	for i, name := range names {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		path := dir.Name() + "/" + name
		if i > 0 {
			dir.Close()
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		dir = os.NewFile(uintptr(fd), path)
	}
	return dir, nil
}

// listNames lists a directory in the order of its names.
func listNames(dir *os.File) ([]string, error) {
	// A description of its own, as reading moves the offset.
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	d := os.NewFile(uintptr(fd), dir.Name())
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// OpenBase opens the root directory of a base.
func (p *Pool) OpenBase(version string) (*os.File, error) {
	if err := checkVersion(version); err != nil {
		return nil, err
	}
	return p.openDir(dirBases, version)
}

// OpenOverlay opens the subvolume of an overlay, which holds upper/ and work/.
func (p *Pool) OpenOverlay(ref OverlayRef) (*os.File, error) {
	if _, _, ok := splitIncarnation(ref.Subvolume); !ok {
		return nil, fmt.Errorf("overlay %q has no subvolume", ref.Name)
	}
	return p.openDir(dirOverlays, ref.Subvolume)
}

// BasePath returns the absolute path of a base, for messages and for mount(8).
func (p *Pool) BasePath(version string) string { return filepath.Join(p.Dir(), dirBases, version) }

// OverlayPath returns the absolute path of the subvolume that holds upper/ and work/.
func (p *Pool) OverlayPath(ref OverlayRef) string {
	return filepath.Join(p.Dir(), dirOverlays, ref.Subvolume)
}

// ExclusiveSize returns how many bytes of content only this base uses: what removing
// it would free. It takes seconds on large bases.
func (p *Pool) ExclusiveSize(ctx context.Context, version string) (uint64, error) {
	f, err := p.OpenBase(version)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return btrfs.Exclusive(ctx, f)
}

// versions and names for UnknownError.
func (r *Record) versions() []string {
	var out []string
	for _, b := range r.Bases {
		out = append(out, b.Version)
	}
	return out
}

func (r *Record) overlayNames() []string {
	var out []string
	for _, o := range r.Overlays {
		out = append(out, o.Name)
	}
	return out
}

func (r *Record) deploymentIDs() []string {
	var out []string
	for _, d := range r.Deployments {
		out = append(out, fmt.Sprint(d.ID))
	}
	return out
}
