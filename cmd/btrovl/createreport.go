package main

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta"
	"github.com/btrovl/btrovl/delta/bundle"
)

func fromText(m *bundle.Manifest) string {
	if len(m.From) == 0 {
		return "nothing (a full bundle)"
	}
	var s []string
	for _, b := range m.From {
		s = append(s, "base "+b.Version)
	}
	return strings.Join(s, " or ")
}

// createReport is "bundle create --json".
type createReport struct {
	File     string           `json:"file"`
	Size     int64            `json:"size"`
	Manifest *bundle.Manifest `json:"manifest"`
	Streams  []streamReport   `json:"streams"`
	Files    []delta.FileInfo `json:"files,omitempty"`
	Warnings []string         `json:"warnings"`
	PeakRSS  int64            `json:"peak_rss"` // bytes of memory that making took
	Resumed  int              `json:"resumed"`  // results that were there from an interrupted run
}

type streamReport struct {
	Name       string `json:"name"`
	Raw        int64  `json:"raw"`
	Compressed int64  `json:"compressed"`
}

func newCreateReport(file string, r *delta.Report) createReport {
	out := createReport{File: file, Size: r.Size, Manifest: r.Manifest, Streams: []streamReport{}, Files: r.Files,
		Warnings: append([]string{}, r.Warnings...), Resumed: r.Resumed}
	for _, s := range r.Streams {
		out.Streams = append(out.Streams, streamReport(s))
	}
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) == nil {
		out.PeakRSS = int64(u.Maxrss) << 10
	}
	return out
}
