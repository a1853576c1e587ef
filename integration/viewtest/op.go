package viewtest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Op is one call of one actor. Which fields a call uses is written beside it in
// calls.go. Paths are relative to the descriptor in slot Dir (Dir2), or to the root
// of the target where that is 0.
type Op struct {
	Actor int    `json:"a,omitempty"`
	Call  string `json:"c"`
	Dir   int    `json:"d,omitempty"`
	Path  string `json:"p,omitempty"`
	Dir2  int    `json:"d2,omitempty"`
	Path2 string `json:"p2,omitempty"`
	FD    int    `json:"f,omitempty"` // slot, from 1
	FD2   int    `json:"f2,omitempty"`
	Flags int    `json:"fl,omitempty"`
	Mode  uint32 `json:"m,omitempty"`
	Off   int64  `json:"o,omitempty"`
	Off2  int64  `json:"o2,omitempty"`
	Len   int64  `json:"l,omitempty"`
	UID   int    `json:"u,omitempty"`
	GID   int    `json:"g,omitempty"`
	Name  string `json:"n,omitempty"`
	Value []byte `json:"v,omitempty"`
}

// Result is what a call gave, in a form in which equal behaviour is equal text.
type Result struct {
	Err string `json:"e,omitempty"` // "ENOENT"; "" is success
	N   int64  `json:"n,omitempty"` // bytes, offset
	Out string `json:"o,omitempty"` // attributes, names, a hash of data

	// Dev and Ino identify the object of a stat call. The numbers themselves differ
	// between targets; which of them are equal may not.
	Dev uint64 `json:"dev,omitempty"`
	Ino uint64 `json:"ino,omitempty"`
}

func (r Result) String() string {
	s := r.Err
	if s == "" {
		s = "ok"
	}
	if r.N != 0 {
		s += fmt.Sprintf(" %d", r.N)
	}
	if r.Out != "" {
		s += " " + r.Out
	}
	return s
}

var openFlags = []struct {
	bit  int
	name string
}{
	{unix.O_TMPFILE, "O_TMPFILE"}, {unix.O_WRONLY, "O_WRONLY"}, {unix.O_RDWR, "O_RDWR"}, {unix.O_CREAT, "O_CREAT"},
	{unix.O_EXCL, "O_EXCL"}, {unix.O_TRUNC, "O_TRUNC"}, {unix.O_APPEND, "O_APPEND"}, {unix.O_NOFOLLOW, "O_NOFOLLOW"},
	{unix.O_DIRECTORY, "O_DIRECTORY"}, {unix.O_PATH, "O_PATH"}, {unix.O_DIRECT, "O_DIRECT"}, {unix.O_NOATIME, "O_NOATIME"},
	{unix.O_SYNC, "O_SYNC"}, {unix.O_NONBLOCK, "O_NONBLOCK"},
}

func flagString(flags int) string {
	var s []string
	for _, f := range openFlags {
		if flags&f.bit == f.bit {
			s = append(s, f.name)
			flags &^= f.bit
		}
	}
	if flags != 0 {
		s = append(s, fmt.Sprintf("%#x", flags))
	}
	if len(s) == 0 {
		return "O_RDONLY"
	}
	return strings.Join(s, "|")
}

// short makes a path readable: the name of 255 bytes is written "L255".
func short(p string) string {
	p = strings.ReplaceAll(p, names[len(names)-1], "L255")
	if len(p) > 80 {
		p = fmt.Sprintf("%s…[%d]", p[:40], len(p))
	}
	return p
}

// String writes an op so that a reader can do it again by hand.
func (o Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d: %s(", o.Actor, o.Call)
	sep := ""
	add := func(format string, a ...any) {
		b.WriteString(sep)
		fmt.Fprintf(&b, format, a...)
		sep = ", "
	}
	path := func(dir int, p string) {
		p = short(p)
		if dir != 0 {
			add("fd%d/%q", dir, p)
		} else {
			add("%q", p)
		}
	}
	if o.FD != 0 {
		add("fd%d", o.FD)
	}
	if o.FD2 != 0 {
		add("fd%d", o.FD2)
	}
	if o.Path != "" || o.Dir != 0 {
		path(o.Dir, o.Path)
	}
	if o.Path2 != "" || o.Dir2 != 0 {
		path(o.Dir2, o.Path2)
	}
	if o.Name != "" {
		add("%s", o.Name)
	}
	if o.Value != nil {
		add("%x", o.Value)
	}
	if o.Call == "open" {
		add("%s", flagString(o.Flags))
	} else if o.Flags != 0 {
		add("flags %#x", o.Flags)
	}
	if o.Mode != 0 {
		add("mode %#o", o.Mode)
	}
	if o.Off != 0 {
		add("off %d", o.Off)
	}
	if o.Off2 != 0 {
		add("off2 %d", o.Off2)
	}
	if o.Len != 0 {
		add("len %d", o.Len)
	}
	if o.UID != 0 || o.GID != 0 {
		add("%d:%d", o.UID, o.GID)
	}
	b.WriteString(")")
	return b.String()
}
