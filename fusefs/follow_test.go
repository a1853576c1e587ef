package fusefs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// policyOf returns a thread's policy and nice value.
func policyOf(t *testing.T, tid int) (uint32, int32) {
	t.Helper()
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	return a.Policy, a.Nice
}

func processors(t *testing.T, tid int) int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		t.Error(err)
	}
	return set.Count()
}

// fewProcessors holds the test's threads, and processes that they start, to as many processors as followers are good for.
func fewProcessors(t *testing.T) {
	t.Helper()
	var own, few unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; few.Count() < min(mostProcessors, own.Count()); cpu++ {
		if own.IsSet(cpu) {
			few.Set(cpu)
		}
	}
	if few.Count() < leastProcessors {
		t.Fatal("needs two processors")
	}
	all := func(set *unix.CPUSet) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			unix.SchedSetaffinity(tid, set) // it may have ended
		}
	}
	all(&few)
	t.Cleanup(func() { all(&own) })
}

// A follower is idle and held to one processor from begin to end, and what it was
// afterwards.
func TestFollower(t *testing.T) {
	fewProcessors(t)
	if !mayFollow() {
		t.Fatal("threads cannot become SCHED_IDLE and normal again: needs CAP_SYS_NICE")
	}
	var c calm
	done := make(chan struct{})
	go func() { // on a thread that ends with the test
		defer close(done)
		runtime.LockOSThread()
		tid := unix.Gettid()
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, 3); err != nil {
			t.Error(err)
		}
		all := processors(t, 0)
		is := func(when string, policy uint32, held int) {
			t.Helper()
			if p, nice := policyOf(t, 0); p != policy || nice != 3 {
				t.Errorf("%s: policy %d, nice %d; want policy %d, nice 3", when, p, nice, policy)
			}
			if n := processors(t, 0); n != held {
				t.Errorf("%s: may run on %d processors, want %d", when, n, held)
			}
		}
		f, other := &follower{calm: &c}, &follower{calm: &c}
		f.begin()
		is("after begin", schedIdle, all)
		f.slept(false)
		is("while it sleeps little", schedIdle, all)
		was := processor()
		f.slept(true)
		is("after a long sleep", schedIdle, all)
		f.slept(true)
		is("after a second one", schedIdle, 1)
		if all > 1 && processor() == was {
			t.Errorf("still on processor %d", was)
		}
		other.begin()
		if other.on.Load() || c.follower.Load() != f {
			t.Error("two follow")
		}
		f.end()
		is("after end", schedNormal, all)
		if c.follower.Load() != nil {
			t.Error("somebody follows after the end")
		}

		// A tick without a request makes it what it was, and it follows more rarely.
		f.begin()
		f.slept(true)
		f.slept(true)
		var w watch
		if w.release(&c) {
			t.Error("released though it has just begun")
		}
		f.begin()
		if w.release(&c) {
			t.Error("released though it serves")
		}
		if !w.release(&c) {
			t.Error("not released")
		}
		is("after release", schedNormal, all)
		for i := range skipFirst {
			if f.begin(); f.on.Load() {
				t.Errorf("follows again after %d requests, want %d", i, skipFirst)
				return
			}
		}
		f.begin()
		is("after as many requests", schedIdle, all)

		// One that holds the lock, and perhaps waits for a processor, is given one.
		w.release(&c)
		f.mu.Lock()
		if w.release(&c) {
			t.Error("released without the lock")
		}
		is("with the lock held", schedNormal, all)
		f.mu.Unlock()
		if !w.release(&c) || f.on.Load() {
			t.Error("not released in the end")
		}
		f.end()
	}()
	<-done
}

// threads counts the threads of a process that are SCHED_IDLE, or held to less than all
// processors.
func threads(t *testing.T, pid, all int) (n int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		a, err := unix.SchedGetAttr(tid, 0)
		var set unix.CPUSet
		if err != nil || unix.SchedGetaffinity(tid, &set) != nil {
			continue // it has ended
		}
		if a.Policy == schedIdle || set.Count() < all {
			n++
		}
	}
	return n
}

// A series of short requests is followed, also when every processor has better to do;
// then other programs are answered, and run, all the same, and afterwards no thread is held.
func TestFollowing(t *testing.T) {
	fewProcessors(t)
	p := newPool(t)
	s := p.mountWith(request{Layers: layers{Base: p.base("", "mkdir d; cp /bin/true true; for i in $(seq 100); do echo $i >f$i; done"), Uppers: []upperDir{p.upper("sys", "/")}}})
	pid, all := s.cmd.Process.Pid, processors(t, 0)
	series := func(until func() bool) {
		t.Helper()
		for i := 0; !until(); i++ {
			name := filepath.Join(s.mnt, "d", strconv.Itoa(i))
			if err := unix.Mkdir(name, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Rmdir(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	series(func() bool { return threads(t, pid, all) > 0 || time.Now().After(deadline) })
	if time.Now().After(deadline) {
		t.Error("nobody follows a series of short requests")
	}
	deadline = time.Now().Add(20 * time.Second)
	for threads(t, pid, all) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("a reader follows though nobody asks")
		}
		time.Sleep(time.Millisecond)
	}

	for range 2 * runtime.NumCPU() {
		busy := exec.Command("sh", "-c", "while :; do :; done")
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			busy.Process.Kill()
			busy.Wait()
		}()
	}
	read := make(chan error, 1)
	go func() {
		for i := 1; i <= 100; i++ {
			b, err := os.ReadFile(filepath.Join(s.mnt, "f"+strconv.Itoa(i)))
			if err == nil && strings.TrimSpace(string(b)) != strconv.Itoa(i) {
				err = fmt.Errorf("f%d holds %q", i, b)
			}
			if err == nil && i%4 == 0 {
				err = exec.Command(filepath.Join(s.mnt, "true")).Run()
			}
			if err != nil {
				read <- err
				return
			}
		}
		close(read)
	}()
	var ended bool
	deadline = time.Now().Add(20 * time.Second)
	series(func() bool {
		select {
		case err := <-read:
			if ended = true; err != nil {
				t.Error(err)
			}
		default:
		}
		return ended || time.Now().After(deadline)
	})
	if !ended {
		t.Error("a hundred files are not read, and programs not run, while others compute")
	}
}

// What counts as a long sleep is measured: more than a few round trips on one processor.
func TestLongSleep(t *testing.T) {
	for range 5 {
		if d := longSleep(); d < shortestLong || d > longestLong {
			t.Errorf("long is %v, not between %v and %v", d, shortestLong, longestLong)
		} else {
			t.Log(d)
		}
	}
	if n := threads(t, os.Getpid(), processors(t, 0)); n > 0 {
		t.Errorf("%d threads are still held to one processor", n)
	}
}

// Threads of a server may wake late, those that are started later, too.
func TestRelaxTimers(t *testing.T) {
	relaxTimers()
	slack := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", unix.Gettid()))
		if err != nil {
			t.Error(err)
		}
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		slack <- n
	}()
	if n := <-slack; n != int(timerSlack) {
		t.Errorf("the timer slack is %d ns, want %d", n, timerSlack)
	}
}
