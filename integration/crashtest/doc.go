// Package crashtest attacks a pool: power cuts at every point of every command that
// changes it, SIGKILL at every system call, full disks, failing blocks. It has tests
// only. The disk that makes power cuts is package crashdisk.
//
//	TestCrashCommands     the life of a device, recorded; every state of every command checked
//	TestCrashTwice        a second power cut while the first one is being recovered from
//	TestCrashView         writes through a mounted view
//	TestCrashStockScheme  the same attack on "btrfs receive, then rename": it fails, as it must
//	TestKill…             SIGKILL before the n-th state-changing system call
//	TestFull…, TestFault… a full file system, failing blocks
//
// What is checked for each state is in check_test.go. As part of `go test` the runs are
// thinned to fit their time; BTROVL_CRASH_STATES=2000 (make test-crash) makes them full.
package crashtest
