package testenv

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Must ends the test at the error of a step that it stands on.
func Must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Open opens a file or directory until the test ends.
func Open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// Kernel skips a test of what only newer kernels do; it is no failure anywhere that a
// machine has an older one. CI's is new enough for every test.
func Kernel(t testing.TB, major, minor int) {
	t.Helper()
	var u unix.Utsname
	Must(t, unix.Uname(&u))
	var have [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatalf("kernel release %s: %v", unix.ByteSliceToString(u.Release[:]), err)
	}
	if have[0] < major || have[0] == major && have[1] < minor {
		t.Skipf("this kernel is %d.%d; the test needs %d.%d", have[0], have[1], major, minor)
	}
}
