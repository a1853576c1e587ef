package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
	"github.com/btrovl/btrovl/delta/stream"
	"github.com/btrovl/btrovl/subvolumes"
	"github.com/btrovl/btrovl/subvolumes/tree"
)

// The exit codes. A number is never given another meaning.
const (
	codeDone         = 0
	codeError        = 1
	codeUsage        = 2
	codeRoot         = 3
	codePool         = 4
	codeBtrfs        = 5
	codeFormat       = 6
	codeBusy         = 7
	codeUnknown      = 8
	codeExists       = 9
	codeSpace        = 10
	codeSignature    = 11
	codeDamage       = 12
	codeBundleFormat = 13
	codeBase         = 14
	codeCompatible   = 15
	codeDowngrade    = 16
	codeDigest       = 17
	codeMountpoint   = 18
	codeViews        = 19
	codeFindings     = 20
	codeDeclined     = 21
	codeInterrupted  = 130
)

type exitCode struct {
	code    int
	name    string // as "kind" in JSON
	meaning string
}

// exitTable is the one table of exit codes; --help and docs/cli.md show it.
func exitTable() []exitCode {
	return []exitCode{
		{codeDone, "done", "done"},
		{codeError, "error", "any error without a code of its own (the message says which)"},
		{codeUsage, "usage", "wrong command line or configuration; nothing was done"},
		{codeRoot, "root", "needs root"},
		{codePool, "pool", "no pool was named, or the directory is not one"},
		{codeBtrfs, "btrfs", "the directory is not on a btrfs file system"},
		{codeFormat, "format", "the pool was written by a newer btrovl"},
		{codeBusy, "busy", "another process holds the pool, or what is named is in use"},
		{codeUnknown, "unknown", "no base, overlay, deployment, backup, view or key of that name"},
		{codeExists, "exists", "a base, overlay or file of that name is there already"},
		{codeSpace, "space", "not enough space; the message says what is needed and what is free"},
		{codeSignature, "signature", "no trusted key signed this, or its key is revoked, or the password is wrong"},
		{codeDamage, "damage", "the bundle, stream or archive is truncated, altered or malformed"},
		{codeBundleFormat, "bundle-format", "the bundle was made by a newer btrovl"},
		{codeBase, "base", "the bundle needs a base that is not here"},
		{codeCompatible, "compatible", "the bundle is for another kind of device"},
		{codeDowngrade, "downgrade", "the bundle is older than what this device has had"},
		{codeDigest, "digest", "content differs from its digest"},
		{codeMountpoint, "mountpoint", "the mount point is busy, missing, or no view is mounted there"},
		{codeViews, "views", "committed, but a mounted view could not follow and keeps the old deployment until it is mounted again"},
		{codeFindings, "findings", "doctor found something wrong"},
		{codeDeclined, "declined", "asked and not confirmed; nothing was done"},
		{codeInterrupted, "interrupted", "interrupted by a signal; the old deployment is untouched"},
	}
}

// usageError is a wrong command line.
type usageError struct{ msg, use string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{msg: fmt.Sprintf(format, args...)}
}

// codedError gives an error of this package its code and hints.
type codedError struct {
	code  int
	err   error
	hints []string
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// coded makes an error with an exit code and hints, which say what to do.
func coded(code int, err error, hints ...string) error {
	return &codedError{code: code, err: err, hints: hints}
}

// silent carries the exit code of a child that has already said why.
type silent struct{ code int }

func (e *silent) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// explain gives the exit code of an error and the hints that go with it. It is
// the only place that maps errors to exit codes.
func explain(err error) (code int, hints []string) {
	var (
		usage   *usageError
		own     *codedError
		quiet   *silent
		noPool  *subvolumes.NotPoolError
		noBtrfs *subvolumes.NotBtrfsError
		format  *subvolumes.FormatError
		busy    *subvolumes.BusyError
		unknown *subvolumes.UnknownError
		exists  *subvolumes.ExistsError
		inUse   *subvolumes.InUseError
		making  *delta.InUseError
		space   *subvolumes.NoSpaceError
		digest  *subvolumes.DigestError
		sig     *bundle.SignatureError
		damage  *bundle.DamageError
		newer   *bundle.FormatError
		base    *delta.WrongBaseError
		source  *delta.SourceError
		compat  *delta.CompatibleError
		older   *delta.DowngradeError
		older2  *subvolumes.DowngradeError
		name    *subvolumes.NameError
		claim   *subvolumes.ClaimError
		archive *tree.ArchiveError
		sent    *stream.FormatError
	)
	switch {
	case err == nil:
		return codeDone, nil
	case errors.As(err, &own):
		return own.code, own.hints
	case errors.As(err, &quiet):
		return quiet.code, nil
	case errors.As(err, &usage):
		if usage.use != "" {
			hints = []string{"usage: " + usage.use}
		}
		return codeUsage, hints
	case errors.Is(err, context.Canceled):
		return codeInterrupted, nil
	case errors.As(err, &noPool) && noPool.Lost:
		return codePool, []string{"make the state anew from the subvolumes: btrovl doctor --rebuild"}
	case errors.As(err, &noPool):
		return codePool, []string{"make a pool with: btrovl init DIR", "or name another one with --pool, BTROVL_POOL or " + configPath}
	case errors.As(err, &noBtrfs):
		return codeBtrfs, []string{"a pool needs btrfs; for a try, a file will do:",
			"truncate -s 10G pool.img && mkfs.btrfs pool.img && mount -o loop pool.img /mnt"}
	case errors.As(err, &format):
		return codeFormat, []string{"use the btrovl that wrote it, or a newer one; nothing was changed"}
	case errors.As(err, &busy):
		return codeBusy, []string{"wait for it, or let this command wait: --wait 5m"}
	case errors.As(err, &unknown):
		return codeUnknown, unknownHint(unknown)
	case errors.As(err, &exists):
		return codeExists, nil
	case errors.As(err, &inUse):
		return codeBusy, nil
	case errors.As(err, &making):
		return codeBusy, []string{"wait for it, or name another file with --output"}
	case errors.As(err, &space):
		return codeSpace, []string{fmt.Sprintf("%s needed, %s free", size(int64(space.Need)), size(int64(space.Free))),
			"see what can go: btrovl gc --dry-run; btrovl backup list"}
	case errors.As(err, &sig):
		return codeSignature, signatureHint(sig)
	case errors.As(err, &damage):
		return codeDamage, []string{"fetch the file again and compare its checksum with the vendor's; nothing was applied"}
	case errors.As(err, &newer) && newer.Have == 0:
		return codeDamage, []string{"a bundle is what \"btrovl bundle create\" writes"}
	case errors.As(err, &newer):
		return codeBundleFormat, []string{"update btrovl first"}
	case errors.As(err, &base):
		return codeBase, []string{"see the bases here: btrovl base list; and what the bundle needs: btrovl bundle info BUNDLE",
			"see where a base differs: btrovl bundle verify --explain VERSION BUNDLE"}
	case errors.As(err, &source), errors.As(err, &digest):
		return codeDigest, []string{"look for damage: btrovl doctor --deep"}
	case errors.As(err, &compat):
		return codeCompatible, []string{"get the bundle for this kind of device"}
	case errors.As(err, &older), errors.As(err, &older2):
		return codeDowngrade, []string{"if that is meant: --allow-downgrade (it is recorded)"}
	case errors.As(err, &name), errors.As(err, &claim):
		return codeUsage, nil
	case errors.As(err, &archive), errors.As(err, &sent):
		return codeDamage, []string{"fetch the file again; a tree is a directory, a tar archive (plain, gzip, xz, zstd) or a btrfs send stream"}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return codeSpace, []string{"see what can go: btrovl gc --dry-run; btrovl backup list"}
	}
	return codeError, nil
}

// kindOf is the name of a code, for JSON.
func kindOf(code int) string {
	for _, e := range exitTable() {
		if e.code == code {
			return e.name
		}
	}
	return "error"
}

// unknownHint says how there comes to be one where there is none.
func unknownHint(e *subvolumes.UnknownError) []string {
	switch {
	case e.Kind == "deployment" && len(e.Known) > 0:
		return []string{"see what each is: btrovl history"}
	case len(e.Known) > 0:
		return nil // the message lists them
	}
	switch e.Kind {
	case "base":
		return []string{"import one: btrovl base import VERSION TREE"}
	case "overlay":
		return []string{"define one: btrovl overlay add NAME --path PATH"}
	case "deployment":
		return []string{"the first mount makes one: btrovl mount MOUNTPOINT"}
	case "backup", "backup of overlay":
		return []string{"make one: btrovl backup create"}
	}
	return nil
}

func signatureHint(e *bundle.SignatureError) []string {
	switch {
	case len(e.Trusted) == 0:
		return []string{"no key is trusted yet; add the vendor's public key: btrovl key add vendor.pub"}
	case slices.Contains(e.Trusted, e.KeyID):
		return []string{"the key is trusted, so the file was altered or damaged: fetch it again and compare its checksum with the vendor's"}
	}
	return []string{"if the key is the vendor's: btrovl key add vendor.pub"}
}
