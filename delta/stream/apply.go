package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ApplyOptions say what surrounds a stream that is applied.
type ApplyOptions struct {
	// Begin is called with the Subvol or Snapshot command that opens the stream,
	// before anything is written. It returns the directory to write to: an empty
	// writable subvolume for Subvol, a writable snapshot of the parent
	// (CloneUUID, CloneCtransid) for Snapshot. Apply does not close it. If Begin
	// is nil, the root given to Apply is used, and Snapshot is refused.
	Begin func(c *Command) (*os.File, error)
	// Source returns the subvolume that Clone commands read from, by its UUID or
	// received UUID. Apply does not close it. It is not asked for the subvolume being
	// written. If nil, such commands are refused.
	Source func(id UUID, ctransid uint64) (*os.File, error)
	// Progress is told the bytes of the stream read so far; may be nil.
	Progress func(done int64)
}

// Result says what a stream was.
type Result struct {
	Name     string // of the subvolume that was sent
	UUID     UUID   // with Ctransid, what SET_RECEIVED_SUBVOL wants
	Ctransid uint64
	Parent   UUID // zero for a full stream
	Commands int64
	Bytes    int64    // of the stream
	Written  int64    // bytes of file data written
	Cloned   int64    // bytes of file data cloned
	Ignored  []string // what was left out (fs-verity, file attributes), at most 20 lines
}

// An ApplyError says which command could not be carried out, and why.
type ApplyError struct {
	Kind Kind
	Path string
	Err  error
}

func (e *ApplyError) Error() string { return fmt.Sprintf("%v %q: %v", e.Kind, e.Path, e.Err) }
func (e *ApplyError) Unwrap() error { return e.Err }

// Apply applies one stream to root (or to what Begin returns). What it wrote is
// not durable before the caller's syncfs. After an error (of the reader, a
// *[FormatError], an *[ApplyError], or the context's) the directory is half-written
// and must be discarded. It reads ahead of the stream's end by at most 64 KiB,
// unless r is a *bufio.Reader.
func Apply(ctx context.Context, r io.Reader, root *os.File, o ApplyOptions) (*Result, error) {
	br, ok := r.(*bufio.Reader)
	if !ok {
		br = bufio.NewReaderSize(r, 64<<10)
	}
	sr, err := NewReader(br)
	if err != nil {
		return nil, err
	}
	a := &applier{root: root, o: o, res: &Result{}, sources: map[UUID]*os.File{}}
	defer a.close()
	var c Command
	told := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := sr.Next(&c); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		a.res.Commands++
		if err := a.command(&c); err != nil {
			return nil, err
		}
		if n := sr.Offset(); o.Progress != nil && n-told >= 64<<10 {
			told = n
			o.Progress(n)
		}
	}
	if a.res.Name == "" {
		return nil, &FormatError{0, "the stream names no subvolume"}
	}
	a.res.Bytes = sr.Offset()
	if o.Progress != nil {
		o.Progress(a.res.Bytes)
	}
	return a.res, nil
}

// An applier carries commands out.
type applier struct {
	o       ApplyOptions
	res     *Result
	root    *os.File // of the subvolume being written
	sources map[UUID]*os.File

	// Handles of the paths used last: a stream stays with a file, and with a
	// directory, for many commands. Renaming and removing forget them.
	dir  handle // O_PATH, of a parent directory
	file handle // writable
	from handle // source of Clone

	// capability is what was set last as security.capability, and where: a later
	// chown of the same file removes it in the kernel, and streams of old kernels
	// do not set it again.
	capability     []byte
	capabilityPath string

	dec  decoders
	copy []byte
}

// A handle is an open file and the path that led to it.
type handle struct {
	f    *os.File
	root *os.File
	path string
}

func (h *handle) is(root *os.File, path string) bool {
	return h.f != nil && h.root == root && h.path == path
}

func (h *handle) close() {
	if h.f != nil {
		h.f.Close()
	}
	*h = handle{}
}

// forget drops handles whose paths may come to mean something else.
func (a *applier) forget() {
	a.dir.close()
	a.file.close()
	a.from.close()
	a.capability, a.capabilityPath = nil, ""
}

func (a *applier) close() {
	a.forget()
	a.dec.close()
}

// command carries out one command.
func (a *applier) command(c *Command) error {
	var err error
	switch begin := c.Kind == Subvol || c.Kind == Snapshot; {
	case begin && a.res.Name != "":
		err = errors.New("a second subvolume in one stream: send each to its own file")
	case begin:
		err = a.begin(c)
	case c.Kind == End:
	case a.res.Name == "":
		err = errors.New("the stream does not begin with a subvolume")
	default:
		err = a.step(c)
	}
	if err != nil {
		return &ApplyError{c.Kind, c.Path, err}
	}
	return nil
}

// begin opens the subvolume.
func (a *applier) begin(c *Command) error {
	if c.Path == "" || c.Path == "." || c.Path == ".." || len(c.Path) > maxName || strings.Contains(c.Path, "/") {
		return errors.New("this is no name for a subvolume")
	}
	if a.o.Begin != nil {
		root, err := a.o.Begin(c)
		if err != nil {
			return err
		}
		a.root = root
	} else if c.Kind == Snapshot {
		return errors.New("this is an incremental stream: its parent is needed, or a full stream")
	}
	a.res.Name, a.res.UUID, a.res.Ctransid = c.Path, c.UUID, c.Ctransid
	a.res.Parent = c.CloneUUID
	return nil
}

// step carries out a command within the subvolume.
func (a *applier) step(c *Command) error {
	switch c.Kind {
	case Write:
		return a.write(c.Path, c.Data, c.Offset)
	case EncodedWrite:
		data, err := a.dec.decode(c)
		if err != nil {
			return err
		}
		return a.write(c.Path, data, c.Offset)
	case Clone:
		return a.clone(c)
	case Truncate:
		f, err := a.writable(c.Path)
		if err != nil {
			return err
		}
		return f.Truncate(int64(c.Size))
	case Fallocate:
		return a.fallocate(c)
	case FileAttr:
		// Not applied by btrfs-progs either; no kernel sends it so far.
		a.ignore("file attributes %#x of %s", c.Attr, c.Path)
		return nil
	case EnableVerity:
		// The sums of a base are kept elsewhere, and a stage is still to be changed.
		a.ignore("fs-verity of %s", c.Path)
		return nil
	case UpdateExtent:
		return nil // sent by --no-data only: says that content changed, not to what
	}
	dir, base, err := a.parent(c.Path)
	if err != nil {
		return err
	}
	return a.name(c, dir, base)
}

// name carries out a command on a name in a directory.
func (a *applier) name(c *Command, dir int, base string) error {
	if base == "." && c.Kind < SetXattr {
		return unix.EEXIST // the root is there already, and stays
	}
	switch c.Kind {
	case Mkfile:
		fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		a.file.close() // most likely its content is next
		a.file = handle{os.NewFile(uintptr(fd), base), a.root, c.Path}
		return nil
	case Mkdir:
		return unix.Mkdirat(dir, base, 0o700)
	case Mknod:
		if c.Rdev>>32 != 0 {
			return fmt.Errorf("device number %#x", c.Rdev)
		}
		return unix.Mknodat(dir, base, c.Mode&unix.S_IFMT, int(uint32(c.Rdev)))
	case Mkfifo:
		return unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0)
	case Mksock:
		return unix.Mknodat(dir, base, unix.S_IFSOCK|0o600, 0)
	case Symlink:
		return unix.Symlinkat(c.Target, dir, base)
	case Rename:
		return a.twoNames(c.Path, c.To, func(d1 int, b1 string, d2 int, b2 string) error {
			a.file.close()
			return unix.Renameat(d1, b1, d2, b2)
		})
	case Link:
		return a.twoNames(c.Target, c.Path, func(d1 int, b1 string, d2 int, b2 string) error {
			return unix.Linkat(d1, b1, d2, b2, 0)
		})
	case Unlink:
		a.file.close()
		a.from.close()
		a.capability, a.capabilityPath = nil, ""
		return unix.Unlinkat(dir, base, 0)
	case Rmdir:
		err := unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		a.forget()
		return err
	case SetXattr:
		if c.XattrName == capabilityName {
			a.capability, a.capabilityPath = append([]byte(nil), c.Data...), c.Path
		}
		return unix.Lsetxattr(procPath(dir, base), c.XattrName, c.Data, 0)
	case RemoveXattr:
		return unix.Lremovexattr(procPath(dir, base), c.XattrName)
	case Chmod:
		return a.chmod(dir, base, c.Mode&0o7777)
	case Chown:
		if err := unix.Fchownat(dir, base, int(c.UID), int(c.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if a.capability != nil && a.capabilityPath == c.Path {
			return unix.Lsetxattr(procPath(dir, base), capabilityName, a.capability, 0)
		}
		return nil
	case Utimes:
		return setTimes(dir, base, c.Atime, c.Mtime)
	}
	return fmt.Errorf("%v is not expected here", c.Kind)
}

const capabilityName = "security.capability"

func (a *applier) ignore(format string, args ...any) {
	if len(a.res.Ignored) < 20 {
		a.res.Ignored = append(a.res.Ignored, fmt.Sprintf(format, args...))
	}
}
