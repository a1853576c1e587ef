package trusttest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

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
	code, out := output(t, 0, pool, append([]string{testenv.Program(t)}, args...)...)
	if code != 0 {
		t.Fatalf("btrovl %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// patience bounds a command; only a hang reaches it.
func patience() time.Duration {
	if os.Getenv("BTROVL_MEMORY") != "" {
		return 30 * time.Minute
	}
	return 2 * time.Minute
}
