package main

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// logLevel reads a level's name.
func logLevel(name string) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return 0, fmt.Errorf("log level %q is not debug, info, warn or error", name)
	}
	return l, nil
}

func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	l, err := logLevel(level)
	if err != nil {
		return nil, &usageError{msg: err.Error()}
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// journalSocket is where systemd takes a service's standard error.
const journalSocket = "/run/systemd/journal/stdout"

// logFile opens what a daemon's standard output and error become: the given
// file, or the journal, or <dir>/<pid>.log.
func logFile(path, dir string) (*os.File, error) {
	if path == "" {
		if f, err := journalStream(); err == nil {
			return f, nil
		}
		path = ownLog(dir)
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

func ownLog(dir string) string { return filepath.Join(dir, fmt.Sprintf("%d.log", os.Getpid())) }

// removeLog takes away the log of a daemon that ended well, those of daemons of the
// same pool that were killed before it (until now somebody could look), and the
// directory if it was the last one's: /run is memory.
func removeLog(dir string) {
	os.Remove(ownLog(dir))
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, path := range logs {
		pid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".log"))
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			os.Remove(path)
		}
	}
	os.Remove(dir)
}

// journalStream connects to the journal as systemd does for a service: a header
// of seven lines, then lines of text (systemd's sd_journal_stream_fd).
func journalStream() (*os.File, error) {
	c, err := net.Dial("unix", journalSocket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// identifier, unit, priority, level prefix, forward to syslog, kmsg, console
	if _, err := io.WriteString(c, "btrovl\n\n6\n0\n0\n0\n0\n"); err != nil {
		return nil, err
	}
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		return nil, err
	}
	return f, unix.SetNonblock(int(f.Fd()), false)
}

// detach makes f standard output and error, and /dev/null standard input.
func detach(f *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd, src := range []*os.File{null, f, f} {
		if err := unix.Dup3(int(src.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}
