// Package exe knows where linked programs and libraries (ELF, x86-64, AArch64 and 32-bit ARM) hold addresses,
// so that an old version can be brought up to date before it is compared with
// the new one.
//
// When a function grows, everything behind it moves: every call across it, every
// pointer to what follows, every entry of every table that speaks of positions
// changes. A patch that says each of these changes one by one consists mostly of
// them. But once it is known which pieces of the old file stand where in the new one,
// they can be computed:
//
//	maker    [Mask] both versions, match what is left, and take the matches as moves
//	both     [Rewrite] the old version: every address becomes that of the same thing in
//	         the new one
//	then     the patch says what is left to be said
//
// Rewrite is a prediction: it accepts any input, gives the same bytes on every machine,
// and a wrong guess costs bytes, no more.
//
// Kernels are programs, too: vmlinux, which is what is compressed in vmlinuz. Their type
// information is brought up to date by a table ([Types], [RewriteTypes]), which serves the
// modules of that kernel as well. Measured with xz -9e: 53 programs and libraries of a Debian
// security update 1392 kB → 742 kB; vmlinux 6.1.176 → 6.1.192 (66 MB) 3190 kB → 673 kB
// and 58 kB of table.
//
// Rewrite holds a bit for each byte of old and little else, and goes through most of it from front
// to back: old may be a mapped temporary file where 66 MB are too much to hold ([RewriteMapped]).
package exe

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// A Move says that n bytes at Old in the old file are (nearly) those at New in the new one.
type Move struct {
	Old, New, Length int64
}

// Rewrite brings old up to date, in place. head is the start of the new file, at least
// [HeadSize] of it. It reports whether it did anything. Moves may come in any order, and
// overlap in the old file; Rewrite sorts them.
func Rewrite(old, head []byte, moves []Move) bool {
	return RewriteMapped(old, head, moves, func() {})
}

// RewriteMapped is Rewrite for an old file that is mapped: it calls shed whenever it has
// looked at about a megabyte more, for pages to be given back.
func RewriteMapped(old, head []byte, moves []Move, shed func()) bool {
	from, to := parse(old), parse(head)
	if from == nil || to == nil || from.machine != to.machine || len(moves) == 0 {
		return false
	}
	m := mover{from: from, to: to, moves: cover(moves)}
	from.sites(shed, func(s site) {
		t := m.address(from.target(s))
		if s.kind.word() {
			w := binary.LittleEndian.Uint32(old[s.off:])
			binary.LittleEndian.PutUint32(old[s.off:], setWord(s, w, t, m.address(s.base)))
			return
		}
		switch s.kind {
		case absolute64:
			binary.LittleEndian.PutUint64(old[s.off:], t)
			return
		case relative32:
			t -= m.address(s.base)
		case distance32:
			t = m.address(s.base) - t
		case index32:
			t = (t - m.address(s.base)) / symbolSize
		case index24:
			t = (t - m.address(s.base)) / 4
			old[s.off], old[s.off+1], old[s.off+2] = byte(t>>16), byte(t>>8), byte(t)
			return
		case symbol24:
			t = (t - m.address(s.base)) / symbolSize32
			old[s.off], old[s.off+1], old[s.off+2] = byte(t), byte(t>>8), byte(t>>16)
			return
		case stub96:
			setStub(old[s.off:], t-m.address(s.base))
			return
		}
		binary.LittleEndian.PutUint32(old[s.off:], uint32(t))
	})
	return true
}

// cover sorts moves by their old place and cuts them so that none overlap: where two
// new places claim the same old bytes, the longer move is right.
func cover(moves []Move) []Move {
	slices.SortStableFunc(moves, func(a, b Move) int { return cmp.Compare(a.Old, b.Old) })
	var out []Move
	for _, m := range moves {
		for len(out) > 0 && m.Length > 0 {
			last := &out[len(out)-1]
			over := last.Old + last.Length - m.Old
			if over <= 0 {
				break
			}
			if m.Length <= last.Length {
				m = Move{m.Old + over, m.New + over, m.Length - over}
				break
			}
			if last.Length -= over; last.Length > 0 {
				break
			}
			out = out[:len(out)-1]
		}
		if m.Length > 0 {
			out = append(out, m)
		}
	}
	return out
}

// A mover translates addresses.
type mover struct {
	from, to *image
	moves    []Move
	last     int
}

// address returns the new address of what stood at an old one.
func (m *mover) address(old uint64) uint64 {
	l, off, ok := m.from.offset(old)
	if !ok {
		return old
	}
	if old-l.addr >= l.fileSize {
		// Memory behind the file's part: it follows the part's end.
		end, ok := m.exact(l.off + l.fileSize - 1)
		if !ok {
			return old
		}
		return end + 1 + (old - l.addr - l.fileSize)
	}
	if a, ok := m.exact(off); ok {
		return a
	}
	return old
}

// exact translates a place in the old file to an address of the new one. What is in no
// move goes with what stands before it.
func (m *mover) exact(off uint64) (uint64, bool) {
	o := int64(off)
	i := m.last
	if o < m.moves[i].Old || i+1 < len(m.moves) && o >= m.moves[i+1].Old {
		k, found := slices.BinarySearchFunc(m.moves, o, func(v Move, o int64) int { return cmp.Compare(v.Old, o) })
		if !found {
			k--
		}
		i = max(k, 0)
		m.last = i
	}
	return m.to.address(uint64(o - m.moves[i].Old + m.moves[i].New))
}
