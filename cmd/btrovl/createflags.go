package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
)

// createFlags are those of "bundle create".
type createFlags struct {
	from                    []string
	to, key, output         string
	compatible, compression string
	memory, spool           string
	counter                 uint64
	jobs, work              int
	rescue, without         []string
	addKeys, revokeKeys     []string
	files                   bool
	password                passwordFlags
}

// options turns flags into what delta wants, but for the trees.
func (f *createFlags) options(ctx context.Context) (delta.MakeOptions, error) {
	o := delta.MakeOptions{Compatible: f.compatible, Counter: f.counter, CreatedBy: "btrovl " + versionString(),
		Compression: delta.Compression(f.compression), Jobs: f.jobs, Spool: f.spool, RevokeKeys: split(f.revokeKeys),
		Rescue: split(f.rescue), Without: split(f.without), Work: int64(f.work) << 20}
	if f.work != 0 && o.Work < delta.LeastWork {
		return o, usagef("--make-memory %d is less than %d MiB", f.work, delta.LeastWork>>20)
	}
	if o.Compression != delta.Best && o.Compression != delta.Fast {
		return o, usagef("--compression %q is neither best nor fast", f.compression)
	}
	switch f.memory {
	case "normal":
		o.Memory = delta.DefaultMemory
	case "low":
		o.Memory = delta.LowMemory
	default:
		n, err := strconv.ParseInt(f.memory, 10, 64)
		if err != nil || n < 16 || n > 1<<20 {
			return o, usagef("--memory %q is not normal, low, or a number of MiB from 16 on", f.memory)
		}
		o.Memory = n << 20
	}
	for _, step := range o.Without {
		if !slices.Contains(delta.Steps(), step) {
			return o, usagef("--without %q is no step; these are: %s", step, strings.Join(delta.Steps(), ", "))
		}
	}
	for _, pattern := range o.Rescue {
		if _, err := path.Match(pattern, ""); err != nil {
			return o, usagef("--rescue %q is not a pattern: %v", pattern, err)
		}
	}
	for _, path := range split(f.addKeys) {
		line, err := publicLine(path)
		if err != nil {
			return o, err
		}
		o.AddKeys = append(o.AddKeys, line)
	}
	key, err := f.signer(ctx)
	if err != nil {
		return o, err
	}
	o.Sign = key
	if err := (&bundle.Manifest{AddKeys: o.AddKeys, RevokeKeys: o.RevokeKeys}).CheckKeys(key.ID()); err != nil {
		return o, coded(codeUsage, err, "bring the next key with: --add-key next.pub")
	}
	return o, nil
}

// signer reads the secret key and, if it is encrypted, its password.
func (f *createFlags) signer(ctx context.Context) (*bundle.PrivateKey, error) {
	locked, err := bundle.Encrypted(f.key)
	if err != nil {
		return nil, coded(codeUsage, fmt.Errorf("cannot read the key: %w", err), "make one with: btrovl bundle keygen NAME")
	}
	var password string
	if locked {
		if password, err = f.password.read(ctx, "password of "+f.key+": ", false); err != nil {
			return nil, err
		}
	}
	key, err := bundle.ReadPrivateKey(f.key, password)
	if err != nil {
		return nil, coded(codeSignature, err, "the secret half is the file that ends in .key")
	}
	return key, nil
}
