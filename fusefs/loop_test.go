package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
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
