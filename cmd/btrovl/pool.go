package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/btrovl/btrovl/subvolumes"
)

// poolExits are the codes that every command with a pool can end with.
func poolExits(more ...int) []int {
	return append([]int{codeRoot, codePool, codeFormat, codeBusy}, more...)
}

// needRoot refuses what only root can do.
func needRoot(what string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return coded(codeRoot, fmt.Errorf("%s needs root; this is user %d", what, os.Geteuid()),
		"sudo btrovl …")
}

// poolPath finds the pool that is meant.
func (a *app) poolPath() (string, error) {
	if a.pool != "" {
		return a.pool, nil
	}
	if p := os.Getenv("BTROVL_POOL"); p != "" {
		return p, nil
	}
	if a.config.Pool != "" {
		return a.config.Pool, nil
	}
	return "", coded(codePool, errors.New("no pool was named"),
		`name it with --pool DIR, with BTROVL_POOL, or with pool = "DIR" in `+a.configPath,
		"make one with: btrovl init DIR")
}

// open opens the pool for reading.
func (a *app) open() (*subvolumes.Pool, error) {
	if err := needRoot("opening a pool"); err != nil {
		return nil, err
	}
	dir, err := a.poolPath()
	if err != nil {
		return nil, err
	}
	return subvolumes.Open(dir)
}

// read opens the pool and reads its record.
func (a *app) read(fn func(p *subvolumes.Pool, r *subvolumes.Record) error) error {
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.Close()
	r, err := p.Record()
	if err != nil {
		return err
	}
	return fn(p, r)
}

// write opens the pool and holds its lock; what names the command to those who
// find the pool busy.
func (a *app) write(ctx context.Context, what string, fn func(p *subvolumes.Pool, w *subvolumes.Writer) error) error {
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.Close()
	w, err := p.Lock(ctx, what, a.wait)
	if err != nil {
		return err
	}
	defer w.Close()
	return fn(p, w)
}

// split lets a list flag be given several times or with commas.
func split(s []string) []string {
	var out []string
	for _, v := range s {
		for _, w := range strings.Split(v, ",") {
			if w = strings.TrimSpace(w); w != "" {
				out = append(out, w)
			}
		}
	}
	return out
}
