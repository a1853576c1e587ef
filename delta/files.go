package delta

import (
	"context"
	"fmt"
	"os"

	"github.com/btrovl/btrovl/delta/bundle"
)

// Files lists how each file travels. It reads the payload but needs no base; then
// files have numbers in place of names, which only the base's list of files holds.
// A full bundle has names.
func Files(ctx context.Context, br *bundle.Reader) ([]FileInfo, error) {
	return FilesOf(ctx, br, nil)
}

// FilesOf is Files with names, for one who has the first base of the manifest.
func FilesOf(ctx context.Context, br *bundle.Reader, base *os.File) ([]FileInfo, error) {
	r, err := openSection(br, 0)
	if err != nil {
		return nil, err
	}
	defer r.close()
	var olds, news *listing
	m := br.Manifest()
	if base != nil || len(m.From) == 0 {
		olds, news, err = readListings(ctx, r, base, m, 0)
	} else {
		_, err = r.skip(int64(r.head.listing), false)
	}
	if err != nil {
		return nil, err
	}
	name := func(l *listing, i int) string {
		if l == nil {
			return fmt.Sprintf("#%d", i)
		}
		return l.entries[i].path
	}
	nOld, nNew := maxEntries, maxEntries
	if news != nil {
		nOld, nNew = len(olds.entries), len(news.entries)
	}
	if _, err := r.hints(); err != nil {
		return nil, err
	}
	count, err := r.uint(streamControl, uint64(nNew))
	if err != nil {
		return nil, err
	}
	var files []FileInfo
	var c cursor
	for ; count > 0; count-- {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rec, err := r.record(&c, nNew, nOld)
		if err != nil {
			return nil, err
		}
		f := FileInfo{Path: name(news, rec.index), Method: methodNames[rec.method], Size: rec.size}
		if rec.method == methodPatch && len(rec.sources) == 0 {
			f.Method = "whole"
		}
		for i, s := range rec.sources {
			if i == 3 {
				f.Source += fmt.Sprintf(" and %d more", len(rec.sources)-i)
				break
			}
			if i > 0 {
				f.Source += " + "
			}
			if s.new {
				f.Source += "new " + name(news, s.index)
			} else {
				f.Source += name(olds, s.index)
			}
		}
		size := rec.size
		switch rec.method {
		case methodCopy:
			size = 0
		case methodRestore:
			size = rec.plain
			if err := r.bytes(streamRecipe, make([]byte, rec.recipe)); err != nil {
				return nil, err
			}
		}
		if f.Bytes, err = r.skip(size, rec.inMemory()); err != nil {
			return nil, err
		}
		if news != nil {
			f.Why = whyRecorded(rec, olds, news)
		}
		files = append(files, f)
	}
	return files, br.Verify()
}

// skip reads the operations that make size bytes and returns how much data they carry.
func (r *sectionReader) skip(size int64, object bool) (data int64, err error) {
	ops := opReader{r: r, total: maxSize, left: size, object: object}
	for ops.more() {
		o, err := ops.next()
		if err != nil {
			return data, err
		}
		err = r.pieces(o, func(c action) error {
			data += int64(len(c.data))
			return nil
		})
		if err != nil {
			return data, err
		}
	}
	return data, nil
}

// whyRecorded says how a file and its source are related, as far as their names tell:
// the maker's own reasons do not travel.
func whyRecorded(rec *record, olds, news *listing) string {
	if len(rec.sources) == 0 {
		return "nothing smaller was found"
	}
	s := rec.sources[0]
	path, from := news.entries[rec.index].path, news
	if !s.new {
		from = olds
	}
	source := from.entries[s.index].path
	switch {
	case rec.method == methodCopy:
		return "same content"
	case source == path:
		return "same path"
	case shape(source) == shape(path):
		return "path with other numbers"
	default:
		return "similar content"
	}
}
