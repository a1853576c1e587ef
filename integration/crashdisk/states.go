package crashdisk

import (
	"fmt"
	"iter"
	"math/bits"
	"math/rand/v2"
)

// Plan says which crash states of a recording to make.
type Plan struct {
	Base *Image // what the disk held when the recording began
	Ops  []Op
	From int    // first crash point: the operations before are history
	Max  int    // at most so many states; 0: all
	Seed uint64 // chooses among the subsets; the same seed gives the same states

	// Atomic says that a write is never torn, however large. nil: btrfs superblocks,
	// whose 4 KiB btrfs expects a disk to write all or nothing.
	Atomic func(Op) bool
}

// State is one disk that a power cut may have left.
type State struct {
	Image *Image
	At    int    // the power went after operation At-1 was issued, before operation At
	Phase string // the last mark before At, "" if none
	What  string // what the disk made of it, for people
}

func (s State) String() string { return fmt.Sprintf("cut at %d, %s", s.At, s.What) }

// A recipe is a state that has not been made yet.
type recipe struct {
	at   int
	what shape
	arg  uint64
}

type shape uint8

const (
	all     shape = iota // every write arrived
	none                 // nothing since the last flush arrived
	without              // all but one
	only                 // one
	half                 // each with probability one half
	tail                 // the later half
	torn                 // all, the last one up to a sector
	wild                 // half of them, one of these torn to random sectors
)

// States makes the states, the most telling ones first: around every flush and
// mark, everything arrived and nothing since the last flush arrived; then subsets and
// torn writes at crash points spread over the whole recording. Disks with the same
// content in the same phase count once.
func (p Plan) States() (iter.Seq[State], error) {
	pre, err := p.prefixes()
	if err != nil {
		return nil, fmt.Errorf("this is not a recording of this disk: %w", err)
	}
	return func(yield func(State) bool) {
		seen := map[string]bool{}
		n := 0
		for _, r := range p.recipes() {
			s := p.make(pre, r)
			key := fmt.Sprintf("%x %s", s.Image.Sum(), s.Phase)
			if seen[key] {
				continue
			}
			seen[key] = true
			if !yield(s) {
				return
			}
			if n++; n == p.Max {
				return
			}
		}
	}, nil
}

// Window returns the plan for the crash points from operation from up to and with to,
// without the history that all of its states share: what was flushed before from.
func (p Plan) Window(from, to int) (Plan, error) {
	flushed, _ := p.window(from)
	w := p
	w.Base = p.Base.Clone()
	for i, op := range p.Ops[:flushed] {
		if err := op.apply(w.Base); err != nil {
			return Plan{}, fmt.Errorf("this is not a recording of this disk: operation %d: %w", i, err)
		}
	}
	w.Ops, w.From = p.Ops[flushed:to], from-flushed
	return w, nil
}

// prefixes returns the disk after 0, 1, 2 … operations, all of which arrived.
func (p Plan) prefixes() ([]*Image, error) {
	img := p.Base.Clone()
	out := []*Image{img.Clone()}
	for i, op := range p.Ops {
		if err := op.apply(img); err != nil {
			return nil, fmt.Errorf("operation %d: %w", i, err)
		}
		if op.Kind == Write || op.Kind == Discard {
			out = append(out, img.Clone())
		} else {
			out = append(out, out[len(out)-1])
		}
	}
	return out, nil
}

// window returns where the last flush before at ends, and the writes since.
func (p Plan) window(at int) (flushed int, writes []int) {
	for i := at - 1; i >= 0; i-- {
		switch p.Ops[i].Kind {
		case Flush:
			return i + 1, writes
		case Write, Discard:
			writes = append([]int{i}, writes...)
		}
	}
	return 0, writes
}

func (p Plan) recipes() []recipe {
	rng := rand.New(rand.NewPCG(p.Seed, 0x6372617368))
	var first, rest []recipe
	for _, at := range spread(p.From, len(p.Ops)+1) {
		_, writes := p.window(at)
		edge := at == len(p.Ops) || p.Ops[at].Kind == Flush || p.Ops[at].Kind == Mark ||
			(at > 0 && p.Ops[at-1].Kind == Mark)
		to := &rest
		if edge {
			to = &first
		}
		*to = append(*to, recipe{at: at, what: all})
		if len(writes) == 0 {
			continue
		}
		if edge {
			first = append(first, recipe{at: at, what: none})
		}
		rest = append(rest, recipe{at, torn, rng.Uint64()})
		if len(writes) > 1 {
			for _, w := range []shape{without, only, half, half, tail, wild} {
				rest = append(rest, recipe{at, w, rng.Uint64()})
			}
		}
	}
	rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return append(first, rest...)
}

// spread returns the numbers from up to below end in an order in which every
// beginning is spread evenly over all: bit-reversed.
func spread(from, end int) []int {
	n := end - from
	if n <= 0 {
		return nil
	}
	w := bits.Len(uint(n - 1))
	out := make([]int, 0, n)
	for i := range 1 << w {
		if j := int(bits.Reverse64(uint64(i)) >> (64 - w)); w > 0 && j < n {
			out = append(out, from+j)
		} else if w == 0 {
			out = append(out, from)
		}
	}
	return out
}

func (p Plan) make(pre []*Image, r recipe) State {
	s := State{At: r.at}
	for _, op := range p.Ops[:r.at] {
		if op.Kind == Mark {
			s.Phase = string(op.Data)
		}
	}
	flushed, writes := p.window(r.at)
	if r.what == all {
		s.Image, s.What = pre[r.at].Clone(), "all arrived"
		return s
	}
	rng := rand.New(rand.NewPCG(r.arg, uint64(r.at)))
	keep := make([]bool, len(writes))
	cut := -1 // index in writes of the torn one
	one := rng.IntN(len(writes))
	switch r.what {
	case none:
		s.What = fmt.Sprintf("the %d writes since the flush at %d lost", len(writes), flushed)
	case without:
		for i := range keep {
			keep[i] = i != one
		}
		s.What = fmt.Sprintf("without %v", p.Ops[writes[one]])
	case only:
		keep[one] = true
		s.What = fmt.Sprintf("since the flush only %v", p.Ops[writes[one]])
	case half, wild:
		n := 0
		for i := range keep {
			if keep[i] = rng.IntN(2) == 0; keep[i] {
				n++
			}
		}
		s.What = fmt.Sprintf("%d of %d writes", n, len(writes))
		if r.what == wild {
			cut, keep[one] = one, true
		}
	case tail:
		for i := range keep {
			keep[i] = i >= len(keep)/2
		}
		s.What = fmt.Sprintf("the later half of %d writes", len(writes))
	case torn:
		for i := range keep {
			keep[i] = true
		}
		cut = len(keep) - 1
		s.What = "the last write torn"
	}
	img := pre[flushed].Clone()
	for i, w := range writes {
		op := p.Ops[w]
		switch {
		case !keep[i]:
		case i == cut && op.Kind == Write && !p.atomic(op):
			s.What += fmt.Sprintf(" (%v torn)", op)
			tear(img, op, rng, r.what == wild)
		default:
			op.apply(img) // was applied once in prefixes: cannot fail
		}
	}
	s.Image = img
	return s
}

// tear applies some sectors of a write: the first ones, or any.
func tear(img *Image, op Op, rng *rand.Rand, any bool) {
	sectors := len(op.Data) / SectorSize
	if sectors < 2 {
		return
	}
	if !any {
		n := (1 + rng.IntN(sectors-1)) * SectorSize
		img.WriteAt(op.Data[:n], op.Off)
		return
	}
	for i := range sectors {
		if rng.IntN(2) == 0 {
			at := i * SectorSize
			img.WriteAt(op.Data[at:at+SectorSize], op.Off+int64(at))
		}
	}
}

func (p Plan) atomic(op Op) bool {
	if p.Atomic != nil {
		return p.Atomic(op)
	}
	for _, super := range []int64{64 << 10, 64 << 20, 256 << 30} {
		if op.Off < super+PageSize && op.Off+int64(len(op.Data)) > super {
			return true
		}
	}
	return false
}
