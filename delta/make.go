package delta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/btrovl/btrovl/delta/bundle"
)

// Make writes a signed bundle to w. It checks every file of the bundle against
// the original byte by byte, and the digest of an applied tree, before it signs.
func Make(ctx context.Context, w io.Writer, o MakeOptions) (*Report, error) {
	if o.Sign == nil {
		return nil, errors.New("cannot make a bundle without a key")
	}
	if len(o.From) > 16 {
		return nil, errors.New("cannot make a bundle from more than 16 bases")
	}
	if o.Jobs <= 0 {
		o.Jobs = runtime.GOMAXPROCS(0)
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.Memory < LowMemory/2 {
		return nil, fmt.Errorf("cannot make a bundle that applies in %d bytes of memory, only in %d or more", o.Memory, LowMemory/2)
	}
	maps := new(mappings)
	defer maps.close()
	undo, err := o.limitWork(ctx, maps)
	if err != nil {
		return nil, err
	}
	defer undo()
	ctx = withSpill(ctx, maps, o.Spool)
	to, err := take(ctx, o.To, o.Jobs, maps)
	if err != nil {
		return nil, err
	}
	m := &bundle.Manifest{To: bundle.BaseID{Version: o.To.Version, Digest: to.digest}, Compatible: o.Compatible,
		Counter: o.Counter, CreatedBy: o.CreatedBy, AddKeys: o.AddKeys, RevokeKeys: o.RevokeKeys}
	report := &Report{Manifest: m}
	sections := make([]*section, 0, max(1, len(o.From)))
	defer func() {
		for _, s := range sections {
			s.out.close()
		}
	}()
	from := o.From
	if len(from) == 0 {
		from = []Tree{{}}
	}
	for _, f := range from {
		olds := &inventory{listing: &listing{}}
		if f.Root != nil {
			if olds, err = take(ctx, f, o.Jobs, maps); err != nil {
				return nil, err
			}
			m.From = append(m.From, bundle.BaseID{Version: f.Version, Digest: olds.digest})
		}
		s, err := makeSection(ctx, &o, olds, to, report)
		if err != nil {
			return nil, err
		}
		sections = append(sections, s)
		m.Apply.Files = max(m.Apply.Files, s.needs.Files)
		m.Apply.NewData = max(m.Apply.NewData, s.needs.NewData)
		m.Apply.Written = max(m.Apply.Written, s.needs.Written)
		m.Apply.Memory = max(m.Apply.Memory, s.needs.Memory)
	}
	payload, err := newSpool(o.Spool)
	if err != nil {
		return nil, err
	}
	defer payload.close()
	if err := joinSections(payload, sections); err != nil {
		return nil, err
	}
	if _, err := payload.reader(); err != nil {
		return nil, err
	}
	if err := verifyMade(ctx, &o, m, to, payload); err != nil {
		return nil, fmt.Errorf("the bundle was made wrong and is not signed: %w", err)
	}
	report.Size, err = bundle.Create(w, m, payload.f, payload.n, o.Sign)
	return report, err
}

// joinSections writes the payload: the table and the sections.
func joinSections(payload *spool, sections []*section) error {
	var sizes []int64
	for _, s := range sections {
		sizes = append(sizes, s.out.n)
	}
	if _, err := payload.Write(payloadHead(sizes)); err != nil {
		return err
	}
	for _, s := range sections {
		r, err := s.out.reader()
		if err != nil {
			return err
		}
		if _, err := io.Copy(payload, r); err != nil {
			return err
		}
	}
	return nil
}
