//go:build arm || 386 || mips || mipsle

package delta

import "golang.org/x/sys/unix"

// The old call cannot say times after 2038.
const sysUtimensat = unix.SYS_UTIMENSAT_TIME64
