package redeflate

import (
	"errors"
	"fmt"
	"io"

	"github.com/btrovl/btrovl/delta/redeflate/relz"
)

// ErrUnsupported says that nothing in a file can be taken apart, or that it
// would not pay: ship the file as it is.
var ErrUnsupported = errors.New("no compressed part that can be made again")

// RecipeError says that a recipe cannot have been written by Unpack, or does
// not belong to this plain.
type RecipeError struct {
	Offset int64 // in the recipe
	Reason string
}

func (e *RecipeError) Error() string {
	return fmt.Sprintf("recipe is damaged at byte %d: %s", e.Offset, e.Reason)
}

// Kind says what a segment of plain is.
type Kind uint8

const (
	// Raw bytes stand in the file as they are in plain: headers, padding, and
	// parts that are not compressed or cannot be made again.
	Raw Kind = iota
	// Content is what a compressed stream holds.
	Content
	// Member is the content of one regular file of an archive; Path is set.
	Member
)

// Segment describes a run of plain. Segments cover plain from its start to its
// end without gaps, in order.
type Segment struct {
	Offset, Length int64 // in plain
	Kind           Kind
	Path           string // of a Member, as the archive has it, without leading "/" or "./"
	Depth          int    // number of compressed streams around it: 0 stands in the file itself
}

// Unpacked is a file taken apart.
type Unpacked struct {
	Format   string    // "gzip", "zip", "cpio", "initrd" …: for people
	Encoder  string    // the model that reproduces most of it: "GNU gzip -9", for people
	Plain    []byte    // everything inside, see the package comment
	Recipe   []byte    // what Restore needs beside Plain
	Segments []Segment // a map of Plain
}

// A Move says that Length bytes at Old in the old content are, or nearly are, those at New
// in the new one. Content is what the first LZMA2 stream of a file holds.
type Move = relz.Move

// Priors make the recipes of small files smaller that are much like one another.
type Priors = relz.Priors

// NewPriors returns priors to be trained, for files that begin as head does; nil if there are none for them.
func NewPriors(head []byte) *Priors {
	if !isXz(head) && !isZstd(head) {
		return nil
	}
	return relz.NewPriors(isZstd(head))
}

// DecodePriors is the inverse of Priors.Encode. It returns an error for what is longer or cannot be.
func DecodePriors(b []byte) (*Priors, error) { return relz.DecodePriors(b) }

// Options bounds the work of Unpack.
type Options struct {
	// MaxPlain refuses files that hold more than this many bytes (0: 1 GiB),
	// a guard against files that are made to explode.
	MaxPlain int64
	// Old is the file that the device will have in this one's place, or nil.
	// Some formats (xz) can be made again only by comparing how the old file
	// was compressed; Restore then needs it too.
	Old   []byte
	Moves []Move
	// Priors, if not nil, are what describing streams of small files begins with: whole xz files and Zstandard frames. With
	// Train they are changed to what it ended with.
	Priors *Priors
	Train  bool
	// Memory, if not 0, is what Restore should at most take, as the function Memory counts it for two workers. Where
	// there is a choice, recipes are made for it.
	Memory int64
	// NoVerify leaves out the proof by Restore. Only for measuring.
	NoVerify bool
}

// Unpack takes data apart if it is a file of a known format with at least one
// compressed part, or an archive with members. It returns ErrUnsupported for
// all others, and also when the recipe would be so large that nothing is gained.
// What it returns is proved: Restore of Plain and Recipe gives data.
func Unpack(data []byte, o Options) (*Unpacked, error) {
	return unpack(data, o)
}

// Analyze is Unpack for those who need neither segments nor reasons.
func Analyze(data []byte) (plain, recipe []byte, ok bool) {
	u, err := Unpack(data, Options{})
	if err != nil {
		return nil, nil, false
	}
	return u.Plain, u.Recipe, true
}

// ErrOld says that a recipe refers to an old file, and that it was not given or
// is not the one that Unpack had.
var ErrOld = errors.New("the old file that this recipe was made with is missing")

// Restore writes the file that recipe describes, reading plain once from start
// to end. It reads no byte beyond the ones that the recipe covers, except
// through its own buffering when plain ends with the recipe. A recipe that is
// damaged gives a *RecipeError; a wrong plain of the right length gives a wrong
// file: compare the digest of the whole file.
func Restore(w io.Writer, plain io.Reader, recipe []byte) error {
	var r Restorer
	return r.Restore(w, plain, recipe)
}

// Contents is Expand, and returns which parts of plain are the content of compressed
// streams: Content segments, without what is between them.
func Contents(w io.Writer, file io.ReaderAt, size int64) ([]Segment, error) {
	e := newExpander(w, file, size)
	err := e.run()
	return e.contents, err
}

// Expand writes the plain of an old file, to compare a new one against. It
// differs from Unpack in that it takes every compressed part apart, also those
// that could not be made again, and that it needs neither recipe nor the whole
// file in memory. The same file gives the same bytes on every machine.
// Files of unknown format give ErrUnsupported before anything is written.
func Expand(w io.Writer, file io.ReaderAt, size int64) error {
	return newExpander(w, file, size).run()
}
