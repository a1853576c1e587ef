package delta

import (
	"context"
	"fmt"
	"io"
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
	p, r, err := openSection(br, 0)
	if err != nil {
		return nil, err
	}
	defer func() { r.close() }()
	var olds, news *listing
	m := br.Manifest()
	if base != nil || len(m.From) == 0 {
		olds, news, err = p.listings(ctx, r, base)
	} else {
		_, err = r.skip(int64(r.head.listing), false)
	}
	if err != nil {
		return nil, err
	}
	l := &lister{olds: olds, news: news}
	if err := l.section(ctx, r, partBase); err != nil {
		return nil, err
	}
	for {
		r.close()
		kind, next, err := p.section()
		if err == io.EOF {
			return l.files, br.Verify()
		}
		if err != nil {
			return nil, err
		}
		r = next
		if err := l.section(ctx, r, kind); err != nil {
			return nil, err
		}
	}
}

// A lister collects what records say.
type lister struct {
	olds, news *listing // nil: unknown
	files      []FileInfo
}

func (l *lister) name(of *listing, i int) string {
	if of == nil {
		return fmt.Sprintf("#%d", i)
	}
	return of.entries[i].path
}

func (l *lister) section(ctx context.Context, r *sectionReader, kind partKind) error {
	nOld, nNew := maxEntries, maxEntries
	if l.news != nil {
		nOld, nNew = len(l.olds.entries), len(l.news.entries)
	}
	if kind == partShared {
		r.named = &namedSources{olds: l.olds}
	}
	if _, err := r.hints(); err != nil {
		return err
	}
	count, err := r.uint(streamControl, uint64(nNew))
	if err != nil {
		return err
	}
	var c cursor
	for ; count > 0; count-- {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := r.record(&c, nNew, nOld)
		if err != nil {
			return err
		}
		if err := l.record(r, rec, kind); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) record(r *sectionReader, rec *record, kind partKind) error {
	f := FileInfo{Path: l.name(l.news, rec.index), Method: methodNames[rec.method], Size: rec.size}
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
		switch {
		case s.new:
			f.Source += "new " + l.name(l.news, s.index)
		case r.named != nil && l.olds == nil:
			f.Source += r.named.names[s.index]
		default:
			f.Source += l.name(l.olds, s.index)
		}
	}
	var err error
	if f.Bytes, err = r.skipRecord(rec); err != nil {
		return err
	}
	switch {
	case kind == partRescue:
		f.Why = "for a device where its source is damaged"
	case l.news != nil:
		f.Why = whyRecorded(rec, l.olds, l.news)
	}
	l.files = append(l.files, f)
	return nil
}

// skipRecord reads what follows a record and returns how much data it carries.
func (r *sectionReader) skipRecord(rec *record) (int64, error) {
	if err := r.recipe(&job{rec: rec}); err != nil {
		return 0, err
	}
	return r.skip(rec.makes(), rec.inPieces())
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
