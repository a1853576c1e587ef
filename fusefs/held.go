package fusefs

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// otherNamespaces is how often mounts in other mount namespaces are looked at while
// one of them may hold a name. Those in this process's own are heard of at once.
const otherNamespaces = 2 * time.Second

// watchMounts lets names that a switch could not take away, because something was mounted on them or below, go
// as soon as nothing is: until then the kernel keeps them as they were (overlay.HeldName).
func (v *View) watchMounts() {
	if len(v.u.HeldNames()) == 0 || !v.watching.CompareAndSwap(false, true) {
		return
	}
	go func() {
		mounts, err := os.Open("/proc/self/mountinfo") // before the first look: what happens after it wakes us
		if err == nil {
			defer mounts.Close()
		}
		for {
			if v.releaseNames(); len(v.u.HeldNames()) == 0 {
				break
			}
			if mounts != nil {
				unix.Poll([]unix.PollFd{{Fd: int32(mounts.Fd()), Events: unix.POLLPRI}}, int(otherNamespaces.Milliseconds()))
			} else {
				time.Sleep(otherNamespaces)
			}
			select {
			case <-v.done:
				return
			default:
			}
		}
		v.watching.Store(false)
		v.watchMounts() // a switch that came meanwhile relied on this one
	}()
}

// releaseNames takes away the held names on which nothing is mounted any more.
func (v *View) releaseNames() {
	v.switching.Lock() // it would hold names by what was mounted when it looked
	defer v.switching.Unlock()
	busy, err := v.mountsBelow()
	if err != nil {
		return
	}
	for _, h := range v.u.HeldNames() {
		dir := v.u.Node(h.Parent)
		if busy[h.Path] || dir == nil || !v.u.ReleaseName(dir, h.Name) {
			continue
		}
		v.log.Info("nothing is mounted any more on a name that was kept for it", "mountpoint", v.mountpoint, "path", h.Path)
		v.forgetName(h.NameRef)
		v.conn.forgetInode(h.Child, -1, 0)
	}
}
