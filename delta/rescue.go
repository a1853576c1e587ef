package delta

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/bundle"
)

// A rescue section holds files whole that other sections make from sources, or that do
// not change at all. It comes last. A device that finds a source damaged goes on
// without the files that it was needed for, and takes them from there. Files that stay as
// they are have a record there, too: what the base holds is compared with its checksum.

// rescues reports whether a path is one that a pattern is for: it, or a directory above it,
// matches (path.Match).
func rescues(patterns []string, p string) bool {
	for _, pattern := range patterns {
		for q := p; q != "." && q != ""; q = path.Dir(q) {
			if ok, err := path.Match(strings.Trim(pattern, "/"), q); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// makeRescue makes the section of the files that patterns ask for; nil without any.
func makeRescue(ctx context.Context, o *MakeOptions, news *inventory, report *Report) (*section, error) {
	if len(o.Rescue) == 0 {
		return nil, nil
	}
	n := 0
	plan := partPlan{kind: partRescue, bases: 1<<len(o.From) - 1, only: func(i int) bool {
		return news.entries[i].size > 0 && rescues(o.Rescue, news.entries[i].path)
	}}
	for i := range news.entries {
		if e := &news.entries[i]; e.isRegular() && e.link < 0 && plan.only(i) {
			n++
		}
	}
	if n == 0 {
		report.Warnings = append(report.Warnings, "no file is one that --rescue asks for: "+strings.Join(o.Rescue, ", "))
		return nil, nil
	}
	return makeSection(ctx, o, &inventory{listing: &listing{}}, news, report, plan)
}

// failures notes files that could not be made because of their sources.
type failures struct {
	allowed bool // the bundle has a rescue section, and it has not begun
	files   map[int]error
	first   error
	rescued []string
}

// tolerate reports whether a job may fail: if the base, not the bundle, can be the reason.
func (a *applier) tolerate(j *job, err error) bool {
	var source *SourceError
	var damage *bundle.DamageError
	because := errors.As(err, &source) || errors.Is(err, unix.EIO) ||
		(j.rec.inPieces() || j.rec.recompressed() && len(j.rec.sources) > 0) && errors.As(err, &damage)
	a.mu.Lock()
	defer a.mu.Unlock()
	if !because || !a.failed.allowed {
		return false
	}
	if a.failed.files == nil {
		a.failed.files = make(map[int]error)
	}
	a.failed.files[j.rec.index] = err
	if a.failed.first == nil {
		a.failed.first = err
	}
	return true
}

// giveUp lets what waits for a file go on: it finds it incomplete.
func (a *applier) giveUp(ctx context.Context, j *job) error {
	err := a.consume(ctx, j, func(action) error { return nil })
	close(a.ready[j.rec.index])
	return err
}

// wants reports whether a record of the rescue section is to be made: after its file failed,
// or where a file that stays is not what it should be.
func (a *applier) wants(rec *record) bool {
	a.mu.Lock() // workers take out what they have made
	_, failed := a.failed.files[rec.index]
	a.mu.Unlock()
	if failed || a.checkAll {
		return true
	}
	k := a.stage.keep[rec.index]
	if a.recorded[rec.index] || k < 0 || a.base == nil {
		return false
	}
	f, size, err := openRegular(a.base, a.olds.entries[k].path)
	if err != nil {
		return true
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, f)
	return err != nil || size != rec.size || n != size || sum.Sum32() != rec.crc
}

// rescued notes that a file was made after all.
func (a *applier) rescued(index int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.failed.files, index)
	a.failed.rescued = append(a.failed.rescued, a.news.entries[index].path)
}

// again reports whether a file was begun before.
func (a *applier) again(index int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.failed.files[index]
	return ok
}
