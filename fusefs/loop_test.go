package fusefs

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/overlay"
)

// The data of large requests has to lie on pages: see buffer.
func TestBuffersAreAligned(t *testing.T) {
	if got := unsafe.Sizeof(fuse.WriteIn{}); got != requestHeader {
		t.Errorf("a WRITE's header has %d bytes, not %d", got, requestHeader)
	}
	if got := unsafe.Sizeof(fuse.OutHeader{}); got != replyHeader {
		t.Errorf("an answer's header has %d bytes, not %d", got, replyHeader)
	}
	for range 20 {
		b := newBuffer(maxRequest + headroom)
		for name, p := range map[string]*byte{"request": &b.request[requestHeader], "reply": &b.reply[replyHeader]} {
			if uintptr(unsafe.Pointer(p))%4096 != 0 {
				t.Errorf("the %s's data lies at %p", name, p)
			}
		}
		if len(b.request) < maxRequest+requestHeader || len(b.reply) < maxRequest+replyHeader {
			t.Errorf("buffers of %d and %d bytes", len(b.request), len(b.reply))
		}
	}
}

func TestInPlace(t *testing.T) {
	buf := []byte("0123456789")
	for _, to := range [][][]byte{{buf[:4]}, {make([]byte, 4)}, {make([]byte, 1), make([]byte, 3)}} {
		n, st := inPlace(buf[:4]).Readv(to)
		got := ""
		for _, b := range to {
			got += string(b)
		}
		if n != 4 || st != fuse.OK || got != "0123" {
			t.Errorf("%d, %v, %q", n, st, got)
		}
	}
	if n, st := inPlace(nil).Readv(nil); n != 0 || st != fuse.OK {
		t.Errorf("nothing: %d, %v", n, st)
	}
}

// More requests that wait than there are readers: the view still answers, the
// threads go home afterwards, and nothing is left when the view is unmounted.
func TestManyWaitingRequests(t *testing.T) {
	p := newPool(t)
	l := layers{Base: p.base("", "for i in $(seq 100); do echo $i >f$i; done"), Uppers: []upperDir{p.upper("sys", "/")}}
	s := p.mountWith(request{Layers: l, FreezeMax: time.Minute})
	const waiting = 60
	s.call(request{Op: "freeze"})
	done := make(chan error, waiting)
	for i := range waiting {
		// Not creations: each would hold its directory, in the kernel, against lookups.
		go func() { done <- os.Chmod(filepath.Join(s.mnt, fmt.Sprintf("f%d", i+1)), 0o600) }()
	}
	deadline := time.Now().Add(20 * time.Second)
	for i := waiting + 1; i <= 100; i++ {
		b, err := os.ReadFile(filepath.Join(s.mnt, fmt.Sprintf("f%d", i)))
		if err != nil || string(b) != fmt.Sprintf("%d\n", i) {
			t.Fatalf("f%d while changes wait: %q, %v", i, b, err)
		}
		if time.Now().After(deadline) {
			t.Fatal("the view does not answer while changes wait")
		}
	}
	select {
	case err := <-done:
		t.Errorf("a change did not wait: %v", err)
	default:
	}
	s.call(request{Op: "thaw"})
	for range waiting {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a change still waits after thaw")
		}
	}
}

// Notifications go to a file descriptor that may be closed already.
func TestNotifyAfterTheEnd(t *testing.T) {
	c := &connection{fd: -1}
	if err := c.forgetEntry(1, "x"); err != unix.ENODEV {
		t.Errorf("%v, expected ENODEV", err)
	}
}

// What ProtocolServer would answer and what answerHot answers are the same bytes.
func TestHotAnswers(t *testing.T) {
	if got := unsafe.Sizeof(fuse.InHeader{}); got != 40 {
		t.Fatalf("a request's header has %d bytes", got)
	}
	dir := t.TempDir()
	for _, name := range []string{"base/f", "up/upper/g"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := &connection{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	l := layers{Base: filepath.Join(dir, "base"), Uppers: []upperDir{{Name: "sys", Dir: filepath.Join(dir, "up"), Paths: []string{"/"}}}}
	config, done, err := l.open()
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	u, err := overlay.New(config)
	if err != nil {
		t.Skipf("no union here: %v", err)
	}
	defer u.Close()
	c.fs = &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), u: u, log: c.log}
	c.server = fuse.NewProtocolServer(c.fs, &fuse.MountOptions{MaxWrite: 4096})
	for _, q := range []struct {
		what   string
		opcode uint32
		node   uint64
		args   []byte
	}{
		{"lookup", opcodeLookup, 1, []byte("f\x00")},
		{"lookup of nothing", opcodeLookup, 1, []byte("none\x00")},
		{"lookup in nothing", opcodeLookup, 99, []byte("f\x00")},
		{"getattr", opcodeGetattr, 1, make([]byte, 16)},
		{"setattr of nothing", opcodeSetattr, 99, make([]byte, 88)},
		{"read", opcodeRead, 2, words(0, 0, 0, 0, 4096, 0, 0, 0, 0, 0)},
		{"read a directory", opcodeRead, 1, words(0, 0, 0, 0, 4096, 0, 0, 0, 0, 0)},
		{"getxattr, size", opcodeGetxattr, 2, append(words(0, 0), "user.x\x00"...)},
		{"getxattr", opcodeGetxattr, 2, append(words(100, 0), "user.x\x00"...)},
		{"is it a terminal", opcodeIoctl, 2, words(0, 0, 0, unix.TCGETS, 0, 0, 0, 0)},
		{"lsattr", opcodeIoctl, 2, words(0, 0, 0, unix.FS_IOC_GETFLAGS, 0, 0, 0, 8)},
		{"lsattr of nothing", opcodeIoctl, 99, words(0, 0, 0, unix.FS_IOC_GETFLAGS, 0, 0, 0, 8)},
		{"unlink nothing", opcodeUnlink, 1, []byte("none\x00")},
		{"rmdir a file", opcodeRmdir, 1, []byte("f\x00")},
		{"rename nothing, as rename(2)", opcodeRename, 1, append(words(1, 0), "none\x00other\x00"...)},
		{"rename nothing", opcodeRename2, 1, append(words(1, 0, 0, 0), "none\x00other\x00"...)},
		{"create what is there", opcodeCreate, 1, append(words(unix.O_EXCL|unix.O_CREAT, 0o644, 0, 0), "g\x00"...)},
		{"mkdir what is there", opcodeMkdir, 1, append(words(0o755, 0), "g\x00"...)},
		{"write nowhere", opcodeWrite, 99, append(words(0, 0, 0, 0, 3, 0, 0, 0, 0, 0), "abc"...)},
	} {
		b := newBuffer(8192)
		for i := range b.reply { // an earlier answer
			b.reply[i] = 0xee
		}
		request := append(words(uint32(40+len(q.args)), q.opcode, 7, 0, uint32(q.node), 0, 0, 0, 0, 0), q.args...)
		n := copy(b.request, request)
		size, ok := c.answerHot(b.request[:n], b.reply)
		if !ok {
			t.Errorf("%s: not answered", q.what)
			continue
		}
		got := string(b.reply[:size])
		slow := newBuffer(8192)
		size, st := c.server.HandleRequest([][]byte{request}, [][]byte{slow.reply})
		if want := string(slow.reply[:size]); st != fuse.OK || got != want {
			t.Errorf("%s:\n got %x\nwant %x (%v)", q.what, got, want, st)
		}
	}
	b := newBuffer(8192)
	n := copy(b.request, words(48, opcodeInterrupt, 9, 0, 0, 0, 0, 0, 0, 0, 7, 0))
	if size, ok := c.answerHot(b.request[:n], b.reply); !ok || size != replyHeader || int32(binary.NativeEndian.Uint32(b.reply[4:])) != -int32(unix.ENOSYS) {
		t.Errorf("interrupt: %x, %v", b.reply[:size], ok)
	}
	// What is too short, or has an extension, is left to ProtocolServer.
	for _, request := range [][]byte{
		words(40, opcodeGetattr, 7, 0, 1, 0, 0, 0, 0, 0),
		words(40, opcodeLookup, 7, 0, 1, 0, 0, 0, 0, 0),
		append(words(42, opcodeLookup, 7, 0, 1, 0, 0, 0, 0, 1), "f\x00"...),
		append(words(72, opcodeIoctl, 7, 0, 1, 0, 0, 0, 0, 0), words(0, 0, 0, unix.FS_IOC_SETFLAGS, 0, 0, 8, 0)...),
		append(words(72, opcodeIoctl, 7, 0, 1, 0, 0, 0, 0, 0), words(0, 0, 0, unix.FS_IOC_GETFLAGS, 0, 0, 0, 9000)...),
		append(words(82, opcodeWrite, 7, 0, 1, 0, 0, 0, 0, 0), append(words(0, 0, 0, 0, 9, 0, 0, 0, 0, 0), "ab"...)...),
	} {
		b := newBuffer(8192)
		n := copy(b.request, request)
		if _, ok := c.answerHot(b.request[:n], b.reply); ok {
			t.Errorf("answered: %x", request)
		}
	}
}

func words(w ...uint32) (b []byte) {
	for _, x := range w {
		b = binary.NativeEndian.AppendUint32(b, x)
	}
	return b
}
