package viewtest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func flocks(t *testing.T, root string) {
	a, b := open(t, os.O_RDONLY, root, "f"), open(t, os.O_RDWR, root, "f")
	ok(t, unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	wantErr(t, unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	_, err := b.WriteAt([]byte("x"), 0) // copy up must not lose the lock
	ok(t, err)
	c := open(t, os.O_RDONLY, root, "f")
	wantErr(t, unix.Flock(int(c.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	a.Close()
	ok(t, unix.Flock(int(c.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

func ofdLocks(t *testing.T, root string) {
	a, b := open(t, os.O_RDWR, root, "f"), open(t, os.O_RDWR, root, "f")
	lock := func(f *os.File, typ int16, start int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: 10})
	}
	ok(t, lock(a, unix.F_WRLCK, 0))
	wantErr(t, lock(b, unix.F_RDLCK, 5), unix.EAGAIN)
	ok(t, lock(b, unix.F_WRLCK, 10))
	q := unix.Flock_t{Type: unix.F_WRLCK, Len: 5}
	ok(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_GETLK, &q))
	if q.Type != unix.F_WRLCK || q.Start != 0 || q.Len != 10 {
		t.Errorf("F_OFD_GETLK says %+v", q)
	}
	a.Close()
	ok(t, lock(b, unix.F_WRLCK, 0))
}

func leases(t *testing.T, root string) {
	f := open(t, os.O_RDONLY, root, "f")
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Fatalf("F_SETLEASE: %v", err)
	}
	// Somebody opens for writing: the lease is to be given back first.
	_, err := unix.Open(filepath.Join(root, "f"), unix.O_WRONLY|unix.O_NONBLOCK, 0)
	wantErr(t, err, unix.EWOULDBLOCK)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	open(t, os.O_WRONLY, root, "f")
}

func inotify(t *testing.T, root string) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	ok(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, filepath.Join(root, "d"), unix.IN_ALL_EVENTS&^(unix.IN_OPEN|unix.IN_CLOSE_NOWRITE|unix.IN_ACCESS))
	ok(t, err)
	p := func(name string) string { return filepath.Join(root, "d", name) }
	ok(t, os.WriteFile(p("file"), []byte("changed"), 0o644))
	ok(t, os.Chmod(p("file"), 0o600))
	ok(t, os.Rename(p("file"), p("g")))
	ok(t, os.Link(p("g"), p("l")))
	ok(t, os.Remove(p("g")))
	ok(t, os.Mkdir(p("m"), 0o755))
	buf := make([]byte, 1<<14)
	n, err := unix.Read(fd, buf)
	ok(t, err)
	var got []string
	for b := buf[:n]; len(b) > 0; {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		name, _, _ := strings.Cut(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+e.Len]), "\x00")
		got = append(got, fmt.Sprintf("%x %s", e.Mask, name))
		b = b[unix.SizeofInotifyEvent+e.Len:]
	}
	want := "2 file, 8 file, 4 file, 40 file, 80 g, 100 l, 200 g, 40000100 m"
	// Truncation is an event of its own, which the kernel may merge with the write's.
	if s := strings.ReplaceAll(strings.Join(got, ", "), "2 file, 2 file", "2 file"); s != want {
		t.Errorf("events:   %s\nexpected: %s", s, want)
	}
}

func busyProgram(t *testing.T, root string) {
	if exitELF(runtime.GOARCH, 0) == nil {
		t.Skip("no program for this architecture")
	}
	w := open(t, os.O_WRONLY, root, "prog")
	a := &actor{root: int(open(t, unix.O_PATH, root).Fd())}
	_, err := a.exec(&Op{Path: "prog"})
	wantErr(t, err, unix.ETXTBSY)
	w.Close()
	// The kernel gives back a FUSE file's write access with its last reference, at once.
	r, err := a.exec(&Op{Path: "prog"})
	if err != nil || r.N != 0 {
		t.Errorf("%v, %v", r, err)
	}
}
