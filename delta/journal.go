package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/delta/exe"
)

// A journal keeps what was found out about files until a bundle is made, so that making it again after an interrupt
// goes on where it was. It is a file of the maker's own:
//
//	8   "btrovlJ1"
//	32  what it belongs to: SHA-256 of the program, the trees and the options that matter
//	entries: u32 length, u32 CRC-32C of the rest; u32 section, u32 file (allHints: the hints), zstd of a gob
//
// It is not synced. Behind the first entry that is not whole, everything is forgotten. What it
// says is believed no more than what the maker finds out itself: bundles are compared before they are signed.
type journal struct {
	path     string
	f        *os.File
	end      int64
	found    map[journalKey]journalPlace
	sections uint32
	other    bool // the file was another bundle's
	pack     *zstd.Encoder
	unpack   *zstd.Decoder

	mu     sync.Mutex // guards f, end, err, used
	err    error      // writing failed; nothing more is written
	used   int
	number uint32 // of the section that is being made
}

type journalKey struct{ section, file uint32 }

type journalPlace struct {
	at int64
	n  uint32
}

const (
	journalMagic = "btrovlJ1"
	journalHead  = int64(len(journalMagic) + sha256.Size)
	allHints     = 1<<32 - 1
	// worthKeeping is how long a result must have taken: most files take less, and are as fast found again.
	worthKeeping = 20 * time.Millisecond
	// mostKept bounds what a result brings along: larger ones would be as much again on disk, and in memory.
	mostKept = 64 << 20
	maxKept  = 2 * mostKept
)

// InUseError says that another process makes this bundle.
type InUseError struct{ Path string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is in use: another process makes this bundle", e.Path)
}

// UnfinishedError is an error that came when a part of the work was done and kept in Path.
type UnfinishedError struct {
	Path string
	Err  error
}

func (e *UnfinishedError) Error() string { return e.Err.Error() }
func (e *UnfinishedError) Unwrap() error { return e.Err }

// openJournal opens the journal of a bundle, or begins one. One that belongs to another bundle is begun anew; a file
// that is no journal is left alone, and an error.
func openJournal(path string, to *inventory, olds []*inventory, o *MakeOptions) (*journal, error) {
	belongs, err := journalBelongs(to, olds, o)
	if err != nil {
		return nil, err
	}
	f, err := openLocked(path)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, f: f, found: make(map[journalKey]journalPlace)}
	if err = j.read(belongs); err == nil {
		if j.pack, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest)); err == nil {
			j.unpack, err = zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxKept))
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

// openLocked opens a file, which may be new, for this process alone. Where there are no locks nobody is kept out; the
// bundle is compared in any case.
func openLocked(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			f.Close()
			return nil, &InUseError{path}
		}
		mine, err := f.Stat()
		if err == nil && !mine.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", path)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		if there, err := os.Lstat(path); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close() // who had it has removed it meanwhile
	}
}

// journalBelongs is a digest of everything that a result depends on.
func journalBelongs(to *inventory, olds []*inventory, o *MakeOptions) ([]byte, error) {
	h := sha256.New()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	if _, err := io.Copy(h, self); err != nil {
		return nil, err
	}
	fmt.Fprintf(h, "%q %d %d %q %q %d\n", to.digest, len(olds), o.Memory, o.Without, o.Rescue, o.leastShared)
	for _, old := range olds {
		fmt.Fprintf(h, "%q\n", old.digest)
	}
	return h.Sum(nil), nil
}

// read finds the entries, and cuts off what is not whole.
func (j *journal) read(belongs []byte) error {
	head := append([]byte(journalMagic), belongs...)
	have := make([]byte, journalHead)
	n, err := j.f.ReadAt(have, 0)
	if err != nil && err != io.EOF {
		return err
	}
	if n > 0 && !bytes.HasPrefix(have[:n], []byte(journalMagic)[:min(n, len(journalMagic))]) {
		return fmt.Errorf("%s is a file of another kind", j.path)
	}
	if !bytes.Equal(have, head) {
		j.other = n == len(have)
		if err := j.f.Truncate(0); err != nil {
			return err
		}
		_, err := j.f.WriteAt(head, 0)
		j.end = journalHead
		return err
	}
	st, err := j.f.Stat()
	if err != nil {
		return err
	}
	at := journalHead
	for {
		var e [16]byte
		if _, err := j.f.ReadAt(e[:], at); err != nil {
			break
		}
		n := binary.LittleEndian.Uint32(e[:])
		if n < 8 || int64(n) > st.Size()-at-8 {
			break
		}
		sum := crc32.New(castagnoli)
		if _, err := io.Copy(sum, io.NewSectionReader(j.f, at+8, int64(n))); err != nil || sum.Sum32() != binary.LittleEndian.Uint32(e[4:]) {
			break
		}
		k := journalKey{binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])}
		j.found[k] = journalPlace{at + 16, n - 8}
		at += 8 + int64(n)
	}
	j.end = at
	return j.f.Truncate(at)
}

// close ends the use of a journal. It stays, if there is anything in it that is of use.
func (j *journal) close(useless bool) (stays bool) {
	if stays = !useless && j.end > journalHead; !stays {
		os.Remove(j.path)
	}
	j.f.Close()
	j.unpack.Close()
	return stays
}

// section begins the entries of the next section.
func (j *journal) section() {
	if j != nil {
		j.number++
	}
}

// get reads an entry into v, and reports whether there is one.
func (j *journal) get(file uint32, v any) bool {
	if j == nil {
		return false
	}
	place, ok := j.found[journalKey{j.number, file}]
	if !ok {
		return false
	}
	packed := make([]byte, place.n)
	if _, err := j.f.ReadAt(packed, place.at); err != nil {
		return false
	}
	b, err := j.unpack.DecodeAll(packed, nil)
	if err != nil || gob.NewDecoder(bytes.NewReader(b)).Decode(v) != nil {
		return false
	}
	j.mu.Lock()
	j.used++
	j.mu.Unlock()
	return true
}

// put keeps v. An error is only noted: the bundle is made all the same.
func (j *journal) put(file uint32, v any) {
	if j == nil {
		return
	}
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(v)
	e := make([]byte, 16, 16+b.Len()/4)
	binary.LittleEndian.PutUint32(e[8:], j.number)
	binary.LittleEndian.PutUint32(e[12:], file)
	e = j.pack.EncodeAll(b.Bytes(), e)
	binary.LittleEndian.PutUint32(e, uint32(len(e)-8))
	binary.LittleEndian.PutUint32(e[4:], crc32.Checksum(e[8:], castagnoli))
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return
	}
	if err == nil {
		_, err = j.f.WriteAt(e, j.end)
	}
	if err != nil {
		j.err = err
		return
	}
	j.end += int64(len(e))
}

// report says what the journal did.
func (j *journal) report(r *Report) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Resumed = j.used
	if j.other {
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s was of another bundle, of other options or of another program: it was begun anew", j.path))
	}
	if j.err != nil {
		r.Warnings = append(r.Warnings, fmt.Sprintf("not everything was kept for the case of an interrupt: %v", j.err))
	}
}

// A keptFile is what a worker found out about a file.
type keptFile struct {
	Method      uint8
	Cloned      bool
	Size        int64
	Sources     []keptSource
	Plain, Head int64
	Moves       []exe.Move
	Types       int64
	Kernel      [4]int64
	Inside      int64
	CRC         uint32
	Actions     []keptAction
	RecipeBytes []byte
	TypesBytes  []byte
	Info        FileInfo
	Written     int64
}

type keptSource struct {
	Index         int
	New, Expanded bool
	Size          int64
}

type keptAction struct {
	Kind              uint8
	Length, Pos, Seek int64
	Data              []byte
}

// worth reports whether a result should be kept: what travels whole is as fast found again.
func (m *maker) worth(f *made, took time.Duration) bool {
	if m.o.journal == nil || f.err != nil || took < m.o.keepFrom || m.plan.kind == partRescue || len(f.rec.sources) == 0 {
		return false
	}
	n := len(f.recipe) + len(f.types) + 64*len(f.actions)
	for i := range f.actions {
		n += len(f.actions[i].data)
	}
	return n <= mostKept
}

func (f *made) keep() *keptFile {
	r := &f.rec
	k := &keptFile{Method: uint8(r.method), Cloned: r.cloned, Size: r.size, Plain: r.plain, Head: r.head, Moves: r.moves,
		Types: r.kernel.types, Kernel: [4]int64{r.kernel.old.from, r.kernel.old.to, r.kernel.new.from, r.kernel.new.to},
		Inside: r.inside, CRC: r.crc, RecipeBytes: f.recipe, TypesBytes: f.types, Info: f.info, Written: f.written}
	for _, s := range r.sources {
		k.Sources = append(k.Sources, keptSource{s.index, s.new, s.expanded, s.size})
	}
	for i := range f.actions {
		a := &f.actions[i]
		k.Actions = append(k.Actions, keptAction{uint8(a.kind), a.length, a.pos, a.seek, a.data})
	}
	return k
}

func (k *keptFile) made(index int) *made {
	f := &made{rec: record{index: index, method: method(k.Method), cloned: k.Cloned, size: k.Size, plain: k.Plain,
		recipe: int64(len(k.RecipeBytes)), head: k.Head, moves: k.Moves, inside: k.Inside, crc: k.CRC,
		kernel: kernelRecord{types: k.Types, old: span{k.Kernel[0], k.Kernel[1]}, new: span{k.Kernel[2], k.Kernel[3]}}},
		recipe: k.RecipeBytes, types: k.TypesBytes, info: k.Info, written: k.Written}
	for _, s := range k.Sources {
		f.rec.sources = append(f.rec.sources, source{s.Index, s.New, s.Expanded, s.Size})
	}
	for _, a := range k.Actions {
		f.actions = append(f.actions, action{op: op{kind: opKind(a.Kind), length: a.Length, pos: a.Pos, seek: a.Seek}, data: a.Data})
	}
	return f
}

// resumed returns what the journal has of a new file, if that belongs to this content.
func (m *maker) resumed(i int) *made {
	var k keptFile
	if !m.o.journal.get(uint32(i), &k) || k.Size != m.news.entries[i].size || k.Info.Path != m.news.entries[i].path {
		return nil
	}
	if slices.ContainsFunc(k.Sources, func(s keptSource) bool {
		return s.Index < 0 || s.New && s.Index >= len(m.news.entries) || !s.New && s.Index >= len(m.olds.entries)
	}) {
		return nil
	}
	return k.made(i)
}

// learnOnce is learn, or what the journal has of it.
func (m *maker) learnOnce(ctx context.Context, order []int) (*hints, error) {
	var encoded []byte
	if m.o.journal.get(allHints, &encoded) {
		if h, err := decodeHints(encoded); err == nil {
			return h, nil
		}
	}
	began := time.Now()
	h, err := m.learn(ctx, order)
	if err == nil && time.Since(began) >= m.o.keepFrom {
		m.o.journal.put(allHints, h.encode())
	}
	return h, err
}
