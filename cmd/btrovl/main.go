// Command btrovl runs a machine whose operating system is a read-only btrfs
// subvolume: it mounts that base with writable overlays on top, replaces the
// base beneath the mounts from a small signed bundle, backs overlays up, and
// puts the machine back to factory state.
//
// This package is the only one that knows all others. Bytes flow one way
// through it: a bundle into a stage, the stage into a base, the base into a
// deployment, and then the mounted views are told to look at the record again.
//
//	main.go      the process: arguments, standard files, signals, exit code
//	root.go      the command tree; manual.go, the shape of every help text
//	exit.go      the one table of exit codes, and which error has which
//	tui.go       every rule about what is printed; progress.go, long work
//	pool.go      which pool is meant, opening and locking it
//	daemon*.go   the process that serves a view; views.go, talking to it
//	cmd_*.go     one file a command: flags, a few calls, print
//
// docs/cli.md is the contract for scripts; tests compare it with the program.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
