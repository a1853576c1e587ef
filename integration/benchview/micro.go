package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loop times n calls of f on a thread of its own.
func loop(n int, f func(i int) error) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := time.Now()
	for i := range n {
		if err := f(i); err != nil {
			return 0, err
		}
	}
	return time.Since(start).Seconds(), nil
}

// The loops whose calls may take longer than 20 µs make them without telling Go's
// scheduler, as a program in C would. Told of it, the scheduler takes the loop's processor away
// in every such call, and the threads that it wakes for that get between the loop and the
// view's server. Overlayfs's calls are shorter than that.

func open(path string, flags int) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	at := unix.AT_FDCWD
	return call(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(p)), uintptr(flags|unix.O_CLOEXEC), 0o644)
}

func pread(fd int, b []byte, off int64) (int, error) {
	return call(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(off))
}

func pwrite(fd int, b []byte, off int64) (int, error) {
	return call(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(off))
}

func rename(from, to string) error {
	p, err := unix.BytePtrFromString(from)
	if err != nil {
		return err
	}
	q, err := unix.BytePtrFromString(to)
	if err != nil {
		return err
	}
	at := unix.AT_FDCWD
	_, err = call(unix.SYS_RENAMEAT, uintptr(at), uintptr(unsafe.Pointer(p)), uintptr(at), uintptr(unsafe.Pointer(q)))
	return err
}

func unlink(path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	at := unix.AT_FDCWD
	_, err = call(unix.SYS_UNLINKAT, uintptr(at), uintptr(unsafe.Pointer(p)), 0, 0)
	return err
}

func call(nr, a, b, c, d uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(nr, a, b, c, d, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

const someFile = "goroot/VERSION"

func openClose(j *job) (float64, error) {
	p := j.path(someFile)
	return loop(j.m.size.calls, func(int) error {
		fd, err := unix.Open(p, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
}

func openRead(j *job) (float64, error) {
	p, b := j.path(someFile), make([]byte, 4096)
	return loop(j.m.size.calls, func(int) error {
		fd, err := unix.Open(p, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		if _, err := unix.Read(fd, b); err != nil {
			return err
		}
		return unix.Close(fd)
	})
}

func statMany(j *job) (float64, error) {
	p := j.path(someFile)
	var st unix.Stat_t
	return loop(5*j.m.size.calls, func(int) error { return unix.Stat(p, &st) })
}

func enoent(j *job) (float64, error) {
	p := j.path("goroot/no such file")
	var st unix.Stat_t
	return loop(5*j.m.size.calls, func(int) error {
		if err := unix.Stat(p, &st); err != unix.ENOENT {
			return fmt.Errorf("stat of a missing file: %v", err)
		}
		return nil
	})
}

// withFile opens a file around f.
func withFile(path string, flags int, f func(fd int) (float64, error)) (float64, error) {
	fd, err := unix.Open(path, flags, 0o644)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return f(fd)
}

func seqRead(j *job) (float64, error) {
	b := make([]byte, 1<<20)
	return withFile(j.path("read"), unix.O_RDONLY, func(fd int) (float64, error) {
		return loop(int(j.m.size.read>>20), func(i int) error { return whole(pread(fd, b, int64(i)<<20))(len(b)) })
	})
}

func randRead(j *job) (float64, error) {
	b, r := make([]byte, 4096), rand.New(rand.NewPCG(1, uint64(j.round)))
	return withFile(j.path("read"), unix.O_RDONLY, func(fd int) (float64, error) {
		return loop(j.reads(), func(int) error { return whole(pread(fd, b, r.Int64N(j.m.size.read/4096)*4096))(len(b)) })
	})
}

// reads is fewer where each one goes to the disk.
func (j *job) reads() int {
	if j.isCold {
		return j.m.size.calls / 5
	}
	return 5 * j.m.size.calls
}

func mmapRead(j *job) (float64, error) {
	return withFile(j.path("read"), unix.O_RDONLY, func(fd int) (float64, error) {
		start := time.Now()
		m, err := unix.Mmap(fd, 0, int(j.m.size.read), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, err
		}
		defer unix.Munmap(m)
		var sum byte
		for i := 0; i < len(m); i += 4096 {
			sum += m[i]
		}
		runtime.KeepAlive(sum)
		return time.Since(start).Seconds(), nil
	})
}

func seqWrite(j *job) (float64, error) {
	if err := j.m.sync(); err != nil { // the target before this one has left its own behind
		return 0, err
	}
	b := make([]byte, 1<<20)
	return withFile(j.path("tmp/w"), unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, func(fd int) (float64, error) {
		d, err := loop(int(j.m.size.read>>20), func(i int) error { b[0]++; return whole(pwrite(fd, b, int64(i)<<20))(len(b)) })
		if err != nil {
			return 0, err
		}
		s, err := loop(1, func(int) error { return unix.Fsync(fd) })
		return d + s, err
	})
}

func randWrite(j *job) (float64, error) {
	b, r := make([]byte, 4096), rand.New(rand.NewPCG(2, uint64(j.round)))
	return withFile(j.path("tmp/w"), unix.O_RDWR, func(fd int) (float64, error) {
		return loop(3*j.m.size.calls/2, func(int) error { return whole(pwrite(fd, b, r.Int64N(j.m.size.read/4096)*4096))(len(b)) })
	})
}

func whole(n int, err error) func(want int) error {
	return func(want int) error {
		if err == nil && n != want {
			err = fmt.Errorf("%d of %d bytes", n, want)
		}
		return err
	}
}

func (j *job) name(prefix string, i int) string {
	return fmt.Sprintf("%s/tmp/many/%s%d", j.dir, prefix, i)
}

func createMany(j *job) (float64, error) {
	if err := os.Mkdir(j.path("tmp/many"), 0o755); err != nil {
		return 0, err
	}
	hello := []byte("hello world\n")
	return loop(j.m.size.created, func(i int) error {
		fd, err := open(j.name("f", i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
		if err != nil {
			return err
		}
		if err := whole(pwrite(fd, hello, 0))(len(hello)); err != nil {
			return err
		}
		return unix.Close(fd)
	})
}

func renameMany(j *job) (float64, error) {
	return loop(j.m.size.created, func(i int) error { return rename(j.name("f", i), j.name("g", i)) })
}

func unlinkMany(j *job) (float64, error) {
	d, err := loop(j.m.size.created, func(i int) error { return unlink(j.name("g", i)) })
	if err != nil {
		return 0, err
	}
	return d, os.Remove(j.path("tmp/many"))
}

// firstWrite opens a file of the base that nobody changed yet and changes one page; the
// median of some, because the disk is waited for. The open counts: overlayfs copies up there.
func firstWrite(j *job) (float64, error) {
	var costs []float64
	for i := range j.m.size.copyUps {
		if err := j.m.dropCaches(); err != nil {
			return 0, err
		}
		p := j.path(fmt.Sprintf("copyup/%d", (j.round%copyRounds)*j.m.size.copyUps+i))
		cost, err := loop(1, func(int) error {
			_, err := withFile(p, unix.O_RDWR, func(fd int) (float64, error) { return 0, whole(pwrite(fd, []byte("X"), 4096))(1) })
			return err
		})
		if err != nil {
			return 0, err
		}
		costs = append(costs, cost)
	}
	slices.Sort(costs)
	return costs[len(costs)/2], nil
}
