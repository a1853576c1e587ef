package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/btrovl/btrovl/fusefs"
)

// opsReport is one view of "status --ops --json".
type opsReport struct {
	Mountpoint string `json:"mountpoint"`
	PID        int    `json:"pid"`
	fusefs.Stats
}

func (a *app) ops(ctx context.Context, list []*view) error {
	out := []opsReport{}
	for _, v := range list {
		o := opsReport{Mountpoint: v.where(), PID: v.PID}
		if err := v.call(ctx, answerTime, "ops", nil, &o.Stats); err != nil {
			return fmt.Errorf("the view at %s: %w", v.where(), err)
		}
		out = append(out, o)
	}
	return a.report(map[string]any{"views": out}, func(w io.Writer) {
		for _, o := range out {
			fmt.Fprintf(w, "view %s, process %d: %d objects, %d descriptors, %d pinned, %d of earlier deployments, %d switches\n",
				o.Mountpoint, o.PID, o.Nodes, o.FDs, o.Pinned, o.Detached, o.Switches)
			fmt.Fprintf(w, "OP\tCOUNT\tERRORS\tMEAN\tMAX\n")
			for _, op := range o.Ops {
				if op.Count > 0 {
					fmt.Fprintf(w, "%s\t%d\t%d\t%v\t%v\n", op.Op, op.Count, op.Errors,
						(op.Total / time.Duration(op.Count)).Round(100*time.Nanosecond), op.Max.Round(time.Microsecond))
				}
			}
			for _, s := range o.InFlight {
				fmt.Fprintf(w, "WAITING %v\t%s on node %d by process %d\n", s.For.Round(time.Millisecond), s.Op, s.Node, s.PID)
			}
		}
		if len(out) == 0 {
			fmt.Fprintln(w, "no view is mounted")
		}
	})
}

// profile writes the profile of the pool's only view.
func (a *app) profile(ctx context.Context, list []*view, name string) error {
	if len(list) != 1 {
		return coded(codeUnknown, fmt.Errorf("%s serve views of this pool; a profile is of one", plural(len(list), "process", "processes")))
	}
	var raw json.RawMessage
	if err := list[0].call(ctx, profileTime+answerTime, "profile", map[string]string{"Name": name}, &raw); err != nil {
		return err
	}
	var b []byte
	if err := json.Unmarshal(raw, &b); err != nil {
		return err
	}
	return a.output("-", func(w io.Writer) error { _, err := w.Write(b); return err })
}
