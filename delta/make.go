package delta

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"

	"github.com/btrovl/btrovl/delta/bundle"
)

// Make writes a signed bundle to w. It checks every file of the bundle against
// the original byte by byte, and the digest of an applied tree, before it signs.
func Make(ctx context.Context, w io.Writer, o MakeOptions) (_ *Report, err error) {
	if o.Sign == nil {
		return nil, errors.New("cannot make a bundle without a key")
	}
	if len(o.From) > 16 {
		return nil, errors.New("cannot make a bundle from more than 16 bases")
	}
	if err := o.checkSteps(); err != nil {
		return nil, err
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
	var olds []*inventory
	for _, f := range o.From {
		inv, err := take(ctx, f, o.Jobs, maps)
		if err != nil {
			return nil, err
		}
		olds = append(olds, inv)
		m.From = append(m.From, bundle.BaseID{Version: f.Version, Digest: inv.digest})
	}
	wrong := false
	if o.Resume != "" {
		o.journal, err = openJournal(o.Resume, to, olds, &o)
		if inUse := (*InUseError)(nil); errors.As(err, &inUse) {
			return nil, err
		}
		if err != nil {
			report.Warnings = append(report.Warnings, fmt.Sprintf("nothing was kept for the case of an interrupt: %v", err))
		} else {
			defer func() {
				switch stays := o.journal.close(wrong); {
				case stays && err == nil:
					report.Unfinished = o.Resume
				case stays:
					err = &UnfinishedError{o.Resume, err}
				}
			}()
		}
	}
	sections, err := makeSections(ctx, &o, olds, to, report)
	defer func() {
		for _, s := range sections {
			s.out.close()
		}
	}()
	if err != nil {
		return nil, err
	}
	stateNeeds(m, sections)
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
	if err := compareFull(ctx, &o, to, payload.n, report); err != nil {
		return nil, err
	}
	if err := verifyMade(ctx, &o, m, to, payload); err != nil {
		if errno := syscall.Errno(0); ctx.Err() != nil || errors.As(err, &errno) {
			return nil, fmt.Errorf("cannot compare what was made: %w", err)
		}
		wrong = true
		return nil, fmt.Errorf("the bundle was made wrong and is not signed: %w", err)
	}
	o.journal.report(report)
	report.Size, err = bundle.Create(w, m, payload.f, payload.n, o.Sign)
	return report, err
}

// makeSections makes the parts of a payload but for the outlines.
func makeSections(ctx context.Context, o *MakeOptions, olds []*inventory, to *inventory, report *Report) (all []*section, err error) {
	if len(olds) == 0 {
		s, err := makeSection(ctx, o, &inventory{listing: &listing{}}, to, report, partPlan{kind: partBase, bases: 1})
		return []*section{s}, err
	}
	var sharing *sharingPlan
	if len(olds) > 1 {
		sharing = planShared(olds, to, cmp.Or(o.leastShared, leastShared))
	}
	for i, inv := range olds {
		s, err := makeSection(ctx, o, inv, to, report, sharing.own(i))
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	if sharing != nil {
		shared, err := sharing.make(ctx, o, olds, to, report)
		all = append(all, shared...)
		if err != nil {
			return all, err
		}
	}
	s, err := makeRescue(ctx, o, to, report)
	if s != nil {
		all = append(all, s)
	}
	if err != nil {
		return all, err
	}
	for i, inv := range olds {
		s, err := outlineSection(o, inv.listing, i)
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, nil
}

// outlineSection is the outline of a base's listing, as a part.
func outlineSection(o *MakeOptions, l *listing, which int) (*section, error) {
	out, err := newSpool(o.Spool)
	if err != nil {
		return nil, err
	}
	_, err = out.Write(l.outline())
	return &section{part: part{kind: partOutline, bases: 1 << which}, out: out}, err
}

// stateNeeds says what applying takes: the most of any base.
func stateNeeds(m *bundle.Manifest, sections []*section) {
	for which := range max(1, len(m.From)) {
		var n bundle.Needs
		for _, s := range sections {
			if s.bases>>which&1 == 0 {
				continue
			}
			n.NewData += s.needs.NewData
			n.Memory = max(n.Memory, s.needs.Memory)
			if s.kind != partRescue { // hardly ever made
				n.Files += s.needs.Files
				n.Written += s.needs.Written
			}
		}
		m.Apply.Files = max(m.Apply.Files, n.Files)
		m.Apply.NewData = max(m.Apply.NewData, n.NewData)
		m.Apply.Written = max(m.Apply.Written, n.Written)
		m.Apply.Memory = max(m.Apply.Memory, n.Memory)
	}
}

// joinSections writes the payload: the table and the sections.
func joinSections(payload *spool, sections []*section) error {
	var parts []part
	for _, s := range sections {
		s.size = s.out.n
		parts = append(parts, s.part)
	}
	if len(parts) > maxParts {
		return fmt.Errorf("%d parts are too many for a bundle", len(parts))
	}
	if _, err := payload.Write(payloadHead(parts)); err != nil {
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
