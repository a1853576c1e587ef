package fusefs

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
)

// FSType is the type of view mounts in /proc/mounts.
const FSType = "fuse.btrovl"

const (
	maxRequest  = 1 << 20 // bytes of one READ or WRITE
	readAheadKB = 4096
)

// MountedError says that a live view is mounted at a mount point already.
type MountedError struct{ Mountpoint string }

func (e *MountedError) Error() string {
	return fmt.Sprintf("cannot mount: a view is mounted at %s already", e.Mountpoint)
}

// Mount mounts the union and serves it. When it returns, the mount answers and
// the kernel has learned to open without asking. A mount that a dead server left
// at the mount point is taken away before. Errors: *MountedError.
func Mount(mountpoint string, u *overlay.Union, o Options) (*View, error) {
	mountpoint, err := resolve(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("cannot mount: %w", err)
	}
	o.setDefaults()
	if err := cleanDead(mountpoint); err != nil {
		return nil, err
	}
	u.SetMaxFDs(o.MaxFDs)
	u.Released = o.Released
	v := &View{mountpoint: mountpoint, opt: o, log: o.Logger, u: u, done: make(chan struct{})}
	v.fs = &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), u: u, log: o.Logger}
	v.fs.c.start = time.Now()
	v.fs.handshake.Store(true)
	v.conn, err = connect(v.fs, mountpoint, v.fuseOptions(), o.Logger)
	if err != nil {
		return nil, fmt.Errorf("cannot mount at %s: %w", mountpoint, err)
	}
	go func() {
		defer close(v.done)
		v.conn.serve()
	}()
	err = v.learnNoOpen()
	v.fs.handshake.Store(false)
	if err != nil {
		// MNT_FORCE ends the connection. Otherwise the handshake, which still waits for an
		// answer, would keep it, and this process could not even die.
		unix.Unmount(mountpoint, unix.MNT_FORCE|unix.MNT_DETACH)
		return nil, fmt.Errorf("cannot mount at %s: %w", mountpoint, err)
	}
	return v, nil
}

// resolve makes a mount point the path that the kernel calls it by. Its last
// component is not touched: a dead mount may lie there.
func resolve(mountpoint string) (string, error) {
	abs, err := filepath.Abs(mountpoint)
	if err != nil || abs == "/" {
		return abs, err
	}
	if fi, err := os.Lstat(abs); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		return filepath.EvalSymlinks(abs)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	return filepath.Join(dir, filepath.Base(abs)), err
}

func (o *Options) setDefaults() {
	if o.FSName == "" {
		o.FSName = "btrovl"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.FreezeMax <= 0 {
		o.FreezeMax = time.Minute
	}
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		// Go raised the soft limit to the hard one at start.
		half := int(min(lim.Cur/2, 1<<20))
		if o.MaxFDs <= 0 {
			o.MaxFDs = 8192
		}
		o.MaxFDs = min(o.MaxFDs, half)
	}
	if o.MaxFDs <= 0 {
		o.MaxFDs = 256
	}
}

func (v *View) fuseOptions() *fuse.MountOptions {
	level := slog.LevelWarn
	if v.opt.Debug { // go-fuse has one logger for its warnings and for every request
		level = slog.LevelDebug
	}
	flags := v.opt.MountFlags
	if v.opt.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	return &fuse.MountOptions{
		Options:          []string{"default_permissions"},
		FsName:           v.opt.FSName,
		Name:             "btrovl",
		DirectMountFlags: flags,
		MaxWrite:         maxRequest,
		MaxBackground:    64,
		MaxStackDepth:    1, // an overlayfs fits on top
		EnableAcl:        true,
		IDMappedMount:    true, // the kernel translates users, both ways

		// Only this server changes the layers: nothing expires by itself.
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities: fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2 |
			fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT | fuse.CAP_EXPORT_SUPPORT |
			fuse.CAP_CACHE_SYMLINKS | fuse.CAP_INIT_EXT | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		// And no ASYNC_DIO: Linux leaves old pages in the cache then (TestAsyncDirectWrites).
		// With ATOMIC_O_TRUNC a no-open server never hears of the truncation. Without
		// READDIRPLUS_AUTO it is this server that decides when nodes come with a list: the
		// kernel asks for them with the first part only, which leaves lookups to a walk, and
		// takes each entry's first use for a hint, which costs the walk.
		DisabledCapabilities: fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_WRITEBACK_CACHE | fuse.CAP_PASSTHROUGH,
		Logger:               slog.NewLogLogger(v.log.Handler(), level),
		Debug:                v.opt.Debug,
		PanicHandler: func(what any) fuse.Status {
			v.log.Error("a request failed by a fault in btrovl", "fault", what)
			return fuse.EIO
		},
	}
}

// learnNoOpen opens a file and the root: the kernel hears ENOSYS and never asks
// again. Before, files would be opened with handles that mean nothing.
func (v *View) learnNoOpen() error {
	result := make(chan error, 1)
	go func() { result <- v.handshake() }()
	select {
	case err := <-result:
		return err
	case <-time.After(30 * time.Second):
		return errors.New("the mount does not answer")
	}
}

func (v *View) handshake() error {
	fd, err := unix.Open(v.mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	v.dev = uint64(st.Dev)
	f, err := unix.Openat(fd, handshakeName, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the handshake file: %w", err)
	}
	unix.Close(f)
	// Large reads by the server are what makes reading fast.
	bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(v.dev), unix.Minor(v.dev))
	if err := os.WriteFile(bdi, []byte(strconv.Itoa(readAheadKB)), 0); err != nil {
		v.log.Debug("cannot set the read-ahead", "error", err)
	}
	return nil
}

// cleanDead unmounts what dead servers left at a mount point.
func cleanDead(mountpoint string) error {
	for range 16 {
		typ, err := mountedAt(mountpoint)
		if err != nil {
			return fmt.Errorf("cannot mount at %s: %w", mountpoint, err)
		}
		if typ != FSType {
			return nil
		}
		if alive(mountpoint) {
			return &MountedError{mountpoint}
		}
		if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("cannot take away the dead mount at %s: %w", mountpoint, err)
		}
	}
	return fmt.Errorf("cannot mount at %s: dead mounts in many layers", mountpoint)
}

// alive says whether a server answers, or may do so yet. The attributes of a dead
// one's root are cached, so stat would not tell; statfs is always asked.
func alive(mountpoint string) bool {
	result := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		result <- unix.Statfs(mountpoint, &st)
	}()
	select {
	case err := <-result:
		return err != unix.ENOTCONN && err != unix.ECONNABORTED
	case <-time.After(5 * time.Second):
		return true
	}
}

// mountedAt returns the file system type of the topmost mount at a path, "" if
// it is no mount point.
func mountedAt(path string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	typ := ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if m, ok := parseMount(sc.Text()); ok && m.point == path {
			typ = m.fstype
		}
	}
	return typ, nil
}

// mountLine is what we need of a line of /proc/self/mountinfo.
type mountLine struct {
	id, parent string
	dev        string // major:minor
	root       string // path in the file system that is mounted
	point      string
	fstype     string
	super      string // options of the superblock
}

func parseMount(line string) (m mountLine, ok bool) {
	left, right, found := strings.Cut(line, " - ")
	f, g := strings.Fields(left), strings.Fields(right)
	if !found || len(f) < 6 || len(g) < 1 {
		return m, false
	}
	m = mountLine{id: f[0], parent: f[1], dev: f[2], root: unescape(f[3]), point: unescape(f[4]), fstype: g[0]}
	if len(g) > 2 {
		m.super = g[2]
	}
	return m, true
}

// unescape undoes the kernel's \ooo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Unmount unmounts; lazy detaches a busy mount from the tree and lets what is
// open there live on. Wait tells when the last of it is gone.
func (v *View) Unmount(lazy bool) error {
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	if err := unix.Unmount(v.mountpoint, flags); err != nil {
		return fmt.Errorf("cannot unmount %s: %w", v.mountpoint, err)
	}
	return nil
}

// Abort ends the connection: every request, now and later, fails with ENOTCONN.
func (v *View) Abort() error {
	path := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", unix.Minor(v.dev))
	return os.WriteFile(path, []byte("1"), 0)
}
