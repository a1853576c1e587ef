// Package crashdisk is a disk that remembers: it records what a file system
// writes to it, and makes of the record every disk that a power cut could have
// left behind.
//
//	  btrfs                       the workload runs here
//	    │ write, discard, flush
//	/dev/loopN                    passes them on one by one (flush as FSYNC,
//	    │                         discard and write-zeroes as FALLOCATE)
//	 disk on FUSE                 a child process: serves, records, fails on request
//	    │
//	  log: W W F W D F W …        in order, with the marks that the workload sets
//	        │
//	        ├─ the prefix of every length          a disk without a cache
//	        ├─ the prefix up to the last flush F,  a disk with a volatile cache:
//	        │  and any subset of the writes since  it may have kept any of them
//	        └─ one of those cut at a sector        a torn write (512 bytes)
//	        │
//	      Image                   pages shared copy-on-write: a state costs what differs
//	        │
//	      Slot                    a memory file under a loop device, mounted: no FUSE
//
// A cache may write blocks out in any order, but the block that it holds is the
// newest: writing twice between two flushes leaves the old, the first or the second
// content, never the first one over the second. So subsets are all orders there are.
//
// # Never wedge the machine
//
// A loop device on FUSE whose server hangs stops everything that touches it, in
// an uninterruptible sleep. Therefore
//
//   - the server is a process of its own (the test binary started again, see
//     [ServeIfChild]), in its own session, deaf to signals from the terminal. It
//     touches no file system while it serves, starts no processes, and holds the
//     only descriptor of its connection: when it dies, the kernel fails all requests;
//   - every step that can touch the disk has a time limit ([Recorder] methods). When
//     it passes, the connection is aborted through fusectl, which makes every
//     pending request fail, and the step ends with an error instead of waiting;
//   - closing detaches in the order file system, loop device, server. A parent that
//     is killed leaves that to the child, which sees its control socket close;
//   - what both left is removed by [Sweep] at the next start, by process id.
//
// Only recording uses loop on FUSE. States are mounted from memory files.
//
// The images of one recording share one fsid. Never mount two at once, and forget
// the device in between ([Slot.Unmount] does).
package crashdisk
