package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// everything is a stream with every command of version 1.
func everything() []Command {
	at := Time{1700000000, 123456789}
	return []Command{
		{Kind: Snapshot, Path: "s", UUID: UUID{1}, Ctransid: 7, CloneUUID: UUID{2}, CloneCtransid: 5},
		{Kind: Mkdir, Path: "d", Ino: 257},
		{Kind: Mkfile, Path: "d/f", Ino: 258},
		{Kind: Mknod, Path: "n", Ino: 259, Mode: 0o20644, Rdev: 259},
		{Kind: Mkfifo, Path: "p", Ino: 260},
		{Kind: Mksock, Path: "k", Ino: 261},
		{Kind: Symlink, Path: "l", Ino: 262, Target: "/etc/passwd"},
		{Kind: Rename, Path: "p", To: "q"},
		{Kind: Link, Path: "h", Target: "d/f"},
		{Kind: SetXattr, Path: "d/f", XattrName: "user.x", Data: []byte("v\x00w")},
		{Kind: RemoveXattr, Path: "d/f", XattrName: "user.x"},
		{Kind: Write, Path: "d/f", Offset: 1 << 33, Data: []byte("content")},
		{Kind: Clone, Path: "d/f", Offset: 4096, Size: 8192, CloneUUID: UUID{2}, CloneCtransid: 5, ClonePath: "g", CloneOffset: 12288},
		{Kind: Truncate, Path: "d/f", Size: 1 << 40},
		{Kind: Chmod, Path: "d/f", Mode: 0o4755},
		{Kind: Chown, Path: "d/f", UID: 1000, GID: math.MaxUint32},
		{Kind: Utimes, Path: "", Atime: at, Mtime: Time{-5, 0}, Ctime: at},
		{Kind: UpdateExtent, Path: "d/f", Offset: 4096, Size: 10},
		{Kind: Unlink, Path: "q"},
		{Kind: Rmdir, Path: "d"},
		{Kind: End},
	}
}

func encode(t testing.TB, cmds []Command) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cmds {
		if err := w.Write(&c); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// decode reads all commands of a stream, with copies of their data.
func decode(r io.Reader) ([]Command, error) {
	sr, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	var out []Command
	for {
		var c Command
		if err := sr.Next(&c); err == io.EOF {
			return out, nil
		} else if err != nil {
			return out, err
		}
		c.Data = bytes.Clone(c.Data)
		c.VeritySalt = bytes.Clone(c.VeritySalt)
		c.VeritySig = bytes.Clone(c.VeritySig)
		out = append(out, c)
	}
}

func TestWriteRead(t *testing.T) {
	want := everything()
	b := encode(t, want)
	got, err := decode(iotest.OneByteReader(bytes.NewReader(append(b, "what follows"...))))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v\nwrote %+v", got, want)
	}
}

// The wire format, byte by byte: a chmod as the kernel writes it.
func TestWireFormat(t *testing.T) {
	got := encode(t, []Command{{Kind: Chmod, Path: "a", Mode: 0o755}})
	want := "62747266732d73747265616d00" + "01000000" + // magic, version
		"11000000" + "1200" + "3b84ee1f" + // length, kind, checksum
		"0500" + "0800" + "ed01000000000000" + // mode
		"0f00" + "0100" + "61" // path
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
	body := bytes.Clone(got[17:])
	clear(body[6:10])
	if sum := binary.LittleEndian.Uint32(got[23:]); sum != slowCRC(body) {
		t.Errorf("checksum %08x, want %08x", sum, slowCRC(body))
	}
}

// slowCRC is crc32c as the kernel's __crc32c_le: reflected, no inversions.
func slowCRC(b []byte) uint32 {
	crc := uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ crc&1*0x82f63b78
		}
	}
	return crc
}

func TestLongWriteIsSplit(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 20000)
	cmds, err := decode(bytes.NewReader(encode(t, []Command{{Kind: Write, Path: "f", Offset: 5, Data: data}, {Kind: End}})))
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, c := range cmds[:len(cmds)-1] {
		if c.Offset != uint64(5+len(got)) || len(c.Data) > 48<<10 {
			t.Errorf("a write of %d bytes at %d after %d", len(c.Data), c.Offset, len(got))
		}
		got = append(got, c.Data...)
	}
	if !bytes.Equal(got, data) {
		t.Error("the data changed")
	}
}

// Every truncation and every flipped bit is noticed.
func TestDamage(t *testing.T) {
	b := encode(t, everything())
	for n := range b {
		if _, err := decode(bytes.NewReader(b[:n])); !isFormatError(err) {
			t.Fatalf("cut at %d of %d: %v", n, len(b), err)
		}
		for bit := range 8 {
			bad := bytes.Clone(b)
			bad[n] ^= 1 << bit
			if bad[13] == 2 || bad[13] == 3 {
				continue // another version that is known
			}
			if _, err := decode(bytes.NewReader(bad)); !isFormatError(err) {
				t.Fatalf("bit %d of byte %d flipped: %v", bit, n, err)
			}
		}
	}
	failing := errors.New("I/O error")
	if _, err := decode(io.MultiReader(bytes.NewReader(b[:100]), iotest.ErrReader(failing))); !errors.Is(err, failing) {
		t.Errorf("the reader's error became %v", err)
	}
}

func isFormatError(err error) bool {
	var fe *FormatError
	return errors.As(err, &fe)
}

// raw builds a stream of one command with a correct checksum around body.
func raw(version int, k Kind, body []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte(magic), uint32(version))
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = binary.LittleEndian.AppendUint16(b, uint16(k))
	b = append(b, 0, 0, 0, 0)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[at+6:], checksum(0, b[at:]))
	return b
}

// attr builds one attribute.
func attr(a attribute, v ...byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(a))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...)
}

func TestBadCommands(t *testing.T) {
	eight := make([]byte, 8)
	huge := []byte{0, 0, 0, 0, 0, 0, 0, 0x80}
	path := attr(attrPath, 'a')
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	for name, b := range map[string][]byte{
		"empty":                 nil,
		"not a stream":          []byte("BZh91AY&SY and so on"),
		"version 0":             raw(0, End, nil),
		"version 4":             raw(4, End, nil),
		"kind 0":                raw(1, 0, nil),
		"unknown kind":          raw(3, 27, nil),
		"fallocate in 1":        raw(1, Fallocate, nil),
		"verity in 2":           raw(2, EnableVerity, nil),
		"attribute 0":           raw(1, Mkfile, attr(0)),
		"unknown attribute":     raw(1, Mkfile, join(path, attr(36))),
		"attribute twice":       raw(1, Mkfile, join(path, path)),
		"no path":               raw(1, Mkfile, attr(attrIno, eight...)),
		"half a kind":           raw(1, Mkfile, join(path, []byte{1})),
		"half a length":         raw(1, Mkfile, join(path, []byte{1, 0, 8})),
		"attribute beyond":      raw(1, Mkfile, []byte{15, 0, 2, 0, 'a'}),
		"short integer":         raw(1, Chmod, join(path, attr(attrMode, 1, 2, 3))),
		"mode of 33 bits":       raw(1, Chmod, join(path, attr(attrMode, 0, 0, 0, 0, 1, 0, 0, 0))),
		"negative size":         raw(1, Truncate, join(path, attr(attrSize, huge...))),
		"negative offset":       raw(1, Write, join(path, attr(attrFileOffset, huge...), attr(attrData, 'x'))),
		"zero in path":          raw(1, Mkfile, attr(attrPath, 'a', 0)),
		"long path":             raw(1, Mkfile, attr(attrPath, bytes.Repeat([]byte("a"), 5000)...)),
		"long xattr name":       raw(1, RemoveXattr, join(path, attr(attrXattrName, bytes.Repeat([]byte("a"), 256)...))),
		"short uuid":            raw(1, Subvol, join(path, attr(attrCtransid, eight...), attr(attrUUID, 1))),
		"nanoseconds":           raw(1, Utimes, join(path, attr(attrAtime, bytes.Repeat([]byte{255}, 12)...))),
		"version 2, data first": raw(2, Write, join([]byte{19, 0}, path, attr(attrFileOffset, eight...))),
	} {
		if _, err := decode(bytes.NewReader(b)); !isFormatError(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A length field must not make the reader allocate what the stream does not have.
func TestLengthIsBounded(t *testing.T) {
	b := raw(1, Write, nil)
	binary.LittleEndian.PutUint32(b[17:], math.MaxUint32)
	n := testing.AllocsPerRun(1, func() {
		if _, err := decode(bytes.NewReader(b)); !isFormatError(err) || !strings.Contains(err.Error(), "4294967295") {
			t.Errorf("%v", err)
		}
	})
	if n > 50 {
		t.Errorf("%v allocations", n)
	}
}

// fixSums makes the checksums of a fuzzed stream right: without that the fuzzer
// would see nothing but checksum errors.
func fixSums(b []byte) []byte {
	b = bytes.Clone(b)
	for at := len(magic) + 4; at+headerSize <= len(b); {
		n := binary.LittleEndian.Uint32(b[at:])
		if uint64(n) > uint64(len(b)-at-headerSize) {
			break
		}
		cmd := b[at : at+headerSize+int(n)]
		clear(cmd[6:10])
		binary.LittleEndian.PutUint32(cmd[6:], checksum(0, cmd))
		at += len(cmd)
	}
	return b
}

func seeds(f *testing.F) {
	f.Add(encode(f, everything()))
	f.Add(makeStream(f, Command{Kind: Mkfile, Path: "a"}, Command{Kind: Write, Path: "a", Data: []byte("x")},
		Command{Kind: Clone, Path: "a", Offset: 4096, Size: 1, CloneUUID: UUID{1}, ClonePath: "a"},
		Command{Kind: Mkdir, Path: "d"}, Command{Kind: Symlink, Path: "d/l", Target: "../.."},
		Command{Kind: Rename, Path: "d", To: "e"}, Command{Kind: Chmod, Path: "e/l", Mode: 0o777}))
	eight := make([]byte, 8)
	f.Add(raw(2, EncodedWrite, bytes.Join([][]byte{attr(attrPath, 'a'), attr(attrFileOffset, eight...),
		attr(attrUnencodedFileLen, eight...), attr(attrUnencodedLen, eight...), attr(attrUnencodedOffset, eight...),
		attr(attrCompression, 2, 0, 0, 0), {19, 0, 1, 2, 3}}, nil)))
	f.Add(raw(3, EnableVerity, bytes.Join([][]byte{attr(attrPath, 'a'), attr(attrVerityAlgorithm, 1),
		attr(attrVerityBlockSize, 0, 16, 0, 0), attr(attrVeritySalt, 5)}, nil)))
}

// Whatever is read and can be written again is the same when read again.
func FuzzReader(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		cmds, err := decode(bytes.NewReader(fixSums(b)))
		if err != nil && !isFormatError(err) {
			t.Fatalf("not a FormatError: %v", err)
		}
		for _, c := range cmds {
			if info, _ := infoOf(c.Kind); info.since > 1 {
				return
			}
			if c.Kind == Write && len(c.Data) > writeSize {
				return
			}
		}
		var out bytes.Buffer
		w, _ := NewWriter(&out)
		for _, c := range cmds {
			if err := w.Write(&c); err != nil {
				return // longer than version 1 allows
			}
		}
		again, _ := decode(&out)
		for i := range again {
			path := cmds[i].Path
			if cmds[i].Kind == End {
				path = "" // whatever stood there
			}
			if again[i].Kind != cmds[i].Kind || again[i].Path != path || !bytes.Equal(again[i].Data, keepData(cmds[i])) {
				t.Fatalf("command %d: %+v became %+v", i, cmds[i], again[i])
			}
		}
	})
}

// keepData returns the data of a command whose kind has some.
func keepData(c Command) []byte {
	if c.Kind == Write || c.Kind == SetXattr {
		return c.Data
	}
	return nil
}

var testTime = time.Unix(1, 0)

// Nothing that a stream says reaches beyond its directory.
func FuzzApply(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = fixSums(b)
		cmds, _ := decode(bytes.NewReader(b))
		for _, c := range cmds {
			// Legal, but they fill the disk of whoever runs this.
			if c.Kind == Fallocate || c.Offset > 1<<20 || c.Size > 1<<20 || c.Kind == Mknod {
				return
			}
		}
		dir := t.TempDir()
		s := steps{t}
		s.do(os.Mkdir(dir+"/root", 0o755))
		s.do(os.WriteFile(dir+"/outside", []byte("safe"), 0o600))
		s.do(os.Chtimes(dir+"/outside", testTime, testTime))
		before := outside(t, dir)
		root, err := os.Open(dir + "/root")
		s.do(err)
		defer root.Close()
		Apply(context.Background(), bytes.NewReader(b), root, ApplyOptions{})
		if after := outside(t, dir); after != before {
			t.Fatalf("outside changed:\n%s", after)
		}
	})
}

// Decoders of compressed extents survive anything.
func FuzzEncodedWrite(f *testing.F) {
	f.Add(uint32(1), uint64(4096), []byte("x\x9c\x03\x00\x00\x00\x00\x01"))
	f.Add(uint32(2), uint64(4096), []byte("\x28\xb5\x2f\xfd\x00\x58\x09\x00\x00a"))
	f.Add(uint32(3), uint64(4096), []byte("\x0f\x00\x00\x00\x07\x00\x00\x00\x15abc\x11\x00\x00"))
	f.Add(uint32(3), uint64(8192), []byte("\x10\x00\x00\x00\x08\x00\x00\x00\x12a\x20\x01\x00\x00\x11\x00\x00"))
	f.Fuzz(func(t *testing.T, compression uint32, size uint64, data []byte) {
		var d decoders
		defer d.close()
		out, err := d.decode(&Command{Compression: compression, UnencodedLen: size, UnencodedFileLen: size, Data: data})
		if err == nil && uint64(len(out)) != size {
			t.Fatalf("%d bytes, want %d", len(out), size)
		}
	})
}
