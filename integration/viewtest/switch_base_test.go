package viewtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// switchBases are two versions of a tree, 0 and 1, between which a view switches.
// What a path holds tells its version:
//
//	same/…     the same in both
//	chg/…      content (all of one version, several pages in every tenth)
//	meta/…     mode only
//	links/a,b  one file with two names, changed
//	only0/…    in version 0 only, only1/… in version 1 only; both/ lists differing names
//	move0|1/   a directory that is renamed
//	typ/…      file in version 0, directory in version 1
//	sym        symlink to "0" or "1"
//	prog       exits with 10 + version
//	mnt/…      mount points, where nothing changes
type switchBases struct {
	dir     string
	files   int // in all, about
	changed int
	path    [2]string
}

func versionContent(path string, version int, pages bool) string {
	s := fmt.Sprintf("version %d of %s\n", version, path)
	if pages {
		return strings.Repeat(s, 12000/len(s)+1)
	}
	return s
}

// chgPath and manyPages name the i-th changed file.
func (b *switchBases) chgPath(i int) string { return fmt.Sprintf("chg/d%d/f%d", i%20, i) }
func manyPages(i int) bool                  { return i%10 == 0 }

const addedFiles = 40 // in only0, only1, both

func newSwitchBases(ctx context.Context, dir string, files, changed int) (*switchBases, error) {
	b := &switchBases{dir: dir, files: files, changed: changed}
	rw := filepath.Join(dir, "rw")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := command(ctx, "btrfs", "-q", "subvolume", "create", rw); err != nil {
		return nil, err
	}
	for version := range 2 {
		if err := b.fill(rw, version); err != nil {
			return nil, err
		}
		b.path[version] = filepath.Join(dir, fmt.Sprintf("base%d", version))
		if err := command(ctx, "btrfs", "-q", "subvolume", "snapshot", "-r", rw, b.path[version]); err != nil {
			return nil, err
		}
	}
	return b, command(ctx, "btrfs", "-q", "subvolume", "delete", rw)
}

func (b *switchBases) fill(dir string, version int) error {
	var errs []error
	note := func(err error) {
		if err != nil && len(errs) < 5 {
			errs = append(errs, err)
		}
	}
	p := func(format string, a ...any) string { return filepath.Join(dir, fmt.Sprintf(format, a...)) }
	mkdir := func(format string, a ...any) { note(os.MkdirAll(p(format, a...), 0o755)) }
	// A new version replaces files as package managers do: written beside, renamed over.
	write := func(rel, data string) {
		note(os.WriteFile(p("%s.new", rel), []byte(data), 0o644))
		note(os.Rename(p("%s.new", rel), p("%s", rel)))
	}
	if version == 0 {
		mkdir("same")
		for i := range b.files - b.changed {
			if i%500 == 0 {
				mkdir("same/d%d", i/500)
			}
			note(os.WriteFile(p("same/d%d/f%d", i/500, i), []byte("the same\n"), 0o644))
		}
		for i := range 20 {
			mkdir("chg/d%d", i)
		}
		for _, d := range []string{"meta", "links", "both", "typ", "only0", "move0/in", "mnt/dir", "mnt/tmp", "var/lib/app"} {
			mkdir("%s", d)
		}
		note(os.WriteFile(p("mnt/file"), nil, 0o644))
		for i := range addedFiles {
			write(fmt.Sprintf("meta/f%d", i), "the same\n")
			write(fmt.Sprintf("only0/f%d", i), "0")
			write(fmt.Sprintf("move0/in/f%d", i), "moves\n")
		}
	} else {
		note(os.RemoveAll(p("only0")))
		mkdir("only1")
		note(os.Rename(p("move0"), p("move1")))
		for i := range addedFiles {
			write(fmt.Sprintf("only1/f%d", i), "1")
			note(os.Remove(p("both/v0-%d", i)))
			note(os.Remove(p("typ/t%d", i)))
			note(os.Mkdir(p("typ/t%d", i), 0o755))
		}
	}
	for i := range b.changed {
		rel := b.chgPath(i)
		write(rel, versionContent(rel, version, manyPages(i)))
	}
	for i := range addedFiles {
		note(os.Chmod(p("meta/f%d", i), os.FileMode(0o600+version*4)))
		write(fmt.Sprintf("both/v%d-%d", version, i), "")
		if version == 0 {
			write(fmt.Sprintf("typ/t%d", i), "file")
		}
	}
	write("links/a", versionContent("links", version, false))
	note(os.Remove(p("links/b")))
	if version == 0 {
		errs = nil // nothing to remove the first time
	}
	note(os.Link(p("links/a"), p("links/b")))
	note(os.Symlink(fmt.Sprint(version), p("sym.new")))
	note(os.Rename(p("sym.new"), p("sym")))
	write("prog", string(exitELF(runtime.GOARCH, byte(10+version))))
	note(os.Chmod(p("prog"), 0o755))
	if len(errs) > 0 {
		return fmt.Errorf("cannot make version %d: %w", version, errors.Join(errs...))
	}
	return unix.Access(p("chg/d0"), 0)
}
