package trusttest

import (
	"bytes"
	"context"
	"errors"
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
	dir string
	err error
}

// btrovl returns the path of the program, built from this checkout, which every user can run.
func btrovl(t testing.TB) string {
	t.Helper()
	program.Do(func() {
		if program.dir, program.err = os.MkdirTemp("", "btrovl-trusttest-"); program.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(program.dir, "btrovl"), "github.com/btrovl/btrovl/cmd/btrovl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		program.err = errors.Join(err, os.Chmod(program.dir, 0o755))
		if err != nil {
			program.err = errors.New(string(out))
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return filepath.Join(program.dir, "btrovl")
}

// nobody is a user without any rights.
const nobody = 65534

// output runs a command as a user and returns its exit code and all it printed.
func output(t testing.TB, uid uint32, pool string, argv ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience())
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "BTROVL_POOL="+pool, "BTROVL_CONFIG=/nonexistent/btrovl", "LC_ALL=C")
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second // a daemon that is left keeps the pipe
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out.String())
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// must runs the program as root.
func must(t testing.TB, pool string, args ...string) string {
	t.Helper()
	code, out := output(t, 0, pool, append([]string{btrovl(t)}, args...)...)
	if code != 0 {
		t.Fatalf("btrovl %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

func ok(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// patience bounds a command; only a hang reaches it.
func patience() time.Duration {
	if os.Getenv("BTROVL_MEMORY") != "" {
		return 30 * time.Minute
	}
	return 2 * time.Minute
}
