package testenv

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Squashfs returns the image that mksquashfs makes of files, by path, with these options; the same for the same files. Each has
// a link to it, and every third length an extended attribute.
func Squashfs(t testing.TB, files map[string][]byte, options ...string) []byte {
	t.Helper()
	mksquashfs := Command(t, "mksquashfs")
	dir := t.TempDir()
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "image")
	when := time.Unix(1700000000, 0)
	for name, data := range files {
		p := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if err == nil {
			err = os.WriteFile(p, data, 0o644)
		}
		if err == nil {
			err = os.Chtimes(p, when, when)
		}
		if err == nil && len(data)%3 == 0 {
			err = unix.Setxattr(p, "user.note", []byte(name), 0)
		}
		if err == nil {
			err = os.Symlink(name, p+".link")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := append([]string{root, image, "-quiet", "-no-progress", "-mkfs-time", "1700000000", "-all-time", "1700000000"}, options...)
	if out, err := exec.CommandContext(ctx, mksquashfs, args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %v: %v: %s", options, err, out)
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
