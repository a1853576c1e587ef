package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/btrovl/btrovl/integration/testenv"
)

// The test binary is the program too: scripts call "btrovl", which runs main in a
// process of its own, and the daemon is that binary started again.
func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"btrovl": main, "@btrovl": main, "mount.btrovl": main})
}

type suite struct{ m *testing.M }

func (s suite) Run() int { return testenv.Code(s.m) }

// scriptTime bounds a script, so that nothing ever hangs. It counts from before the
// script waits for its turn.
const scriptTime = 5 * time.Minute

// TestScripts runs testdata/*.txt. A script finds
//
//	$BTRFS   an empty directory on btrfs
//	$VIEWS   an empty directory for mount points; what is mounted there is taken away
//
//	device.sh  a script that makes a maker's and a device's pool and bundles
//
// and these commands besides testscript's own:
//
//	code N COMMAND…       the command must end with exit code N
//	json PATH [VALUE]     the last standard output is JSON in which PATH (a.b.0.c; len
//	                      is a length) has that value, or exists
//	nobody N btrovl ARG…  the same as code, as an unprivileged user
func TestScripts(t *testing.T) {
	testenv.FUSE(t)
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			fs, views := testenv.Btrfs(t), testenv.Dir(t)
			testscript.Run(t, testscript.Params{
				Files:    []string{file},
				Deadline: time.Now().Add(scriptTime),
				Setup: func(env *testscript.Env) error {
					env.Setenv("BTRFS", fs)
					env.Setenv("VIEWS", views)
					env.Setenv("BTROVL_CONFIG", filepath.Join(env.WorkDir, "config.toml"))
					env.Setenv("TMPDIR", env.WorkDir)
					b, err := os.ReadFile("testdata/lib/device.sh")
					if err != nil {
						return err
					}
					return os.WriteFile(filepath.Join(env.WorkDir, "device.sh"), b, 0o644)
				},
				Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
					"code": scriptCode, "json": scriptJSON, "nobody": scriptNobody(t),
				},
			})
		})
	}
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit code %d (%s), expected %d (%s)", strings.Join(args[1:], " "), got, kindOf(got), want, kindOf(want))
	}
}

func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: json PATH [VALUE]")
	}
	v, err := jsonPath(ts.ReadFile("stdout"), args[0])
	switch {
	case neg && err == nil && len(args) == 1:
		ts.Fatalf("%s is there: %v", args[0], v)
	case neg && len(args) == 1:
	case err != nil:
		ts.Fatalf("%v", err)
	case len(args) == 2 && (fmt.Sprint(v) == args[1]) == neg:
		ts.Fatalf("%s is %v, expected %s", args[0], v, args[1])
	}
}

// jsonPath finds a value; the part "len" is the length of a list.
func jsonPath(text, path string) (any, error) {
	var v any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("standard output is not JSON: %v\n%s", err, text)
	}
	for _, key := range strings.Split(path, ".") {
		switch w := v.(type) {
		case map[string]any:
			var ok bool
			if v, ok = w[key]; !ok {
				return nil, fmt.Errorf("no %q in %s", key, path)
			}
		case []any:
			if key == "len" {
				v = len(w)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(w) {
				return nil, fmt.Errorf("no element %q of %d in %s", key, len(w), path)
			}
			v = w[i]
		default:
			return nil, fmt.Errorf("nothing below %q in %s", key, path)
		}
	}
	return v, nil
}

// scriptNobody runs the program as an unprivileged user, from a copy that such a
// user can reach. A process of its own makes the copy: a descriptor that this one
// has open for writing could be inherited by a script that starts meanwhile, and
// the copy could not be run ("text file busy").
func scriptNobody(t *testing.T) func(*testscript.TestScript, bool, []string) {
	dir := testenv.Dir(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "btrovl")
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if len(args) < 3 || args[1] != "btrovl" {
			ts.Fatalf("usage: nobody N btrovl ARG…")
		}
		if _, err := os.Stat(program); err != nil {
			ts.Check(exec.Command("install", "-m", "755", exe, program).Run())
		}
		argv := []string{args[0], "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", program}
		scriptCode(ts, neg, append(argv, args[2:]...))
	}
}
