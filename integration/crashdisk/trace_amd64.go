package crashdisk

import "golang.org/x/sys/unix"

// addOldCalls adds the calls that newer architectures do not have.
func addOldCalls(m map[uint64]call) {
	for nr, name := range map[uint64]string{
		unix.SYS_MKDIR: "mkdir", unix.SYS_MKNOD: "mknod", unix.SYS_UNLINK: "unlink", unix.SYS_RMDIR: "rmdir",
		unix.SYS_RENAME: "rename", unix.SYS_LINK: "link", unix.SYS_SYMLINK: "symlink", unix.SYS_CHMOD: "chmod",
		unix.SYS_CHOWN: "chown", unix.SYS_LCHOWN: "lchown", unix.SYS_CREAT: "creat",
	} {
		m[nr] = call{name: name}
	}
}
