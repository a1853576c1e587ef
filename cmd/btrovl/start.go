package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// readyTime bounds how long a mount may take to answer.
const readyTime = 2 * time.Minute

// spawn starts this program again as the daemon of a view and returns when the
// mount answers. The child has its own session and says "ready" on a pipe; until
// then its standard error is ours, so that it can say itself what is wrong; a
// *silent error then carries its exit code.
func (a *app) spawn(ctx context.Context, o mountOptions) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot start the view's process: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the view's process: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(exe, o.args(a.pool)...)
	cmd.Args[0] = daemonName(o)
	cmd.Dir = "/"
	cmd.Stderr = a.stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start the view's process: %w", err)
	}
	told := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(r, 16))
		told <- string(b)
	}()
	select {
	case s := <-told:
		if s == readyWord {
			return cmd.Process.Release()
		}
	case <-ctx.Done():
		return errors.Join(ctx.Err(), stopChild(cmd))
	case <-time.After(readyTime):
		return errors.Join(fmt.Errorf("the view at %s does not answer after %v", o.mountpoint, readyTime), stopChild(cmd))
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &silent{exit.ExitCode()}
	}
	return fmt.Errorf("the view's process ended before the mount answered: %v", cmd.ProcessState)
}

// readyWord is what the daemon writes when its mount answers.
const readyWord = "ready\n"

// stopChild ends a child that is not ready: politely, so that it unmounts, then
// for good.
func stopChild(cmd *exec.Cmd) error {
	cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(10 * time.Second):
		cmd.Process.Kill()
		<-done
		return errors.New("the view's process had to be killed")
	}
}

// daemonName is the child's name. systemd kills every process when it switches
// from the initramfs to the root and at the end of a shutdown, but not those whose
// name begins with @ (systemd.io/ROOT_STORAGE_DAEMONS).
func daemonName(o mountOptions) string {
	if o.rootStorage {
		return "@btrovl"
	}
	return "btrovl"
}

// becomeDaemon is what a child does when its mount answers.
func becomeDaemon(readyFD int, log *os.File) error {
	if err := detach(log); err != nil {
		return err
	}
	ready := os.NewFile(uintptr(readyFD), "ready")
	defer ready.Close()
	_, err := io.WriteString(ready, readyWord)
	return err
}
