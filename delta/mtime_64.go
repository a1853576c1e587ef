//go:build !arm && !386 && !mips && !mipsle

package delta

import "golang.org/x/sys/unix"

const sysUtimensat = unix.SYS_UTIMENSAT
