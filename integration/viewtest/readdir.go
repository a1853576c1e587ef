package viewtest

import (
	"encoding/binary"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// dirent is an entry as getdents64 returns it.
type dirent struct {
	name string
	typ  byte
	off  int64 // where to seek to continue after it
}

// readEntries reads an open directory from where it stands to its end.
func readEntries(fd, bufsize int) ([]dirent, error) {
	var all []dirent
	buf := make([]byte, bufsize)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return all, nil
		}
		for b := buf[:n]; len(b) > 0; {
			l := binary.NativeEndian.Uint16(b[16:])
			name := string(b[19:l])
			if i := strings.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			all = append(all, dirent{name: name, typ: b[18], off: int64(binary.NativeEndian.Uint64(b[8:]))})
			b = b[l:]
		}
	}
}

// entryList puts a listing into words, in an order of its own.
func entryList(all []dirent) Result {
	s := make([]string, len(all))
	for i, e := range all {
		name := e.name
		if len(name) > 40 {
			name = fmt.Sprintf("%s…[%d]", name[:20], len(name))
		}
		s[i] = fmt.Sprintf("%s:%d", name, e.typ)
	}
	sort.Strings(s)
	return Result{N: int64(len(s)), Out: strings.Join(s, " ")}
}

func (a *actor) list(o *Op) (Result, error) {
	fd, err := unix.Openat(a.dir(o.Dir), o.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	all, err := readEntries(fd, 1<<15)
	return entryList(all), err
}

func (a *actor) flist(o *Op) (Result, error) {
	fd := a.slot(o.FD)
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return Result{}, err
	}
	all, err := readEntries(fd, 1<<15)
	return entryList(all), err
}

// seekdir reads with the smallest buffer that holds a long name, goes back to an
// entry in the middle, and wants the same rest again.
func (a *actor) seekdir(o *Op) (Result, error) {
	fd := a.slot(o.FD)
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return Result{}, err
	}
	all, err := readEntries(fd, 280)
	if err != nil || len(all) == 0 {
		return Result{}, err
	}
	k := int(o.Len) % len(all)
	if _, err := unix.Seek(fd, all[k].off, unix.SEEK_SET); err != nil {
		return Result{}, err
	}
	rest, err := readEntries(fd, 1<<12)
	if err != nil {
		return Result{}, err
	}
	r := entryList(all)
	if got, want := entryList(rest).Out, entryList(all[k+1:]).Out; got != want {
		r.Out = fmt.Sprintf("after seekdir behind entry %d: %s, expected %s", k+1, got, want)
	}
	return r, nil
}
