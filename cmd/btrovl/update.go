package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/subvolumes"
)

// update is one run of "btrovl update". Its order is the promise:
//
//	fence → signature → device → base → space → stage → apply → digest (seal)
//	→ keys → freeze → commit → switch → thaw → report
//
// Everything before the commit leaves the deployments as they were.
type update struct {
	*app
	updateFlags
	pool     *subvolumes.Pool
	w        *subvolumes.Writer
	in       *input
	progress *progress

	br     *bundle.Reader
	record *subvolumes.Record
	plan   *delta.Plan
	report updateReport
}

func (u *update) run(ctx context.Context) error {
	if err := u.check(); err != nil {
		return err
	}
	if u.dryRun {
		return u.dry(ctx)
	}
	m := u.br.Manifest()
	if d := u.record.Active(); d != nil && d.Base == m.To.Version && u.report.Present {
		if err := u.takeKeys(); err != nil {
			return err
		}
		return u.finish(u.record, []switched{}, fmt.Sprintf("base %s is active already; nothing to do", m.To.Version))
	}
	if !u.report.Present {
		if err := u.apply(ctx); err != nil {
			return err
		}
	}
	if err := u.takeKeys(); err != nil {
		return err
	}
	return u.commit(ctx)
}

// check reads the front of the bundle and refuses what cannot be applied here.
func (u *update) check() error {
	ring, err := u.keyring(u.pool)
	if err != nil {
		return err
	}
	// A view may be mounted meanwhile: only what is there already can stay reachable.
	if err := os.MkdirAll(socketDir(u.pool.ID()), 0o700); err != nil {
		u.warn("cannot prepare %s: %v", runDir, err)
	}
	if err := fence(fenced{read: []string{runDir}, write: []string{u.pool.Dir()}}); err != nil {
		return err
	}
	if u.br, err = u.in.bundle(ring); err != nil {
		return err
	}
	if u.record, err = u.w.Record(); err != nil {
		return err
	}
	m := u.br.Manifest()
	counter := u.record.Counter
	if u.downgrade {
		counter = 0
	}
	if err := delta.CheckDevice(m, u.record.Compatible, counter); err != nil {
		return err
	}
	u.report = updateReport{DryRun: u.dryRun, To: m.To.Version, Digest: m.To.Digest, Signer: u.br.Signer(), Memory: m.Apply.Memory}
	if b := u.record.Base(m.To.Version); b != nil {
		if b.Digest != m.To.Digest {
			return coded(codeExists, fmt.Errorf("base %s is here already, with other content: its digest is %.16s…, the bundle's %.16s…",
				b.Version, b.Digest, m.To.Digest), "ask the vendor: two different systems carry the same version")
		}
		u.report.Present = true
		return nil
	}
	if u.plan, err = delta.NewPlan(m, u.bases()); err != nil {
		return err
	}
	if u.plan.From != nil {
		u.report.From = u.plan.From.Version
	}
	sp, err := u.pool.Space()
	if err != nil {
		return err
	}
	u.report.Need, u.report.Free = u.plan.Space, int64(sp.Free)
	return nil
}

// bases are those that are here, the active deployment's first.
func (u *update) bases() []bundle.BaseID {
	var out []bundle.BaseID
	active := u.record.Active()
	for _, b := range u.record.Bases {
		id := bundle.BaseID{Version: b.Version, Digest: b.Digest}
		if active != nil && b.Version == active.Base {
			out = append([]bundle.BaseID{id}, out...)
		} else {
			out = append(out, id)
		}
	}
	return out
}

// space refuses before anything is written.
func (u *update) space() error {
	if u.plan == nil {
		return nil
	}
	meta := max(u.plan.Space-u.plan.Written, 0)
	data := u.plan.Written + 4<<10*u.plan.Files // a file takes whole blocks
	return u.pool.CheckSpace("base "+u.report.To, uint64(data), uint64(meta))
}

// dry says what would happen.
func (u *update) dry(ctx context.Context) error {
	list, err := views(ctx, u.pool)
	if err != nil {
		return err
	}
	defer closeViews(list)
	u.report.deployReport = newDeployReport(u.record, []switched{})
	for _, v := range list {
		s := switched{Mountpoint: v.where(), PID: v.PID}
		if u.nextBoot {
			s.Reason = "--next-boot"
		}
		u.report.Views = append(u.report.Views, s)
	}
	lack := u.space()
	u.dryRunText(u.report, lack == nil)
	if u.json {
		if err := u.app.report(u.report, nil); err != nil {
			return err
		}
	}
	return lack
}

// apply makes the new base. After an error nothing of it is left.
func (u *update) apply(ctx context.Context) error {
	m := u.br.Manifest()
	if err := u.space(); err != nil {
		return err
	}
	o := delta.ApplyOptions{Jobs: u.jobs, BaseVersion: u.report.From, Progress: u.progress.start("apply")}
	from, err := u.openFrom()
	if err != nil {
		return err
	}
	if from != nil {
		defer from.Close()
		o.BaseDigest = u.plan.From.Digest
	}
	stage, err := u.w.NewStage(ctx, m.To.Version, u.report.From)
	if err != nil {
		return err
	}
	defer stage.Discard()
	res, err := delta.Apply(ctx, u.br, from, stage.Root(), o)
	if err == nil {
		err = u.br.Verify() // nothing may follow
	}
	if err != nil {
		return fmt.Errorf("cannot apply %s: %w", u.in.name, err)
	}
	u.report.Written, u.report.Shared, u.report.Changed, u.report.Rescued = res.Written, res.Shared, len(res.Changed), res.Rescued
	for _, p := range res.Rescued {
		u.warn("%s: what base %s has for it is damaged; the bundle brought it whole", p, u.report.From)
	}
	_, err = stage.Seal(ctx, m.To.Digest, subvolumes.SealOptions{
		Counter: m.Counter, Compatible: m.Compatible, Source: "bundle " + filepath.Base(u.in.name),
		Jobs: u.jobs, Progress: u.progress.start("verify"),
	})
	if err != nil {
		return err
	}
	u.progress.stop()
	return nil
}

// commit makes the deployment and lets the views follow it.
func (u *update) commit(ctx context.Context) error {
	m := u.br.Manifest()
	if u.record.Active() == nil {
		// The first deployment: what it was made from, so that there is a way back.
		first := u.report.From
		if first == "" {
			first = m.To.Version
		}
		r, err := u.w.EnsureDeployment(ctx, first)
		if err != nil {
			return err
		}
		u.record = r
	}
	r := u.record
	freeze := false
	for _, o := range r.Active().Overlays {
		freeze = freeze || o.FollowBase
	}
	list, err := u.deploy(ctx, u.pool, u.switchFlags, m.To.Version, freeze, func() (err error) {
		if r.Active().Base == m.To.Version {
			return nil
		}
		r, err = u.w.Deploy(ctx, subvolumes.Deployment{Base: m.To.Version, Reason: "update " + filepath.Base(u.in.name)},
			subvolumes.DeployOptions{Trial: u.tries, AllowDowngrade: u.downgrade})
		return err
	})
	if err != nil {
		return err
	}
	done := fmt.Sprintf("updated to base %s: deployment %d", m.To.Version, r.Active().ID)
	if r.Trial != nil {
		done += fmt.Sprintf(", on trial for %s; keep it with: btrovl mark-good", plural(r.Trial.TriesLeft, "boot", "boots"))
	}
	return u.finish(r, list, done)
}

func (u *update) finish(r *subvolumes.Record, list []switched, done string) error {
	u.progress.stop()
	u.say("%s", done)
	u.switchedText(list)
	u.report.deployReport = newDeployReport(r, list)
	if u.json {
		if err := u.app.report(u.report, nil); err != nil {
			return err
		}
	}
	return behind(list)
}

// openFrom opens the base to start from; nil for a full bundle.
func (u *update) openFrom() (*os.File, error) {
	if u.report.From == "" {
		return nil, nil
	}
	return u.pool.OpenBase(u.report.From)
}

// takeKeys trusts and revokes what the signed manifest says. The new base is sealed
// then, and the deployment not yet committed: a revocation must not wait for an update
// that a power cut ends, nor for mark-good. Rolling back does not bring a key back.
func (u *update) takeKeys() error {
	trusted, revoked := keyDirs(u.pool)
	added, gone, err := u.br.TakeKeys(trusted, revoked, "revoked by bundle "+filepath.Base(u.in.name))
	for _, id := range added {
		u.say("trusted, as the bundle says: key %s", id)
	}
	for _, id := range gone {
		u.say("revoked, as the bundle says: key %s", id)
	}
	u.report.AddedKeys, u.report.RevokedKeys = append([]string{}, added...), append([]string{}, gone...)
	if err != nil {
		return fmt.Errorf("cannot take the keys of %s: %w", u.in.name, err)
	}
	return nil
}
