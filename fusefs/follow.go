package fusefs

import (
	"runtime"
	"sync"
	"sync/atomic"
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

	// With more, finding the program would take longer than it saves; with one there is
	// nothing to find.
	leastProcessors, mostProcessors = 2, 4
)

// mayFollow tells whether this process's threads can become SCHED_IDLE and normal again,
// for which some need CAP_SYS_NICE.
func mayFollow() bool {
	able := make(chan bool)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		own, err := unix.SchedGetAttr(0, 0)
		able <- err == nil && own.Policy == schedNormal && setPolicy(0, schedIdle, own.Nice) == nil && setPolicy(0, schedNormal, own.Nice) == nil
	}()
	return <-able
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
