package crashdisk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Traced is what a traced run did.
type Traced struct {
	Calls  []string // its state-changing system calls, in order: "renameat2 /pool/state.tmp"
	Killed bool     // it was killed before the last of Calls was carried out
	Exit   int      // exit status if it ended by itself
	Output string   // what it printed
}

const fdTrace = 3 // where the tracer writes what it saw

// KillAt runs a program and kills it, with all that it has started, when it is about to
// make its n-th state-changing system call: the call is not carried out. With n = 0
// it runs to its end, and Calls tells how many there are.
//
// The program is traced by a process of its own (see [ServeIfChild]), because a
// tracer waits for any child.
func KillAt(n int, limit time.Duration, env []string, name string, args ...string) (Traced, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return Traced{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return Traced{}, err
	}
	result, err := memFile()
	if err != nil {
		return Traced{}, err
	}
	defer result.Close()
	var t Traced
	t.Output, err = run(limit, append(env, envRole+"=trace"), []*os.File{result}, self, append([]string{strconv.Itoa(n), path}, args...)...)
	if err != nil {
		return t, err
	}
	out := t.Output
	if err := json.NewDecoder(io.NewSectionReader(result, 0, 1<<24)).Decode(&t); err != nil {
		return t, fmt.Errorf("the tracer of %s left no result: %w", name, err)
	}
	t.Output = out
	return t, nil
}

// traceMain is the tracer process: os.Args is [self, n, program, arguments…].
func traceMain() error {
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // a tracee belongs to the thread that started it
	env := os.Environ()
	for i, e := range env {
		if strings.HasPrefix(e, envRole+"=") {
			env = append(env[:i:i], env[i+1:]...)
			break
		}
	}
	p, err := os.StartProcess(os.Args[2], os.Args[2:], &os.ProcAttr{
		Env:   env,
		Files: []*os.File{nil, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return err
	}
	t, err := trace(p.Pid, n)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.NewFile(fdTrace, "result")).Encode(t)
}

func trace(main, n int) (t Traced, err error) {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(main, &ws, unix.WALL, nil); err != nil {
		return t, err
	}
	const opts = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(main, opts); err != nil {
		return t, fmt.Errorf("cannot trace: %w", err)
	}
	calls := changingCalls()
	seen := map[int]bool{} // threads of all processes
	pid := main
	sig := 0
	for {
		// ESRCH: killed in between; the wait tells.
		if err := unix.PtraceSyscall(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return t, err
		}
		if pid, err = unix.Wait4(-1, &ws, unix.WALL, nil); err != nil {
			return t, err
		}
		for ws.Exited() || ws.Signaled() {
			delete(seen, pid) // its number may be somebody else's from now on
			if pid == main {
				if t.Exit = ws.ExitStatus(); ws.Signaled() {
					t.Exit = 128 + int(ws.Signal())
				}
				endAll(seen)
				return t, nil
			}
			if pid, err = unix.Wait4(-1, &ws, unix.WALL, nil); err != nil {
				return t, err
			}
		}
		sig = 0
		seen[pid] = true
		switch s := ws.StopSignal(); {
		case s == unix.SIGTRAP|0x80:
			c, ok := enteredCall(pid, calls)
			if !ok || t.Killed {
				break
			}
			if t.Calls = append(t.Calls, c); len(t.Calls) == n {
				t.Killed = true
				unix.Kill(pid, unix.SIGKILL) // whoever makes the call, so that it does not
				unix.Kill(main, unix.SIGKILL)
			}
		case s == unix.SIGTRAP, s == unix.SIGSTOP: // ptrace events, new threads
		default:
			sig = int(s)
		}
	}
}

// endAll kills what the program has left running, a daemon perhaps, and waits until
// it is gone with its locks and mounts. A tracee keeps its number until it is waited for.
func endAll(pids map[int]bool) {
	for pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
	var ws unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if err != nil {
			return // ECHILD
		}
		if ws.Stopped() { // a process that had not been seen yet
			unix.Kill(pid, unix.SIGKILL)
			unix.PtraceCont(pid, 0)
		}
	}
}

// syscallInfo is struct ptrace_syscall_info.
type syscallInfo struct {
	op   uint8
	_    [3]byte
	arch uint32
	ip   uint64
	sp   uint64
	nr   uint64 // on entry
	args [6]uint64
	_    [4]uint64
}

// enteredCall names the call that a thread is about to make, if it changes state.
func enteredCall(pid int, calls map[uint64]call) (string, bool) {
	const getSyscallInfo, entry = 0x420e, 1
	var i syscallInfo
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(pid), unsafe.Sizeof(i), uintptr(unsafe.Pointer(&i)), 0, 0); errno != 0 || i.op != entry {
		return "", false
	}
	c, ok := calls[i.nr]
	if !ok {
		return "", false
	}
	switch c.kind {
	case onFile: // not on a pipe, socket, eventfd or terminal
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(i.args[c.arg])))
		if err != nil || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "/dev/") || strings.HasPrefix(to, "/memfd:") {
			return "", false
		}
		return c.name + " " + to, true
	case onBtrfs:
		if (i.args[1]>>8)&0xff != 0x94 {
			return "", false
		}
		return fmt.Sprintf("%s btrfs %d", c.name, i.args[1]&0xff), true
	case creating:
		if i.args[2]&(unix.O_CREAT|unix.O_TRUNC|unix.O_TMPFILE&^unix.O_DIRECTORY) == 0 {
			return "", false
		}
	}
	return c.name, true
}

type callKind uint8

const (
	always   callKind = iota
	onFile            // counts if its descriptor argument is a file
	onBtrfs           // counts if it is a btrfs ioctl
	creating          // counts if its flags, the third argument, create or truncate
)

type call struct {
	name string
	kind callKind
	arg  int // which argument is the descriptor
}

// changingCalls returns the system calls that change a file system.
func changingCalls() map[uint64]call {
	m := map[uint64]call{
		unix.SYS_WRITE:           {"write", onFile, 0},
		unix.SYS_WRITEV:          {"writev", onFile, 0},
		unix.SYS_PWRITE64:        {"pwrite", onFile, 0},
		unix.SYS_PWRITEV:         {"pwritev", onFile, 0},
		unix.SYS_PWRITEV2:        {"pwritev2", onFile, 0},
		unix.SYS_COPY_FILE_RANGE: {"copy_file_range", onFile, 2},
		unix.SYS_SENDFILE:        {"sendfile", onFile, 0},
		unix.SYS_SPLICE:          {"splice", onFile, 2},
		unix.SYS_FALLOCATE:       {"fallocate", onFile, 0},
		unix.SYS_FTRUNCATE:       {"ftruncate", onFile, 0},
		unix.SYS_FSYNC:           {"fsync", onFile, 0},
		unix.SYS_FDATASYNC:       {"fdatasync", onFile, 0},
		unix.SYS_SYNCFS:          {"syncfs", onFile, 0},
		unix.SYS_FCHMOD:          {"fchmod", onFile, 0},
		unix.SYS_FCHOWN:          {"fchown", onFile, 0},
		unix.SYS_FSETXATTR:       {"fsetxattr", onFile, 0},
		unix.SYS_FREMOVEXATTR:    {"fremovexattr", onFile, 0},
		unix.SYS_FLOCK:           {"flock", onFile, 0},
		unix.SYS_IOCTL:           {"ioctl", onBtrfs, 0},
		unix.SYS_OPENAT:          {"openat", creating, 0},
	}
	for nr, name := range map[uint64]string{
		unix.SYS_OPENAT2: "openat2", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat",
		unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
		unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_FCHMODAT: "fchmodat",
		unix.SYS_FCHMODAT2: "fchmodat2", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_UTIMENSAT: "utimensat",
		unix.SYS_SETXATTR: "setxattr", unix.SYS_LSETXATTR: "lsetxattr", unix.SYS_REMOVEXATTR: "removexattr",
		unix.SYS_LREMOVEXATTR: "lremovexattr", unix.SYS_TRUNCATE: "truncate", unix.SYS_SYNC: "sync",
		unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_MOVE_MOUNT: "move_mount",
	} {
		m[nr] = call{name: name}
	}
	addOldCalls(m)
	return m
}
