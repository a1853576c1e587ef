package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var program struct {
	sync.Once
	path string
	err  error
}

// Program returns the path of btrovl, built from this checkout once in a process, or
// that of BTROVL_PROGRAM, one that is built already. Every user may run it.
func Program(t testing.TB) string {
	t.Helper()
	program.Do(func() {
		if program.path = os.Getenv("BTROVL_PROGRAM"); program.path == "" {
			program.path, program.err = build()
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.path
}

func build() (string, error) {
	shared.Lock()
	base, err := baseLocked()
	shared.Unlock()
	if err != nil {
		return "", err
	}
	path := filepath.Join(base, "btrovl")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/btrovl/btrovl/cmd/btrovl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, nil
}
