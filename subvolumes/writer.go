package subvolumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Writer is who may change the pool: it holds the lock. It is for one goroutine.
type Writer struct {
	p    *Pool
	lock *os.File
}

// Lock waits for the pool's lock, up to wait (0: one attempt). what names the
// command, for those who find the pool busy. Errors: *BusyError, those of
// [Pool.Record].
func (p *Pool) Lock(ctx context.Context, what string, wait time.Duration) (*Writer, error) {
	path := p.Dir() + "/" + nameLock
	const flags = unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(p.dir.Fd()), nameLock, unix.O_RDWR|unix.O_CREAT|flags, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) {
		// A device whose file system went read-only or is full still has to boot.
		fd, err = unix.Openat(int(p.dir.Fd()), nameLock, unix.O_RDONLY|flags, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock pool: open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := flockWait(ctx, f, wait); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid, command := lockOwner(f)
			err = &BusyError{path, pid, command}
		} else {
			err = fmt.Errorf("cannot lock pool: %s: %w", path, err)
		}
		f.Close()
		return nil, err
	}
	// For messages only, so neither durable nor necessary.
	if f.Truncate(0) == nil {
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"+what+"\n"), 0)
	}
	return &Writer{p, f}, nil
}

// flockWait tries until the lock is free, wait is over (EWOULDBLOCK) or ctx ends.
func flockWait(ctx context.Context, f *os.File, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		if !time.Now().Before(deadline) {
			return unix.EWOULDBLOCK
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func lockOwner(f *os.File) (pid int, command string) {
	buf := make([]byte, 4096)
	n, _ := f.ReadAt(buf, 0)
	first, rest, _ := bytes.Cut(buf[:n], []byte("\n"))
	second, _, _ := bytes.Cut(rest, []byte("\n"))
	pid, _ = strconv.Atoi(string(first))
	return pid, string(second)
}

// Close releases the lock. If the reserve was used up and there is room again, it is
// made anew first.
func (w *Writer) Close() error {
	if w.lock == nil {
		return nil
	}
	w.renewReserve()
	w.lock.Truncate(0)
	err := w.lock.Close()
	w.lock = nil
	return err
}

// Pool returns the pool.
func (w *Writer) Pool() *Pool { return w.p }

// Record reads the state from disk.
func (w *Writer) Record() (*Record, error) { return w.p.Record() }

// Commit lets fn change a fresh copy of the record, checks it and replaces the state.
// On return without error the new state is on stable storage; after an error, the old
// or the new one is. Everything that the new record names must be on stable storage
// before. If fn fails, nothing is changed and its error is returned.
func (w *Writer) Commit(ctx context.Context, fn func(*Record) error) (*Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := w.Record()
	if err != nil {
		return nil, err
	}
	old, err := encodeRecord(r)
	if err != nil {
		return nil, err
	}
	if err := fn(r); err != nil {
		return nil, err
	}
	if err := w.withReserve(func() error { return w.writeState(r, old) }); err != nil {
		return nil, fmt.Errorf("cannot commit the state of pool %s: %w", w.p.Dir(), err)
	}
	return r, nil
}

// writeState is the commit: the one moment at which the new record counts is the rename.
func (w *Writer) writeState(r *Record, old []byte) error {
	if err := r.validate(); err != nil {
		return fmt.Errorf("the new record is wrong: %w", err)
	}
	data, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if err := w.writeFile(w.p.dir, nameState, nameStateNew, data); err != nil {
		return err
	}
	if old != nil {
		// For doctor, should state ever be lost. It may be missing or old, so it is not
		// synced, and failing to write it is no failure.
		w.replaceQuietly(nameStateOld, old)
	}
	return nil
}

// writeFile replaces dir/name durably, by way of dir/temp.
func (w *Writer) writeFile(dir *os.File, name, temp string, data []byte) error {
	path := dir.Name() + "/" + temp
	if err := w.p.at("write " + name); err != nil {
		return err
	}
	unix.Unlinkat(int(dir.Fd()), temp, 0)
	fd, err := unix.Openat(int(dir.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.Write(data)
	if err == nil {
		if err = w.p.at("sync " + temp); err == nil {
			err = f.Sync() // before the rename: else it may name an empty file after a cut
		}
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	if err := w.p.at("rename " + temp + " to " + name); err != nil {
		return err
	}
	if err := unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name); err != nil {
		return &os.PathError{Op: "rename", Path: path, Err: err}
	}
	if err := w.p.at("sync directory of " + name); err != nil {
		return err
	}
	return dir.Sync()
}

func (w *Writer) replaceQuietly(name string, data []byte) {
	temp := name + ".new"
	dir := int(w.p.dir.Fd())
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), temp)
	_, err = f.Write(data)
	if err2 := f.Close(); err == nil && err2 == nil {
		unix.Renameat(dir, temp, dir, name)
	}
}

// now is the time for records: to the millisecond, as people read it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
