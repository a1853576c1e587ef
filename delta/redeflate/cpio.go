package redeflate

import (
	"strconv"
	"strings"
)

// The newc format of cpio, in which the kernel takes its initrd (its
// Documentation/driver-api/early-userspace/buffer-format.rst): a magic, 13 numbers of 8
// hexadecimal digits, the name with a zero byte, padding to 4, content, padding to 4.
const (
	cpioHeader  = 110
	cpioTrailer = "TRAILER!!!"

	cpioMode  = 1 // indexes of numbers
	cpioSize  = 6
	cpioNames = 11

	cpioTypeMask = 0o170000
	cpioRegular  = 0o100000
)

func isCpio(p []byte) bool {
	return len(p) >= cpioHeader && (string(p[:6]) == "070701" || string(p[:6]) == "070702")
}

func cpioEntry(p []byte) (e entry, ok bool) {
	return cpioHead(p, int64(len(p)))
}

// cpioHead reads the entry whose header stands in p, with size bytes left of
// the file that it is in.
func cpioHead(p []byte, size int64) (e entry, ok bool) {
	if !isCpio(p) {
		return e, false
	}
	number := func(i int) int64 {
		v, err := strconv.ParseUint(string(p[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			return -1
		}
		return int64(v)
	}
	mode, content, names := number(cpioMode), number(cpioSize), number(cpioNames)
	if mode < 0 || content < 0 || names < 1 || names > 4096 {
		return e, false
	}
	header := (cpioHeader + names + 3) &^ 3
	padding := -content & 3
	left := size - header - content
	if left < 0 || header > int64(len(p)) {
		return e, false
	}
	name := p[cpioHeader : cpioHeader+names]
	e.header, e.content, e.padding = int(header), int(content), int(min(padding, left))
	e.last = string(name[:names-1]) == cpioTrailer
	if mode&cpioTypeMask == cpioRegular && !e.last {
		e.path = memberPath(string(name[:names-1]))
	}
	return e, true
}

// memberPath makes paths of archives comparable: "./usr/bin/x" is "usr/bin/x".
func memberPath(name string) string {
	return strings.TrimLeft(strings.TrimPrefix(name, "./"), "/")
}
