//go:build !arm && !386

package tree

import "golang.org/x/sys/unix"

const sysUtimensat64 = unix.SYS_UTIMENSAT
