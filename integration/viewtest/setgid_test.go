package viewtest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/btrovl/btrovl/integration/testenv"
)

// Set-id bits when somebody without privileges changes a file's content, as a member of
// its group and as nobody whom it knows. The kernel leaves this to a FUSE server, without
// saying who is in which group.
func TestSetgidOfMembers(t *testing.T) {
	testenv.FUSE(t)
	for _, tool := range []string{"setpriv", "fallocate", "python3"} {
		testenv.Command(t, tool)
	}
	said := map[string]string{}
	for _, target := range []Target{Native(), View()} {
		root := mountOnce(t, target, func(dir string) error { return os.Chmod(dir, 0o777) }).Root
		var out strings.Builder
		for _, mode := range []string{"2666", "6666", "2676", "4666"} {
			for _, change := range []string{
				"dd if=/dev/zero of=file bs=1 count=1 conv=notrunc status=none",
				"dd if=/dev/zero of=file bs=1 count=1 conv=notrunc oflag=append status=none",
				"truncate -s 3 file", ": >file", "fallocate -l 100 file", "fallocate -p -o 0 -l 3 file",
				`python3 -c 'import os; f = os.open("file", os.O_RDWR); os.copy_file_range(f, f, 2, 0, 4)'`,
			} {
				for _, who := range []string{
					"--regid 1234 --clear-groups", // nobody
					"--regid 77 --clear-groups",   // by his first group
					"--regid 1234 --groups 5,77",  // by another one
				} {
					runAs(t, 0, root, "rm -f file; echo hello >file; chown 5:77 file; chmod "+mode+" file")
					said := runAs(t, 0, root, "setpriv --reuid 1234 "+who+" "+"sh -c \""+strings.ReplaceAll(change, `"`, `\"`)+"\"")
					// stat asks for the mode alone, which the kernel may have cached.
					fmt.Fprintf(&out, "%s, %s, %s:%s %s", mode, change, who, said, runAs(t, 0, root, "stat -c %a file"))
				}
			}
		}
		// A new owner or group takes setuid, and setgid only where the group may execute, if it is root who gives it.
		for _, mode := range []string{"2666", "6666", "2676", "6676", "4666", "6777"} {
			for _, change := range []string{"chown 6 file", "chgrp 78 file", "chown 6:78 file", "chown 5:77 file"} {
				out.WriteString(mode + ", " + change + ": " + runAs(t, 0, root, "rm -f file; echo hello >file; chown 5:77 file; chmod "+mode+" file; "+change+"; stat -c %a:%u:%g file"))
			}
		}
		said[target.Name] = out.String()
	}
	native, view := strings.Split(said["native"], "\n"), strings.Split(said["view"], "\n")
	for i, l := range native {
		if i >= len(view) || l != view[i] {
			t.Errorf("on btrfs: %s\non a view: %s", l, view[i])
		}
	}
	if !strings.Contains(said["native"], ": 2666") {
		t.Errorf("no setgid bit stays:\n%s", said["native"])
	}
}
