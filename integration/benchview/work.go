package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// work is one line of the table.
type work struct {
	name  string
	limit float64 // the ratio to kernel overlayfs that is aimed at; 0: none
	run   func(j *job) (cost float64, err error)
	unit  string // "" is seconds

	runs   int  // in a round, all targets by turns; 0: one. What leaves something behind has one
	debian bool // needs a Debian tree
}

// job is one measurement.
type job struct {
	ctx   context.Context
	m     *machine
	t     *target
	dir   string // the target's root
	round int

	isCold bool
}

func (j *job) path(elem ...string) string { return filepath.Join(append([]string{j.dir}, elem...)...) }

// timed runs a command and returns how long it took. What it prints is thrown away.
func (j *job) timed(dir string, name string, args ...string) (float64, error) {
	ctx, cancel := context.WithTimeout(j.ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	start := time.Now()
	err := cmd.Run()
	d := time.Since(start).Seconds()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return d, nil
}

// cold drops all caches before the work; second does it once, after a cold start,
// before measuring, and warm twice.
//
// The second time a FUSE file system is asked for the attributes of everything that was
// read the first time, once: Linux takes the access time that it has for stale after each
// READ, READDIR and READLINK, and there is no way for a server to tell it otherwise
// (fuse_invalidate_atime). From the third time on nothing is asked.
//
// All begin again when somebody else on the machine dropped the caches meanwhile.
func cold(f func(*job) (float64, error)) func(*job) (float64, error) {
	return undisturbed(func(j *job) (float64, error) {
		if err := j.m.dropCaches(); err != nil {
			return 0, err
		}
		j.isCold = true
		return f(j)
	}, 1)
}

func warm(f func(*job) (float64, error)) func(*job) (float64, error) {
	return undisturbed(func(j *job) (float64, error) {
		for range 2 {
			if _, err := f(j); err != nil {
				return 0, err
			}
		}
		return f(j)
	}, 0)
}

func second(f func(*job) (float64, error)) func(*job) (float64, error) {
	return undisturbed(func(j *job) (float64, error) {
		if err := j.m.dropCaches(); err != nil {
			return 0, err
		}
		if _, err := f(j); err != nil {
			return 0, err
		}
		return f(j)
	}, 1)
}

// undisturbed repeats work during which caches were dropped more often than the
// work itself does it.
func undisturbed(f func(*job) (float64, error), own float64) func(*job) (float64, error) {
	return func(j *job) (cost float64, err error) {
		for range 5 {
			before, err := procField("/proc/vmstat", "drop_slab ")
			if err != nil {
				return 0, err
			}
			if cost, err = f(j); err != nil {
				return 0, err
			}
			if after, err := procField("/proc/vmstat", "drop_slab "); err != nil || after-before <= own {
				return cost, err
			}
		}
		note("others keep dropping the caches of this machine: what comes now is not worth much")
		return cost, nil
	}
}

// gitStatus does not write the index; mountAll let it be written once.
func gitStatus(j *job) (float64, error) {
	return j.timed("/", "git", "--no-optional-locks", "-c", "safe.directory=*", "-C", j.path("goroot/src"), "status", "--porcelain")
}
func find(j *job) (float64, error) { return j.timed("/", "find", j.path("rootfs"), "-ls") }
func du(j *job) (float64, error)   { return j.timed("/", "du", "-s", j.path("rootfs")) }
func ls(j *job) (float64, error)   { return j.timed("/", "ls", j.path("big")) }
func lsl(j *job) (float64, error)  { return j.timed("/", "ls", "-l", j.path("big")) }
func grep(j *job) (float64, error) {
	return j.timed("/", "sh", "-c", `grep -r "no such""string" "$1/runtime" "$1/cmd/compile" || test $? = 1`, "sh", j.path("goroot/src"))
}
func untar(j *job) (float64, error) {
	return j.timed("/", "tar", "-xf", filepath.Join(j.m.fs, "pkg.tar"), "-C", j.path("tmp"))
}
func rmrf(j *job) (float64, error) {
	return j.timed(j.path("tmp"), "rm", "-rf", "cmd", "net", "runtime", "crypto")
}

// rmLower removes directories of the base: whiteouts.
func rmLower(j *job) (float64, error) {
	dirs := []string{"mime", "net", // nothing that goBuild needs
		"html", "image", "encoding", "compress", "archive", "database", "debug", "text"}
	return j.timed(j.path("goroot/src"), "rm", "-rf", dirs[j.round%len(dirs)])
}

// goBuild builds a program with the toolchain in the view, and a new cache there.
func goBuild(j *job) (float64, error) {
	cache := j.path("tmp", "cache")
	d, err := j.timed(j.path("goroot/src/cmd/cgo"), "env", "-u", "GOFLAGS", "GOROOT="+j.path("goroot"), "GOTOOLCHAIN=local", "CGO_ENABLED=0", "HOME="+j.path("tmp"),
		"GOCACHE="+cache, "GOTMPDIR="+j.path("tmp"), j.path("goroot/bin/go"), "build", "-buildvcs=false", "strconv", "go/ast")
	if err != nil {
		return 0, err
	}
	return d, os.RemoveAll(cache)
}

// memory is what reading 1 GiB leaves occupied: page cache and the server.
func memory(j *job) (float64, error) {
	if err := j.m.dropCaches(); err != nil {
		return 0, err
	}
	before, err := meminfo("Cached:")
	if err != nil {
		return 0, err
	}
	if _, err := j.timed("/", "cat", j.path("huge")); err != nil {
		return 0, err
	}
	after, err := meminfo("Cached:")
	if err != nil {
		return 0, err
	}
	rss := 0.0
	if j.t.pid != 0 {
		if rss, err = procField(fmt.Sprintf("/proc/%d/status", j.t.pid), "VmRSS:"); err != nil {
			return 0, err
		}
	}
	return (after - before + rss) / 1024, nil
}

// meminfo returns a line of /proc/meminfo in KiB.
func meminfo(key string) (float64, error) { return procField("/proc/meminfo", key) }

func procField(file, key string) (float64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), key); ok {
			return strconv.ParseFloat(strings.Fields(rest)[0], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, key)
}

// several is how often short work is done in a round.
const several = 3

// allWork is the table of issue 3. Some lines leave something for the next one.
var allWork = []work{
	{name: "open+close ×20,000", limit: 1.0, run: openClose, runs: several},
	{name: "open+read+close ×20,000", limit: 1.0, run: openRead, runs: several},
	{name: "stat ×100,000", limit: 1.0, run: statMany, runs: several},
	{name: "ENOENT ×100,000", limit: 1.0, run: enoent, runs: several},
	{name: "git status, warm", limit: 1.1, run: warm(gitStatus), runs: several},
	{name: "git status, cold", limit: 1.5, run: cold(gitStatus), runs: several},
	{name: "find -ls, warm", limit: 1.1, run: warm(find), runs: several},
	{name: "find -ls, cold", limit: 1.5, run: cold(find), runs: several},
	{name: "find -ls, second time", run: second(find), runs: several},
	{name: "du, warm", limit: 1.1, run: warm(du), runs: several},
	{name: "du, cold", limit: 1.5, run: cold(du), runs: several},
	{name: "ls of 50,000, warm", limit: 1.5, run: warm(ls), runs: several},
	{name: "ls of 50,000, cold", limit: 4, run: cold(ls), runs: several},
	{name: "ls -l of 50,000, warm", run: warm(lsl)},
	{name: "grep -r, warm", limit: 1.2, run: warm(grep), runs: several},
	{name: "grep -r, cold", limit: 1.5, run: cold(grep), runs: several},
	{name: "grep -r, second time", run: second(grep), runs: several},
	{name: "sequential read, warm", limit: 1.05, run: warm(seqRead), runs: several},
	{name: "sequential read, cold", limit: 1.05, run: cold(seqRead), runs: several},
	{name: "random read 4k, warm", limit: 1.05, run: warm(randRead), runs: several},
	{name: "random read 4k, cold", limit: 1.05, run: cold(randRead), runs: several},
	{name: "mmap read, warm", limit: 1.05, run: warm(mmapRead), runs: several},
	{name: "mmap read, cold", limit: 1.05, run: cold(mmapRead), runs: several},
	{name: "sequential write + fsync", limit: 1.1, run: seqWrite, runs: several},
	{name: "random write 4k", limit: 1.1, run: randWrite, runs: several},
	{name: "go build", limit: 1.2, run: goBuild},
	{name: "apt install of 20 packages", limit: 1.2, debian: true, run: aptInstall},
	{name: "boot of a Debian tree, warm", limit: 1.2, debian: true, run: warm(boot), runs: several},
	{name: "boot of a Debian tree, cold", limit: 1.2, debian: true, run: cold(boot), runs: several},
	{name: "untar 6,000 files", limit: 2.5, run: untar},
	{name: "rm -rf of these", limit: 2.5, run: rmrf},
	{name: "create 10,000", limit: 2.5, run: createMany},
	{name: "rename 10,000", limit: 2.5, run: renameMany},
	{name: "unlink 10,000", limit: 2.5, run: unlinkMany},
	{name: "rm -rf in the base", run: rmLower},
	{name: "first write to a 1 GiB base file", limit: 1.0, run: firstWrite},
	{name: "memory after reading 1 GiB", limit: 1.1, unit: "MiB", run: memory},
}
