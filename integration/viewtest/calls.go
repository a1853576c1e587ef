package viewtest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// callTable says what each call does. The fields that it uses stand at its end.
var callTable = map[string]func(a *actor, o *Op) (Result, error){
	"root":  func(a *actor, o *Op) (Result, error) { return Result{}, a.setRoot(o.Path) }, // Path
	"reset": func(a *actor, o *Op) (Result, error) { a.reset(); return Result{}, unix.Fchdir(a.root) },

	"open": (*actor).open, // FD Dir Path Flags Mode
	"close": func(a *actor, o *Op) (Result, error) { // FD
		fd := a.slot(o.FD)
		if fd < 0 {
			return Result{}, unix.EBADF
		}
		a.fd[o.FD] = -1
		return Result{}, unix.Close(fd)
	},
	"read": func(a *actor, o *Op) (Result, error) { // FD Len
		b := alignedBuffer(o.Len)
		n, err := unix.Read(a.slot(o.FD), b)
		return data(b, n), err
	},
	"pread": func(a *actor, o *Op) (Result, error) { // FD Len Off
		b := alignedBuffer(o.Len)
		n, err := unix.Pread(a.slot(o.FD), b, o.Off)
		return data(b, n), err
	},
	"write": func(a *actor, o *Op) (Result, error) { // FD Len Mode (the data's seed)
		n, err := unix.Write(a.slot(o.FD), pattern(o.Mode, o.Len))
		return count(n), err
	},
	"pwrite": func(a *actor, o *Op) (Result, error) { // FD Len Off Mode (the data's seed)
		n, err := unix.Pwrite(a.slot(o.FD), pattern(o.Mode, o.Len), o.Off)
		return count(n), err
	},
	"lseek": func(a *actor, o *Op) (Result, error) { // FD Off Flags (whence)
		var st unix.Stat_t
		dir := unix.Fstat(a.slot(o.FD), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
		if dir && o.Flags >= unix.SEEK_END {
			return Result{}, nil // END, DATA and HOLE go by the size, which directories have none of
		}
		n, err := unix.Seek(a.slot(o.FD), o.Off, o.Flags)
		return Result{N: n}, err
	},
	"map": (*actor).mapped, // FD Off Len Mode (0: read, else write with this seed)
	"truncate": func(a *actor, o *Op) (Result, error) { // Dir Path Off
		return Result{}, a.atPath(o, func(p string) error { return unix.Truncate(p, o.Off) })
	},
	"ftruncate": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Ftruncate(a.slot(o.FD), o.Off) }, // FD Off
	"fallocate": func(a *actor, o *Op) (Result, error) { // FD Flags Off Len
		return Result{}, unix.Fallocate(a.slot(o.FD), uint32(o.Flags), o.Off, o.Len)
	},
	"copy_file_range": func(a *actor, o *Op) (Result, error) { // FD Off FD2 Off2 Len
		off, off2 := o.Off, o.Off2
		n, err := unix.CopyFileRange(a.slot(o.FD), &off, a.slot(o.FD2), &off2, int(o.Len), 0)
		return count(n), err
	},
	"fsync":     func(a *actor, o *Op) (Result, error) { return Result{}, unix.Fsync(a.slot(o.FD)) },     // FD
	"fdatasync": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Fdatasync(a.slot(o.FD)) }, // FD

	"stat": func(a *actor, o *Op) (Result, error) { // Dir Path Flags (AT_SYMLINK_NOFOLLOW)
		return attributes(func(st *unix.Stat_t) error { return unix.Fstatat(a.dir(o.Dir), o.Path, st, o.Flags) })
	},
	"fstat": func(a *actor, o *Op) (Result, error) { // FD
		return attributes(func(st *unix.Stat_t) error { return unix.Fstat(a.slot(o.FD), st) })
	},
	"access": func(a *actor, o *Op) (Result, error) { // Dir Path Mode
		return Result{}, unix.Faccessat(a.dir(o.Dir), o.Path, o.Mode, 0)
	},
	"mkdir": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Mkdirat(a.dir(o.Dir), o.Path, o.Mode) }, // Dir Path Mode
	"rmdir": func(a *actor, o *Op) (Result, error) {
		return Result{}, unix.Unlinkat(a.dir(o.Dir), o.Path, unix.AT_REMOVEDIR)
	},
	"unlink": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Unlinkat(a.dir(o.Dir), o.Path, 0) },
	"rename": func(a *actor, o *Op) (Result, error) { // Dir Path Dir2 Path2 Flags
		return Result{}, unix.Renameat2(a.dir(o.Dir), o.Path, a.dir(o.Dir2), o.Path2, uint(o.Flags))
	},
	"link": func(a *actor, o *Op) (Result, error) { // Dir Path Dir2 Path2 Flags (AT_SYMLINK_FOLLOW)
		return Result{}, unix.Linkat(a.dir(o.Dir), o.Path, a.dir(o.Dir2), o.Path2, o.Flags)
	},
	"flink": func(a *actor, o *Op) (Result, error) { // FD Dir2 Path2: gives an O_TMPFILE file, or an open one, a name
		return Result{}, unix.Linkat(a.procfd, strconv.Itoa(a.slot(o.FD)), a.dir(o.Dir2), o.Path2, unix.AT_SYMLINK_FOLLOW)
	},
	"symlink": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Symlinkat(o.Path, a.dir(o.Dir2), o.Path2) }, // Path (target) Dir2 Path2
	"readlink": func(a *actor, o *Op) (Result, error) { // Dir Path
		b := make([]byte, 5000)
		n, err := unix.Readlinkat(a.dir(o.Dir), o.Path, b)
		if err != nil {
			return Result{}, err
		}
		return Result{Out: string(b[:n])}, nil
	},
	"mknod": func(a *actor, o *Op) (Result, error) { // Dir Path Mode Off (device)
		return Result{}, unix.Mknodat(a.dir(o.Dir), o.Path, o.Mode, int(o.Off))
	},
	"chmod":  func(a *actor, o *Op) (Result, error) { return Result{}, unix.Fchmodat(a.dir(o.Dir), o.Path, o.Mode, 0) }, // Dir Path Mode
	"fchmod": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Fchmod(a.slot(o.FD), o.Mode) },
	"chown": func(a *actor, o *Op) (Result, error) { // Dir Path UID GID Flags (AT_SYMLINK_NOFOLLOW)
		return Result{}, unix.Fchownat(a.dir(o.Dir), o.Path, o.UID, o.GID, o.Flags)
	},
	"fchown": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Fchown(a.slot(o.FD), o.UID, o.GID) },
	"utimes": func(a *actor, o *Op) (Result, error) { // Dir Path Off (atime) Off2 (mtime) Flags; 0 is now, -1 omit
		return Result{}, unix.UtimesNanoAt(a.dir(o.Dir), o.Path, []unix.Timespec{timespec(o.Off), timespec(o.Off2)}, o.Flags)
	},
	"setxattr": func(a *actor, o *Op) (Result, error) { // Dir Path Name Value Flags Mode (1: of the symlink itself)
		return Result{}, a.atPath(o, func(p string) error {
			if o.Mode == 1 {
				return unix.Lsetxattr(p, o.Name, o.Value, o.Flags)
			}
			return unix.Setxattr(p, o.Name, o.Value, o.Flags)
		})
	},
	"getxattr": func(a *actor, o *Op) (r Result, err error) { // Dir Path Name Len Mode
		b := make([]byte, o.Len)
		var n int
		err = a.atPath(o, func(p string) (err error) {
			if o.Mode == 1 {
				n, err = unix.Lgetxattr(p, o.Name, b)
			} else {
				n, err = unix.Getxattr(p, o.Name, b)
			}
			return err
		})
		if err != nil {
			return r, err
		}
		return Result{N: int64(n), Out: hex.EncodeToString(b[:min(n, len(b), 64)])}, nil
	},
	"listxattr": func(a *actor, o *Op) (r Result, err error) { // Dir Path Len Mode
		b := make([]byte, o.Len)
		var n int
		err = a.atPath(o, func(p string) (err error) {
			if o.Mode == 1 {
				n, err = unix.Llistxattr(p, b)
			} else {
				n, err = unix.Listxattr(p, b)
			}
			return err
		})
		if err != nil {
			return r, err
		}
		return Result{N: int64(n), Out: nameList(b[:min(n, len(b))])}, nil
	},
	"removexattr": func(a *actor, o *Op) (Result, error) { // Dir Path Name Mode
		return Result{}, a.atPath(o, func(p string) error {
			if o.Mode == 1 {
				return unix.Lremovexattr(p, o.Name)
			}
			return unix.Removexattr(p, o.Name)
		})
	},
	"fsetxattr": func(a *actor, o *Op) (Result, error) { // FD Name Value Flags
		return Result{}, unix.Fsetxattr(a.slot(o.FD), o.Name, o.Value, o.Flags)
	},
	"list":    (*actor).list,    // Dir Path: the names and types of a directory
	"flist":   (*actor).flist,   // FD: the same through an open directory, from its beginning
	"seekdir": (*actor).seekdir, // FD Len: reads, goes back to entry Len, reads again
	"chdir": func(a *actor, o *Op) (Result, error) { // Dir Path
		fd, err := unix.Openat(a.dir(o.Dir), o.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return Result{}, err
		}
		defer unix.Close(fd)
		return Result{}, unix.Fchdir(fd)
	},
	"getcwd": func(a *actor, o *Op) (Result, error) {
		b := make([]byte, 4096)
		n, err := unix.Getcwd(b)
		if err != nil {
			return Result{}, err
		}
		s := strings.TrimRight(string(b[:n]), "\x00")
		return Result{Out: "." + strings.TrimPrefix(s, a.path)}, nil
	},
	"cwdstat": func(a *actor, o *Op) (Result, error) {
		return attributes(func(st *unix.Stat_t) error { return unix.Fstatat(unix.AT_FDCWD, ".", st, 0) })
	},
	"umask": func(a *actor, o *Op) (Result, error) { return Result{N: int64(unix.Umask(int(o.Mode)))}, nil }, // Mode
	"flock": func(a *actor, o *Op) (Result, error) { return Result{}, unix.Flock(a.slot(o.FD), o.Flags|unix.LOCK_NB) },
	"setlk": func(a *actor, o *Op) (Result, error) { // FD Off Len Mode (F_RDLCK…) Flags (1: OFD lock)
		cmd := unix.F_SETLK
		if o.Flags == 1 {
			cmd = unix.F_OFD_SETLK
		}
		return Result{}, unix.FcntlFlock(uintptr(a.slot(o.FD)), cmd, &unix.Flock_t{Type: int16(o.Mode), Start: o.Off, Len: o.Len})
	},
	"tree": func(a *actor, o *Op) (Result, error) { // the whole target, see Tree
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := a.leave(); err != nil { // Tree needs /proc
			return Result{}, err
		}
		m, err := Tree(ctx, a.path)
		if err != nil {
			return Result{}, errors.New(err.Error()) // with the path, not the errno alone
		}
		b, err := json.Marshal(m)
		return Result{Out: string(b)}, err
	},
	"exec": (*actor).exec, // Dir Path
	"deep": (*actor).deep, // FD Dir Path Len: a chain of Len directories Path/Path/…, the last one opened in FD
}

func (a *actor) do(o *Op) Result {
	f := callTable[o.Call]
	if f == nil {
		return Result{Err: "no such call: " + o.Call}
	}
	r, err := f(a, o)
	if err != nil {
		if e, ok := errors.AsType[unix.Errno](err); ok {
			r.Err = unix.ErrnoName(e)
		} else {
			r.Err = err.Error()
		}
		r.N, r.Out = 0, ""
	}
	return r
}

func count(n int) Result { return Result{N: int64(max(n, 0))} }

func data(b []byte, n int) Result {
	if n <= 0 {
		return Result{}
	}
	return Result{N: int64(n), Out: fmt.Sprintf("%x…#%08x", b[:min(n, 4)], crc32.ChecksumIEEE(b[:n]))}
}

// alignedBuffer suits O_DIRECT.
func alignedBuffer(n int64) []byte {
	b := make([]byte, n+4096)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[off : off+int(n) : off+int(n)]
}

// pattern is n bytes that the seed decides.
func pattern(seed uint32, n int64) []byte {
	b := alignedBuffer(n)
	x := seed*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func timespec(sec int64) unix.Timespec {
	switch sec {
	case 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case -1:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	ts, _ := unix.TimeToTimespec(time.Unix(sec, sec%1000*1000))
	return ts
}

func (a *actor) open(o *Op) (Result, error) {
	if o.FD < 1 || o.FD > slots {
		return Result{}, unix.EBADF
	}
	fd, err := unix.Openat(a.dir(o.Dir), o.Path, o.Flags|unix.O_CLOEXEC, o.Mode)
	if err != nil {
		return Result{}, err // the slot keeps what it had
	}
	if old := a.fd[o.FD]; old >= 0 {
		unix.Close(old)
	}
	a.fd[o.FD] = fd
	return Result{}, nil
}

// attributes puts a stat into words. Times that a test did not choose are "now";
// directories have no size that anybody may rely on.
func attributes(stat func(*unix.Stat_t) error) (Result, error) {
	var st unix.Stat_t
	if err := stat(&st); err != nil {
		return Result{}, err
	}
	return Result{Out: statString(&st), Dev: uint64(st.Dev), Ino: st.Ino}, nil
}

func statString(st *unix.Stat_t) string {
	s := fmt.Sprintf("%06o %d:%d n%d", st.Mode, st.Uid, st.Gid, st.Nlink)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFBLK, unix.S_IFCHR:
		s += fmt.Sprintf(" r%d,%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	default:
		s += fmt.Sprintf(" s%d", st.Size)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFIFO {
		return s // see NotCompared
	}
	return s + " m" + when(st.Mtim) + " a" + when(st.Atim)
}

// chosenBefore separates the times that tests set from those that the kernel takes.
const chosenBefore = 1 << 30 // in 2004

func when(ts unix.Timespec) string {
	if int64(ts.Sec) >= chosenBefore {
		return "=now"
	}
	return fmt.Sprintf("%d.%d", ts.Sec, ts.Nsec)
}

// atPath calls f with a path for calls that have no -at form, in the directory
// that the path is relative to.
func (a *actor) atPath(o *Op, f func(string) error) error {
	dir := a.dir(o.Dir)
	if dir < 0 {
		return unix.EBADF
	}
	cwd, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(cwd)
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	err = f(o.Path)
	if back := unix.Fchdir(cwd); back != nil {
		return fmt.Errorf("back to the working directory: %w", back)
	}
	return err
}

func nameList(b []byte) string {
	var names []string
	for s := range strings.SplitSeq(string(b), "\x00") {
		if s != "" {
			names = append(names, s)
		}
	}
	sort.Strings(names)
	return strings.Join(names, " ")
}

func (a *actor) mapped(o *Op) (r Result, err error) {
	prot := unix.PROT_READ
	if o.Mode != 0 {
		prot |= unix.PROT_WRITE
	}
	m, err := unix.Mmap(a.slot(o.FD), o.Off, int(o.Len), prot, unix.MAP_SHARED)
	if err != nil {
		return Result{}, err
	}
	defer unix.Munmap(m)
	defer func() {
		if recover() != nil { // a fault, see debug.SetPanicOnFault
			r, err = Result{}, errors.New("SIGBUS")
		}
	}()
	if o.Mode == 0 {
		b := make([]byte, len(m))
		copy(b, m)
		return data(b, len(b)), nil
	}
	copy(m, pattern(o.Mode, o.Len))
	return Result{}, unix.Msync(m, unix.MS_SYNC)
}

// exec runs a program of the target and waits for it. Not os/exec: that wants a
// /dev/null.
func (a *actor) exec(o *Op) (r Result, err error) {
	err = a.atPath(o, func(p string) error {
		pid, err := syscall.ForkExec("./"+p, []string{p}, &syscall.ProcAttr{})
		if err != nil {
			return err
		}
		var status syscall.WaitStatus
		for {
			if _, err = syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				break
			}
		}
		r = Result{N: int64(status), Out: "ran"}
		return err
	})
	return r, err
}

func (a *actor) deep(o *Op) (Result, error) {
	if o.FD < 1 || o.FD > slots {
		return Result{}, unix.EBADF
	}
	fd, err := unix.Openat(a.dir(o.Dir), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, err
	}
	for i := range o.Len {
		err := unix.Mkdirat(fd, o.Path, 0o777)
		if err != nil && err != unix.EEXIST {
			unix.Close(fd)
			return Result{Out: fmt.Sprint(i)}, err
		}
		next, err := unix.Openat(fd, o.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		unix.Close(fd)
		if err != nil {
			return Result{Out: fmt.Sprint(i)}, err
		}
		fd = next
	}
	if old := a.fd[o.FD]; old >= 0 {
		unix.Close(old)
	}
	a.fd[o.FD] = fd
	return Result{}, nil
}
