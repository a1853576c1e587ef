package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"
)

// progress shows how far long work is: a bar on a terminal, after a second of
// work, and JSON lines on --progress-fd (docs/cli.md lists their fields).
type progress struct {
	op  string
	bar io.Writer // nil: not a terminal

	mu    sync.Mutex // guards what follows, and writes to lines
	lines *os.File   // nil: no --progress-fd
	shown *progressbar.ProgressBar
	step  string
	began time.Time
	last  time.Time
}

// progressLine is one line on --progress-fd.
type progressLine struct {
	Op    string `json:"op"`
	Step  string `json:"step"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
	Kind  string `json:"kind,omitempty"`
	Code  int    `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

// newProgress checks that fd, unless negative, is open for writing.
func newProgress(op string, stderr io.Writer, quiet bool, fd int) (*progress, error) {
	p := &progress{op: op}
	if isTerminal(stderr) && !quiet {
		p.bar = stderr
	}
	if fd >= 0 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_ACCMODE == unix.O_RDONLY {
			return nil, usagef("--progress-fd %d is not open for writing", fd)
		}
		unix.CloseOnExec(fd)
		p.lines = os.NewFile(uintptr(fd), "progress")
	}
	return p, nil
}

// start begins a step and returns what the step calls with bytes done.
func (p *progress) start(step string) func(done, total int64) {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.began, p.last = step, time.Now(), time.Time{}
	p.write(progressLine{Op: p.op, Step: step})
	return p.advance
}

func (p *progress) advance(done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.last) < 100*time.Millisecond && done != total {
		return
	}
	p.last = now
	p.write(progressLine{Op: p.op, Step: p.step, Done: done, Total: total})
	if p.bar == nil || now.Sub(p.began) < time.Second {
		return
	}
	if p.shown == nil {
		p.shown = progressbar.NewOptions64(max(total, -1),
			progressbar.OptionSetWriter(p.bar), progressbar.OptionSetDescription(p.step),
			progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetPredictTime(true), progressbar.OptionFullWidth())
	}
	if total > 0 && total != p.shown.GetMax64() {
		p.shown.ChangeMax64(total)
	}
	p.shown.Set64(done)
}

// stop takes the bar off the terminal, so that what follows is readable.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown != nil {
		p.shown.Clear()
		p.shown = nil
	}
}

// finish writes the last line: done, or the error with its exit code.
func (p *progress) finish(err error) {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	line := progressLine{Op: p.op, Step: "done"}
	if err != nil {
		code, _ := explain(err)
		line = progressLine{Op: p.op, Step: "failed", Code: code, Kind: kindOf(code), Error: err.Error()}
	}
	p.write(line)
}

// write gives a line to --progress-fd. A reader that has gone away does not
// stop the work.
func (p *progress) write(l progressLine) {
	if p.lines == nil {
		return
	}
	if b, err := json.Marshal(l); err == nil {
		fmt.Fprintf(p.lines, "%s\n", b)
	}
}
