package fusefs

import (
	"io"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
	"github.com/btrovl/btrovl/overlay"
)

// The server runs in this process, so that -cpuprofile shows it; the work is done
// by a child.
func benchView(b *testing.B, base, once, each string) {
	p := newPool(b)
	l := layers{Base: p.base("", base), Uppers: []upperDir{p.upper("sys", "/")}}
	c, done, err := l.open()
	if err != nil {
		b.Fatal(err)
	}
	defer done()
	u, err := overlay.New(c)
	if err != nil {
		b.Fatal(err)
	}
	mnt := testenv.Dir(b)
	v, err := Mount(mnt, u, Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		unix.Unmount(mnt, unix.MNT_DETACH)
		v.Wait()
		u.Close()
	}()
	run := func(script string) {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = mnt
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
	run(once)
	requests := func() (n uint64) {
		for _, o := range v.Stats().Ops {
			n += o.Count
		}
		return n
	}
	before := requests()
	b.ResetTimer()
	for range b.N {
		run(each)
	}
	b.StopTimer()
	b.ReportMetric(float64(requests()-before)/float64(b.N), "requests/op")
	if testing.Verbose() {
		for _, o := range v.Stats().Ops {
			b.Logf("%-16s %8d  mean %v", o.Op, o.Count, o.Total/time.Duration(o.Count))
		}
	}
}

const manyFiles = `python3 -c "
import os
for d in range(100):
    os.mkdir('d%d'%d)
    for i in range(50): open('d%d/file%d'%(d,i),'w').write('x'*3000)"`

func BenchmarkFindCold(b *testing.B) {
	benchView(b, manyFiles, ":", "echo 3 >/proc/sys/vm/drop_caches; find . -ls >/dev/null")
}

func BenchmarkReadCold(b *testing.B) {
	benchView(b, manyFiles, ":", "echo 3 >/proc/sys/vm/drop_caches; grep -r nosuchstring . || true")
}

func BenchmarkCreateUnlink(b *testing.B) {
	benchView(b, "mkdir d", ":", `python3 -c "
import os
for i in range(5000):
    f=os.open('d/f%d'%i, os.O_CREAT|os.O_WRONLY); os.write(f,b'x'); os.close(f)
for i in range(5000): os.rename('d/f%d'%i,'d/g%d'%i)
for i in range(5000): os.unlink('d/g%d'%i)"`)
}

func BenchmarkReadLargeCold(b *testing.B) {
	benchView(b, "dd if=/dev/urandom of=big bs=1M count=512 status=none", ":", `echo 3 >/proc/sys/vm/drop_caches
a=$(awk '/^Cached/{print $2}' /proc/meminfo); dd if=big of=/dev/null bs=1M 2>&1 | tail -1 >&2; c=$(awk '/^Cached/{print $2}' /proc/meminfo); echo "cached $((c-a)) KiB" >&2`)
}
