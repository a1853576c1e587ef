package main

import (
	"bytes"
	"context"
	"fmt"
	"runtime/pprof"
	"time"
)

// profileTime is how long a profile of the processor is taken.
const profileTime = 10 * time.Second

// profile takes one of Go's profiles of the daemon, in the format that "go tool
// pprof" reads. It is there on request only: nothing listens, nothing is sampled
// otherwise.
func profile(ctx context.Context, name string) ([]byte, error) {
	var b bytes.Buffer
	if name == "cpu" {
		if err := pprof.StartCPUProfile(&b); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(profileTime):
		}
		pprof.StopCPUProfile()
		return b.Bytes(), nil
	}
	p := pprof.Lookup(name)
	if p == nil {
		return nil, fmt.Errorf("no profile %q (there is cpu, heap, goroutine, mutex, block)", name)
	}
	if err := p.WriteTo(&b, 0); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
