package fusefs

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// follower keeps a reader on the processor of the program that it serves, while calm
// lasts. Linux wakes a reader on an idle processor rather than on the one that its
// program is about to leave, and then the program on an idle one rather than on its
// reader's: each request wakes two processors. Where these halt, and most of all in a
// virtual machine, that is most of a request's time: creating files took 4 to 14 times as
// long as on kernel overlayfs, and takes 2.5 times when both run on one processor.
//
// A program cannot be told where to run, but its reader can run where a program is
// welcome: a processor on which only SCHED_IDLE threads run counts as idle, and a thread
// that is woken there goes before these (select_idle_sibling and wakeup_preempt_fair in
// kernel/sched/fair.c). So a follower is SCHED_IDLE and held to one processor; when the
// two have come apart, which shows by long sleeps before requests, it goes to the next.
//
// The price is that other programs on that processor go before the reader, too. So
// following lasts only as long as requests come: after a tick without one the watch makes
// the reader what it was (release), whatever it is doing, so that nobody waits longer than
// two ticks for it. Who is released soon, time and again, follows more and more rarely.
//
// What the watch cannot bound: while Go's collector stops the world it waits for the
// follower, too, and the watch is stopped with all others. A follower that a busy program
// keeps from its processor at that moment makes the view wait until the scheduler gives it
// a turn.
type follower struct {
	calm   *calm
	locked bool // the goroutine to its thread: the reader's own
	tid    int
	nice   int32
	rarer  int // how often released soon, in a row
	skip   int // requests to serve before the next begin
	apart  int // grows with each long sleep, and less with each that is none
	tried  int // processors tried in a row without success

	served atomic.Uint32 // requests since begin

	on  atomic.Bool // changed with mu held
	mu  sync.Mutex
	may unix.CPUSet // where the thread might run
	cpu int         // where it is held, -1: nowhere yet
}

const (
	schedNormal = 0 // SCHED_NORMAL of linux/sched.h, also called SCHED_OTHER
	schedIdle   = 5 // SCHED_IDLE

	servedSoon = 64 // released before as many requests is soon
	skipFirst  = 64
	apartFrom  = 3  // more than one long sleep: one may be the program's own work
	blindly    = 32 // what apart begins below zero after all processors were tried in vain
	rarest     = 4  // 64 << 4 requests are skipped at most

	roundTrips   = 64
	shortestLong = 10 * time.Microsecond
	longestLong  = 100 * time.Microsecond
	timerSlack   = 2 * time.Millisecond

	// With more, finding the program would take longer than it saves; with one there is
	// nothing to find.
	leastProcessors, mostProcessors = 2, 4
)

// mayFollow tells whether this process's threads can become SCHED_IDLE and normal again,
// for which some need CAP_SYS_NICE, and whether there are as many processors as following is good for.
func mayFollow() bool {
	able := make(chan bool)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		own, err := unix.SchedGetAttr(0, 0)
		var may unix.CPUSet
		able <- err == nil && unix.SchedGetaffinity(0, &may) == nil && may.Count() >= leastProcessors && may.Count() <= mostProcessors && own.Policy == schedNormal && setPolicy(0, schedIdle, own.Nice) == nil && setPolicy(0, schedNormal, own.Nice) == nil
	}()
	return <-able
}

// longSleep returns how long a reader sleeps before a request that a program on another
// processor sends: longer than a few round trips between two threads on one processor
// take. That differs by a factor of six between machines (2.1 µs and 12, where system calls
// are slow), and is measured, in about a millisecond. The shortest counts, so that others
// who run meanwhile do not matter.
func longSleep() time.Duration {
	shortest := shortestLong
	var there, back [2]int
	if unix.Pipe2(there[:], unix.O_CLOEXEC) != nil {
		return shortest
	}
	defer unix.Close(there[0])
	if unix.Pipe2(back[:], unix.O_CLOEXEC) != nil {
		unix.Close(there[1])
		return shortest
	}
	defer unix.Close(back[0])
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil {
		return shortest
	}
	one.Set(processor())
	// On a thread held to one processor, which is given all back: the first thread of a process does not end with a
	// goroutine that is locked to it, but waits for good.
	held := func(f func()) {
		runtime.LockOSThread()
		if unix.SchedSetaffinity(0, &one) == nil {
			f()
		}
		if unix.SchedSetaffinity(0, &all) == nil {
			runtime.UnlockOSThread()
		}
	}
	var both sync.WaitGroup
	both.Go(func() {
		defer unix.Close(back[1])
		held(func() {
			b := make([]byte, 1)
			for {
				if n, err := unix.Read(there[0], b); n != 1 || err != nil {
					return
				}
				if _, err := unix.Write(back[1], b); err != nil {
					return
				}
			}
		})
	})
	var trip time.Duration
	both.Go(func() {
		defer unix.Close(there[1])
		held(func() {
			b := make([]byte, 1)
			for range roundTrips {
				before := time.Now()
				if _, err := unix.Write(there[1], b); err != nil {
					return
				}
				if n, err := unix.Read(back[0], b); n != 1 || err != nil {
					return
				}
				if d := time.Since(before); trip == 0 || d < trip {
					trip = d
				}
			}
		})
	})
	both.Wait()
	return min(max(shortest, 3*trip), longestLong)
}

// relaxTimers lets this process's threads wake up to timerSlack late from waits with a time limit. Go's
// monitor sleeps 20 µs, and then again, for a millisecond after each time that it took a processor from a thread
// in a system call, which it does every 10 ms with a follower. The kernel wakes it on the other processor, and may
// find that a good place for the program, too. With 50 µs, as threads have it, a program and its
// follower were on one processor for 85 to 88 of 100 requests (in a bad hour 61), with 2 ms for 92 to 94. Where it may not be changed, it stays.
func relaxTimers() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads { // those that are started later have it from these
		if f, err := os.OpenFile("/proc/"+t.Name()+"/timerslack_ns", os.O_WRONLY, 0); err == nil {
			fmt.Fprint(f, timerSlack.Nanoseconds())
			f.Close()
		}
	}
}

// setPolicy gives a thread a policy. (SCHED_FLAG_KEEP_PARAMS would keep its nice value,
// but the policy with it.)
func setPolicy(tid int, policy uint32, nice int32) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Policy: policy, Nice: nice}, 0)
}

// begin makes the calling reader follow, if nobody does and it is not to be rarer. The
// watch must be awake.
func (f *follower) begin() {
	if f.on.Load() {
		f.served.Add(1)
		return
	}
	if f.locked { // released meanwhile
		if f.unlock(); f.served.Load() >= servedSoon {
			f.rarer = 0
		} else {
			f.skip = skipFirst << f.rarer
			f.rarer = min(f.rarer+1, rarest)
		}
	}
	if f.skip > 0 {
		f.skip--
		return
	}
	if f.calm.follower.Load() != nil {
		return
	}
	runtime.LockOSThread()
	f.locked = true
	f.served.Store(0)
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil || own.Policy != schedNormal || unix.SchedGetaffinity(0, &f.may) != nil {
		return
	}
	if n := f.may.Count(); n < leastProcessors || n > mostProcessors {
		return
	}
	f.tid, f.nice, f.cpu = unix.Gettid(), own.Nice, -1
	f.apart, f.tried = 0, 0
	if !f.calm.follower.CompareAndSwap(nil, f) {
		f.unlock()
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if setPolicy(0, schedIdle, f.nice) == nil {
		f.on.Store(true)
	} else {
		f.calm.follower.Store(nil)
	}
}

// end makes the reader what it was before begin.
func (f *follower) end() {
	if f.on.Load() {
		f.mu.Lock()
		f.restore()
		f.mu.Unlock()
	}
	if f.locked {
		f.unlock()
	}
}

func (f *follower) unlock() {
	f.locked = false
	runtime.UnlockOSThread()
}

// restore is called with mu held, by any thread.
func (f *follower) restore() {
	if !f.on.Load() {
		return
	}
	setPolicy(f.tid, schedNormal, f.nice)
	if f.cpu >= 0 {
		unix.SchedSetaffinity(f.tid, &f.may)
	}
	f.on.Store(false)
	f.calm.follower.Store(nil)
}

// slept is called after each answer, and told whether the reader slept long before the
// request: if that happens again and again, the program runs elsewhere, and the reader tries
// the next processor.
//
// It does not ask where: /proc/PID/stat would say it, but to read it waits for an execve
// of that process, which may be waiting for this very reader. (A view hung that way.)
func (f *follower) slept(long bool) {
	if !f.on.Load() {
		return
	}
	switch {
	case long:
		f.apart += 2
	case f.apart > 0:
		f.apart--
	default:
		f.tried = 0
	}
	if f.apart < apartFrom {
		return
	}
	if f.apart = 0; f.tried >= f.may.Count() {
		f.apart, f.tried = -blindly, 0
		return
	}
	f.tried++
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.on.Load() {
		return
	}
	cpu := f.cpu
	if cpu < 0 {
		cpu = processor()
	}
	var there unix.CPUSet
	for range len(f.may) * 64 {
		if cpu = (cpu + 1) % (len(f.may) * 64); f.may.IsSet(cpu) {
			break
		}
	}
	there.Set(cpu)
	if unix.SchedSetaffinity(0, &there) == nil {
		f.cpu = cpu
	}
}

// processor returns the one that the calling thread runs on.
func processor() int {
	var cpu uint32
	unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	return int(cpu)
}

// release makes the follower what it was, unless it has served requests since the last
// call, and says whether nobody follows now. A reader that is about to begin, end or move
// may be waiting for a processor with mu held: it is given one, and the caller comes back.
func (w *watch) release(c *calm) bool {
	f := c.follower.Load()
	if f == nil {
		return true
	}
	served := f.served.Load()
	if f != w.follower || served != w.served {
		w.follower, w.served = f, served
		return false
	}
	if !f.mu.TryLock() {
		setPolicy(f.tid, schedNormal, f.nice)
		return false
	}
	defer f.mu.Unlock()
	f.restore()
	return true
}

// watch is what a tick remembers for the next one.
type watch struct {
	taken    uint32
	follower *follower
	served   uint32
}
