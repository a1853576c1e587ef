package inittest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

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

// pool makes a pool on btrfs and returns its path and a function that runs btrovl on it.
func pool(t testing.TB) (dir string, run func(args ...string) string) {
	t.Helper()
	dir = filepath.Join(testenv.Btrfs(t), "pool")
	run = func(args ...string) string {
		t.Helper()
		out, err := command(2*time.Minute, poolEnv(dir), testenv.Program(t), args...)
		testenv.Must(t, err)
		return out
	}
	run("init", dir)
	return dir, run
}

func poolEnv(dir string) []string {
	return []string{"BTROVL_POOL=" + dir, "BTROVL_CONFIG=/nonexistent"}
}
