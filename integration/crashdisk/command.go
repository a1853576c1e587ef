package crashdisk

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Command runs a program with a time limit.
func Command(limit time.Duration, name string, args ...string) error {
	_, err := Output(limit, nil, name, args...)
	return err
}

// Output runs a program with a time limit and extra environment, and returns what it
// printed. The program writes to a file and not to a pipe, and is killed with all it
// started: nothing that it leaves behind can make the caller wait.
func Output(limit time.Duration, env []string, name string, args ...string) (string, error) {
	return run(limit, env, nil, name, args...)
}

// run is Output with descriptors 3 and up for the program.
func run(limit time.Duration, env []string, files []*os.File, name string, args ...string) (string, error) {
	out, err := memFile()
	if err != nil {
		return "", err
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), env...)
	c.Stdout, c.Stderr = out, out
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 5 * time.Second
	done := make(chan error, 1)
	go func() { done <- c.Run() }() // a process in uninterruptible sleep is not waited for
	select {
	case err = <-done:
	case <-time.After(limit + 10*time.Second):
		err = ErrTimeout
	}
	b, _ := io.ReadAll(io.NewSectionReader(out, 0, 1<<20))
	if ctx.Err() != nil {
		err = fmt.Errorf("%w (%v)", ErrTimeout, limit)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(b)))
	}
	return string(b), err
}
