package viewtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// actorEnv tells a process of this executable that it is an actor.
const actorEnv = "BTROVL_VIEWTEST_ACTOR"

// slots is how many descriptors an actor has, numbered from 1.
const slots = 6

// User is who an actor is.
type User struct {
	UID, GID int
	Groups   []int
	Umask    int
}

// Users of the actors of a program: root, an owner, somebody of the owner's group,
// a stranger who is in the owner's group by a supplementary one.
var Users = []User{
	{0, 0, nil, 0o022},
	{1000, 1000, []int{1000, 2000}, 0o022},
	{1001, 1000, []int{1000}, 0o002},
	{1002, 1002, []int{1002, 1000, 2000}, 0},
}

// ActorMain does not return if this process was started as an actor. It is to be
// called first by the main function of an executable that uses this package.
func ActorMain() {
	spec := os.Getenv(actorEnv)
	if spec == "" {
		return
	}
	var u User
	if err := json.Unmarshal([]byte(spec), &u); err != nil {
		fmt.Fprintln(os.Stderr, "viewtest actor:", err)
		os.Exit(2)
	}
	if err := actorLoop(u, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "viewtest actor:", err)
		os.Exit(2)
	}
	os.Exit(0)
}

// actor is the state of an actor process. Its target is its root directory too, so
// that "..", symlinks and mistakes never lead out of it.
type actor struct {
	user    User
	machine int            // the machine's root directory
	procfd  int            // /proc/self/fd, which the chroot hides
	root    int            // the target's root
	path    string         // of that
	fd      [slots + 1]int // by slot, -1 is closed; slot 0 is not used
}

func actorLoop(u User, in io.Reader, out io.Writer) error {
	debug.SetPanicOnFault(true) // a mapping beyond the end of its file is a result, not a crash
	a := &actor{user: u, root: -1}
	for i := range a.fd {
		a.fd[i] = -1
	}
	var err error
	if a.machine, err = unix.Open("/", unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0); err != nil {
		return err
	}
	if a.procfd, err = unix.Open("/proc/self/fd", unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0); err != nil {
		return err
	}
	unix.Umask(u.Umask)
	r := bufio.NewReaderSize(in, 1<<16)
	enc := json.NewEncoder(out)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var op Op
		if err := json.Unmarshal(line, &op); err != nil {
			return err
		}
		if err := enc.Encode(a.do(&op)); err != nil {
			return err
		}
	}
}

// setRoot moves the actor to another target: everything is closed, the root is
// opened as root, and then the user is put on. Root stays the saved user id, which
// gives no rights in any call and lets the actor do this again.
func (a *actor) setRoot(path string) error {
	a.reset()
	if err := errors.Join(syscall.Setresuid(0, 0, 0), syscall.Setresgid(0, 0, 0)); err != nil {
		return err
	}
	if err := a.leave(); err != nil {
		return err
	}
	if a.root >= 0 {
		unix.Close(a.root)
	}
	var err error
	if a.root, err = unix.Open(path, unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0); err != nil {
		return err
	}
	a.path = path
	if err := errors.Join(unix.Fchdir(a.root), unix.Chroot(".")); err != nil {
		return err
	}
	u := a.user
	if err := errors.Join(syscall.Setgroups(u.Groups), syscall.Setresgid(u.GID, u.GID, 0), syscall.Setresuid(u.UID, u.UID, 0)); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) // a change of user makes /proc/self root's
}

// leave makes the machine's root directory the actor's again.
func (a *actor) leave() error { return errors.Join(unix.Fchdir(a.machine), unix.Chroot(".")) }

func (a *actor) reset() {
	for i, fd := range a.fd {
		if fd >= 0 {
			unix.Close(fd)
			a.fd[i] = -1
		}
	}
	unix.Umask(a.user.Umask)
}

func (a *actor) dir(slot int) int {
	if slot == 0 {
		return a.root
	}
	return a.slot(slot)
}

func (a *actor) slot(n int) int {
	if n < 1 || n > slots {
		return -1
	}
	return a.fd[n]
}

// process is an actor as the test sees it.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte
	log   *strings.Builder
	done  chan struct{}
}

// startActor starts an actor process. The context's end kills it.
func startActor(ctx context.Context, u User) (*process, error) {
	spec, err := json.Marshal(u)
	if err != nil {
		return nil, err
	}
	p := &process{lines: make(chan []byte, 1), log: &strings.Builder{}, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	p.cmd.Env = append(os.Environ(), actorEnv+"="+string(spec), "GOMAXPROCS=2")
	p.cmd.Stderr = p.log
	p.cmd.WaitDelay = 5 * time.Second
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// Not StdoutPipe: Wait would close that under the reader.
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout = pw
	if err := p.cmd.Start(); err != nil {
		pr.Close()
		pw.Close()
		return nil, err
	}
	pw.Close()
	go func() {
		defer close(p.done)
		defer pr.Close()
		defer close(p.lines)
		r := bufio.NewReaderSize(pr, 1<<16)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			p.lines <- line
		}
	}()
	return p, nil
}

// send starts a call; receive gets its result.
func (p *process) send(op *Op) error {
	b, err := json.Marshal(op)
	if err != nil {
		return err
	}
	_, err = p.in.Write(append(b, '\n'))
	return err
}

// errHang is a call that did not return.
var errHang = errors.New("the call did not return in time")

func (p *process) receive() (Result, error) {
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case line, ok := <-p.lines:
		if !ok {
			p.cmd.Wait()
			return Result{}, fmt.Errorf("the actor died: %v: %s", p.cmd.ProcessState, p.log)
		}
		var r Result
		err := json.Unmarshal(line, &r)
		return r, err
	case <-timer.C:
		return Result{}, errHang
	}
}

func (p *process) call(op *Op) (Result, error) {
	if err := p.send(op); err != nil {
		return Result{}, err
	}
	return p.receive()
}

// stop ends the actor; one that hangs in a call is killed, and given up if that
// does not help (a process in an unanswered FUSE request dies only with the mount).
func (p *process) stop() {
	p.in.Close()
	waited := make(chan struct{})
	go func() { p.cmd.Wait(); close(waited) }()
	select {
	case <-waited:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		select {
		case <-waited:
		case <-time.After(5 * time.Second):
		}
	}
	// The reader may stand with a line that nobody takes.
	for {
		select {
		case _, ok := <-p.lines:
			if !ok {
				return
			}
		case <-time.After(5 * time.Second):
			return
		}
	}
}
