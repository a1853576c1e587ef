package stream

import (
	"encoding/binary"
	"errors"
)

var errLZO = errors.New("damaged lzo data")

// fromLZO decodes an extent in btrfs' lzo format: a u32 total length, then segments
// of one block each, with a u32 length before each; a length never crosses the
// border of a block.
//
//	┌───────┬─────┬──────────┬─────┬──────────┬────
//	│ total │ len │ segment  │ len │ segment  │ …
//	└───────┴─────┴──────────┴─────┴──────────┴────
func fromLZO(out, data []byte, block int) (int, error) {
	if len(data) < 4 {
		return 0, errLZO
	}
	total := binary.LittleEndian.Uint32(data)
	if total < 4 || uint64(total) > uint64(len(data)) {
		return 0, errLZO
	}
	data = data[:total]
	at, n := 4, 0
	for at < len(data) && n < len(out) {
		if rest := block - at%block; rest < 4 {
			at += rest
			if at >= len(data) {
				break
			}
		}
		if len(data)-at < 4 {
			return 0, errLZO
		}
		size := binary.LittleEndian.Uint32(data[at:])
		at += 4
		if uint64(size) > uint64(len(data)-at) {
			return 0, errLZO
		}
		m, err := lzo1x(out[n:min(n+block, len(out))], data[at:at+int(size)])
		if err != nil {
			return 0, err
		}
		n += m
		at += int(size)
	}
	return n, nil
}

// lzo1x decodes one LZO1X segment into out and returns its length. The format is
// that of Documentation/staging/lzo.rst of the kernel: instructions by the range
// of their first byte, each with 0 to 3 literals behind it; the number of these
// (4: a long run) says what the next instruction below 16 means.
func lzo1x(out, in []byte) (int, error) {
	var (
		ip, op   int
		literals int // number of literals behind the last instruction
	)
	next := func() int {
		if ip >= len(in) {
			ip = len(in) + 1 // noticed below
			return 0
		}
		ip++
		return int(in[ip-1])
	}
	// extended reads a length beyond an instruction's own bits.
	extended := func(base int) int {
		for ip < len(in) && in[ip] == 0 {
			ip++
			base += 255
		}
		return base + next()
	}
	run := func(n int) bool { // literals
		if ip > len(in) || n > len(in)-ip || n > len(out)-op {
			return false
		}
		op += copy(out[op:op+n], in[ip:])
		ip += n
		return true
	}
	if len(in) > 0 && in[0] > 17 {
		n := next() - 17
		if !run(n) {
			return 0, errLZO
		}
		literals = min(n, 4)
	}
	for {
		t := next()
		var length, distance, behind int
		switch {
		case t >= 64:
			length = t>>5 + 1
			distance = 1 + t>>2&7 + next()<<3
			behind = t & 3
		case t >= 32:
			if length = t&31 + 2; length == 2 {
				length = extended(33)
			}
			v := next() | next()<<8
			distance = 1 + v>>2
			behind = v & 3
		case t >= 16:
			if length = t&7 + 2; length == 2 {
				length = extended(9)
			}
			v := next() | next()<<8
			distance = t&8<<11 + v>>2
			behind = v & 3
			if distance == 0 { // the end
				if length != 3 || ip != len(in) {
					return 0, errLZO
				}
				return op, nil
			}
			distance += 0x4000
		case literals == 0:
			if t == 0 {
				t = extended(15)
			}
			if !run(t + 3) {
				return 0, errLZO
			}
			literals = 4
			continue
		case literals == 4:
			length = 3
			distance = 0x801 + t>>2 + next()<<2
			behind = t & 3
		default:
			length = 2
			distance = 1 + t>>2 + next()<<2
			behind = t & 3
		}
		if ip > len(in) || distance > op || length > len(out)-op {
			return 0, errLZO
		}
		for range length { // may overlap
			out[op] = out[op-distance]
			op++
		}
		if !run(behind) {
			return 0, errLZO
		}
		literals = behind
	}
}
