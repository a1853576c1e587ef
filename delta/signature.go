package delta

import (
	"bytes"
	"context"
)

// A signed kernel module ends with
//
//	… PKCS#7 whose last part is the RSA signature │ 12 bytes │ "~Module signature appended~\n"
//
// The signature is new in every module and as random as bytes can be. It goes to the
// raw stream, or it would spoil the compression of what stands around it.
const moduleMagic = "~Module signature appended~\n"

// signatureOf returns where the signature of a kernel module is, n 0 if it has none.
func signatureOf(b []byte) (at, n int) {
	if !bytes.HasSuffix(b, []byte(moduleMagic)) {
		return 0, 0
	}
	end := len(b) - len(moduleMagic) - 12
	for _, bits := range []int{4096, 2048, 3072} {
		n := bits / 8
		at := end - n
		if at >= 4 && b[at-4] == 0x04 && b[at-3] == 0x82 && int(b[at-2])<<8|int(b[at-1]) == n {
			return at, n
		}
	}
	return 0, 0
}

// diffFile compares one file with one other.
func diffFile(ctx context.Context, new, old []byte) ([]action, error) {
	at, n := signatureOf(new)
	if n == 0 {
		actions, err := diffActions(ctx, new, [][]byte{old})
		return rawInserts(actions), err
	}
	body := old
	oldAt, oldN := signatureOf(old)
	if oldN > 0 {
		body = old[:oldAt]
	}
	actions, err := diffActions(ctx, new[:at], [][]byte{body})
	if err != nil {
		return nil, err
	}
	actions = append(actions, action{op: op{kind: opRaw, length: int64(n)}, data: new[at : at+n]})
	tail := new[at+n:]
	last := action{op: op{kind: opInsert, length: int64(len(tail))}, data: tail}
	if oldN > 0 && bytes.Equal(tail, old[oldAt+oldN:]) {
		last = action{op: op{kind: opCopy, length: int64(len(tail)), pos: int64(oldAt + oldN)}}
	}
	return append(actions, last), nil
}

// rawInserts moves long inserts that do not compress to the raw stream.
func rawInserts(actions []action) []action {
	for i := range actions {
		if a := &actions[i]; a.kind == opInsert && a.length >= 4<<10 && random(a.data) {
			a.kind = opRaw
		}
	}
	return actions
}

// random reports whether bytes look compressed or encrypted: their frequencies
// are as even as those of random bytes. (Sum of squares of n random bytes in 256
// classes is about n²/256 + n.)
func random(b []byte) bool {
	var count [256]int64
	for _, c := range b {
		count[c]++
	}
	var squares int64
	for _, c := range count {
		squares += c * c
	}
	n := int64(len(b))
	return squares < n*n/256+n*n/256/32+2*n
}
