package inittest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) {
	code := testenv.Code(m)
	if program.dir != "" {
		os.RemoveAll(program.dir)
	}
	os.Exit(code)
}

var program struct {
	sync.Once
	dir, path string
	err       error
}

// btrovl returns the path of the program, built from this checkout.
func btrovl(t testing.TB) string {
	t.Helper()
	program.Do(func() {
		if program.dir, program.err = os.MkdirTemp("", "btrovl-inittest-"); program.err != nil {
			return
		}
		program.path = filepath.Join(program.dir, "btrovl")
		_, program.err = command(5*time.Minute, []string{"CGO_ENABLED=0"}, "go", "build", "-o", program.path, "github.com/btrovl/btrovl/cmd/btrovl")
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.path
}

// command runs a program with a time limit. Its output goes to a file, so that a
// daemon that it leaves behind keeps nobody waiting.
func command(limit time.Duration, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := os.CreateTemp("", "btrovl-inittest-out-")
	if err != nil {
		return "", err
	}
	defer out.Close()
	defer os.Remove(out.Name())
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), env...)
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	err = c.Run()
	b, _ := os.ReadFile(out.Name())
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, b)
	}
	return string(b), err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pool makes a pool on btrfs and returns its path and a function that runs btrovl on it.
func pool(t testing.TB) (dir string, run func(args ...string) string) {
	t.Helper()
	dir = filepath.Join(testenv.Btrfs(t), "pool")
	run = func(args ...string) string {
		t.Helper()
		out, err := command(2*time.Minute, poolEnv(dir), btrovl(t), args...)
		must(t, err)
		return out
	}
	run("init", dir)
	return dir, run
}

func poolEnv(dir string) []string {
	return []string{"BTROVL_POOL=" + dir, "BTROVL_CONFIG=/nonexistent"}
}
