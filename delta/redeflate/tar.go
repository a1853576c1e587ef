package redeflate

import (
	"bytes"
	"strconv"
	"strings"
)

const tarBlock = 512

func isTar(p []byte) bool {
	if len(p) < tarBlock || string(p[257:262]) != "ustar" {
		return false
	}
	sum, err := strconv.ParseUint(strings.Trim(string(p[148:156]), " \x00"), 8, 32)
	if err != nil {
		return false
	}
	have := uint64(8 * ' ')
	for i, b := range p[:tarBlock] {
		if i < 148 || i >= 156 {
			have += uint64(b)
		}
	}
	return have == sum
}

// tarEntry returns a reader of entries that keeps the long name which one entry
// gives to the next. What it does not understand is raw, never wrong.
func tarEntry() func([]byte) (entry, bool) {
	long := ""
	return func(p []byte) (e entry, ok bool) {
		if !isTar(p) {
			if len(p) >= tarBlock && len(bytes.TrimLeft(p[:tarBlock], "\x00")) == 0 {
				return entry{header: tarBlock, last: true}, true
			}
			return e, false
		}
		size, err := strconv.ParseInt(strings.Trim(string(p[124:136]), " \x00"), 8, 62)
		if err != nil || size < 0 || size > int64(len(p)-tarBlock) {
			return e, false
		}
		e.header, e.content = tarBlock, int(size)
		e.padding = min(-e.content&(tarBlock-1), len(p)-tarBlock-e.content)
		content := p[tarBlock : tarBlock+e.content]
		name := tarString(p[:100])
		if prefix := tarString(p[345:500]); prefix != "" && string(p[257:263]) == "ustar\x00" {
			name = prefix + "/" + name
		}
		if long != "" {
			name, long = long, ""
		}
		switch p[156] {
		case 'L':
			long = tarString(content)
		case 'x':
			long = paxPath(content)
		case '0', 0:
			e.path = memberPath(name)
		}
		return e, true
	}
}

func tarString(p []byte) string {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	return string(p)
}

// paxPath returns the path in the records of an extended header, or "".
func paxPath(p []byte) string {
	for _, line := range bytes.Split(p, []byte("\n")) {
		if _, v, ok := bytes.Cut(line, []byte(" path=")); ok {
			return string(v)
		}
	}
	return ""
}
