package redeflate

import (
	"bytes"
)

// file takes a whole file apart: a zip archive, or any sequence of gzip
// members, xz files, cpio archives, padding and the unknown, as an initrd is one.
func (u *unpacker) file(data []byte) error {
	if isZip(data) {
		u.format = "zip"
		return u.zip(data)
	}
	if at := payload(data, int64(len(data))); at > 0 {
		u.format = "kernel"
		u.put(Raw, data[:at], "", 0)
		data = data[at:]
	}
	if !isGzip(data) && !isCpio(data) && !isXz(data) && !isZstd(data) {
		return ErrUnsupported
	}
	for len(data) > 0 {
		n := 0
		switch {
		case isGzip(data):
			n = u.gzip(data)
		case isXz(data):
			n = u.xz(data)
		case isZstd(data):
			n = u.zstd(data)
		case isCpio(data):
			if n = u.archive(data, cpioEntry, 0); n > 0 {
				u.named("cpio")
			}
		}
		if n == 0 {
			n = u.skip(data)
		}
		data = data[n:]
	}
	return nil
}

// skip puts bytes that are nothing known into plain: padding up to the first
// byte that is not zero, or all that is left.
func (u *unpacker) skip(data []byte) int {
	n := len(data) - len(bytes.TrimLeft(data, "\x00"))
	if n == 0 {
		n = len(data)
	}
	u.put(Raw, data[:n], "", 0)
	return n
}

func (u *unpacker) named(format string) {
	if u.format == "" {
		u.format = format
	} else if u.format != format && u.format != "kernel" {
		u.format = "initrd"
	}
}

// content puts what a stream holds into plain, cut into the members of the
// archive that it may be.
func (u *unpacker) content(p []byte, depth int) {
	for len(p) > 0 {
		n := 0
		switch {
		case isCpio(p):
			n = u.archive(p, cpioEntry, depth)
		case isTar(p):
			n = u.archive(p, tarEntry(), depth)
		}
		if n == 0 {
			break
		}
		p = p[n:]
	}
	u.put(Content, p, "", depth)
}

// An entry of an archive, as it stands at the start of data: a header, content
// and padding. ok is false if there is none.
type entry struct {
	header, content, padding int
	path                     string // "" if the content is not a file's
	last                     bool   // the archive ends after it, but for padding with zeros
}

// archive puts one archive at the start of data into plain and returns its
// length, or 0 if there is no member that can be referred to.
func (u *unpacker) archive(data []byte, next func([]byte) (entry, bool), depth int) int {
	at := 0
	for at < len(data) {
		e, ok := next(data[at:])
		if !ok {
			break
		}
		u.put(Raw, data[at:at+e.header], "", depth)
		at += e.header
		kind := Member
		if e.path == "" {
			kind = Raw
		}
		u.put(kind, data[at:at+e.content], e.path, depth)
		at += e.content
		u.put(Raw, data[at:at+e.padding], "", depth)
		at += e.padding
		if e.last {
			zeros := len(data) - at - len(bytes.TrimLeft(data[at:], "\x00"))
			u.put(Raw, data[at:at+zeros], "", depth)
			at += zeros
			break
		}
	}
	return at
}
