package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// results are all measurements, by work and target.
type results struct {
	byWork map[string]map[string][]float64
}

func (r *results) add(work, target string, cost float64) {
	if r.byWork[work] == nil {
		r.byWork[work] = map[string][]float64{}
	}
	r.byWork[work][target] = append(r.byWork[work][target], cost)
}

func (r *results) median(work, target string) float64 {
	l := slices.Sorted(slices.Values(r.byWork[work][target]))
	if len(l) == 0 {
		return 0
	}
	if len(l)%2 == 0 {
		return (l[len(l)/2-1] + l[len(l)/2]) / 2
	}
	return l[len(l)/2]
}

func (r *results) ratio(work, target string) string {
	m, t := r.median(work, measure), r.median(work, target)
	if m == 0 || t == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", t/m)
}

// line is one work's medians so far.
func (r *results) line(work string, targets []*target) string {
	var s []string
	for _, t := range targets {
		s = append(s, fmt.Sprintf("%s %.4g (%s)", t.name, r.median(work, t.name), r.ratio(work, t.name)))
	}
	return strings.Join(s, ", ")
}

// table is the Markdown for docs/performance.md.
func (r *results) table(rounds int, targets []*target) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Ratios to kernel overlayfs over the same base, below 1 is faster; medians of %d interleaved rounds, short work three times in each.\n%s.\n\n", rounds, machineName())
	head, rule := "| work | overlayfs |", "|---|---|"
	for _, t := range targets {
		if t.name != measure {
			head, rule = head+" "+t.name+" |", rule+"---|"
		}
	}
	fmt.Fprintf(&b, "%s aim | |\n%s---|---|\n", head, rule)
	for _, w := range allWork {
		if r.byWork[w.name] == nil {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s |", w.name, amount(r.median(w.name, measure), w.unit))
		for _, t := range targets {
			if t.name != measure {
				fmt.Fprintf(&b, " %s |", r.ratio(w.name, t.name))
			}
		}
		aim, verdict := "–", ""
		if w.limit > 0 {
			aim, verdict = fmt.Sprintf("%g", w.limit), "met"
			if r.median(w.name, "view") > w.limit*1.005*r.median(w.name, measure) {
				verdict = "**missed**"
			}
		}
		fmt.Fprintf(&b, " %s | %s |\n", aim, verdict)
	}
	return b.String()
}

func amount(x float64, unit string) string {
	switch {
	case unit != "":
		return fmt.Sprintf("%.0f %s", x, unit)
	case x < 0.1:
		return fmt.Sprintf("%.2f ms", x*1000)
	}
	return fmt.Sprintf("%.2f s", x)
}

func machineName() string {
	var u unix.Utsname
	unix.Uname(&u)
	model, cores := "unknown processor", 0
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(l, ":")
			switch strings.TrimSpace(k) {
			case "processor":
				cores++
			case "model name":
				model = strings.TrimSpace(v)
			}
		}
	}
	load := "unknown"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Fields(string(b))[0]
	}
	return fmt.Sprintf("Machine: %s, %d cores, Linux %s, btrfs on a loop device with direct I/O; load average at the end %s; %s",
		model, cores, unix.ByteSliceToString(u.Release[:]), load, time.Now().UTC().Format("2006-01-02"))
}

// updateFile replaces what stands between the marks of a file.
func updateFile(path, table string) error {
	const begin, end = "<!-- bench-view -->\n", "<!-- /bench-view -->"
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok1 := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no %s … %s", path, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(path, []byte(head+begin+"\n"+table+"\n"+end+tail), 0o644)
}
