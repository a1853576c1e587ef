package redeflate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
)

// TestParallel: several jobs find the tokens that one finder finds, also where
// they never agree (zeros: their matches are out of step for ever), where blocks
// are stored across jobs, and at all kinds of ends.
func TestParallel(t *testing.T) {
	long := bytes.Join([][]byte{prose(400000, 1), noise(300000, 2), records(500000, 3), prose(200000, 1)}, nil)
	samples := []sample{
		{"mixed", long},
		{"noise", noise(900000, 9)},
		{"zeros", make([]byte, 1200000)},
		{"period", bytes.Repeat([]byte("0123456789abc"), 60000)},
		{"zeros at the end", append(bytes.Clone(long), make([]byte, 5000)...)},
	}
	for _, d := range []int{0, 1, 261, 262, 300, jobLeast - 1, jobLeast, jobLeast + 1, jobSize - 1} {
		samples = append(samples, sample{fmt.Sprintf("mixed, job and %d", d), long[:3*jobSize+d]})
	}
	one, many := encoder{workers: 1}, encoder{workers: 3}
	for _, s := range samples {
		for _, id := range []modelID{familyGNU<<4 | 6, familyZlib<<4 | 4, familyGNU<<4 | 9} {
			if id&15 == 9 && s.name != "mixed" && s.name != "zeros at the end" {
				continue
			}
			m, _ := newModel(id)
			var want bytes.Buffer
			if err := one.encode(&want, m, bytes.NewReader(s.data), int64(len(s.data)), nil, nil, nil); err != nil {
				t.Fatal(err)
			}
			got := compareWriter{want: want.Bytes()}
			sum := 0
			err := many.encode(&got, m, iotest.HalfReader(bytes.NewReader(s.data)), int64(len(s.data)), func(p []byte) { sum += len(p) }, nil, nil)
			if err != nil || len(got.want) > 0 || sum != len(s.data) {
				t.Errorf("%s, %v: %v, %d bytes missing", s.name, id, err, len(got.want))
			}
		}
	}
}

// TestParallelFails: an error of the reader or the writer comes back, and no
// worker stays.
func TestParallelFails(t *testing.T) {
	r := Restorer{Workers: 2}
	plain := records(2000000, 1)
	u := mustUnpack(t, modelGzip(t, plain, familyGNU<<4|6))
	broken := errors.New("broken")
	for _, at := range []int64{0, 100, 700000, 1999999} {
		in := io.MultiReader(bytes.NewReader(plain[:at]), iotest.ErrReader(broken))
		if err := r.Restore(io.Discard, in, u.Recipe); !errors.Is(err, broken) {
			t.Errorf("reader fails at %d: %v", at, err)
		}
		if err := r.Restore(io.Discard, bytes.NewReader(plain[:at]), u.Recipe); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("plain ends at %d: %v", at, err)
		}
		if err := r.Restore(&compareWriter{want: make([]byte, at)}, bytes.NewReader(plain), u.Recipe); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("writer fails at %d: %v", at, err)
		}
	}
	var out bytes.Buffer
	if err := r.Restore(&out, bytes.NewReader(u.Plain), u.Recipe); err != nil || out.Len() == 0 {
		t.Error(err)
	}
}
