package redeflate

import (
	"bytes"
	"io"
)

const defaultMaxPlain = 1 << 30

// An unpacker takes one file apart, from its start to its end.
type unpacker struct {
	o        Options
	plain    []byte
	recipe   recipeWriter
	segments []Segment
	pending  int64 // plain that the recipe does not cover yet: to be copied
	rest     bool  // the recipe's last operation takes all that is left of plain
	format   string
	encoders map[string]int64 // plain by encoder
	streams  int
	members  int
	tries    analyzer
	old      *oldStream // of o.Old, once it was looked for
}

func unpack(data []byte, o Options) (*Unpacked, error) {
	if o.MaxPlain <= 0 {
		o.MaxPlain = defaultMaxPlain
	}
	u := unpacker{o: o, encoders: map[string]int64{}}
	u.recipe.b = append(u.recipe.b, recipeVersion)
	if err := u.file(data); err != nil {
		return nil, err
	}
	u.copyPending()
	if u.streams == 0 && u.members == 0 {
		return nil, ErrUnsupported
	}
	out := &Unpacked{
		Format: u.format, Encoder: u.encoder(), Plain: u.plain,
		Recipe: u.recipe.b, Segments: u.segments,
	}
	if !o.NoVerify {
		r := Restorer{Moves: o.Moves, Priors: o.Priors}
		if o.Old != nil {
			r.Old = bytes.NewReader(o.Old)
		}
		check := compareWriter{want: data}
		if err := r.Restore(&check, bytes.NewReader(out.Plain), out.Recipe); err != nil || len(check.want) > 0 {
			// Not an error of the file: it is a stream that a model almost
			// reproduces, in a way that fixes cannot express.
			return nil, ErrUnsupported
		}
	}
	return out, nil
}

// encoder names the encoder of most of the plain.
func (u *unpacker) encoder() string {
	best, name := int64(-1), ""
	for n, v := range u.encoders {
		if v > best || v == best && n < name {
			best, name = v, n
		}
	}
	return name
}

// put appends bytes to plain and describes them. Those that stand in the file
// itself are for the recipe to copy.
func (u *unpacker) put(k Kind, p []byte, path string, depth int) {
	if len(p) == 0 {
		return
	}
	if k == Member && path == "" { // one that is called "/"
		k = Raw
	}
	u.segment(k, int64(len(p)), path, depth)
	u.plain = append(u.plain, p...)
	if k == Member {
		u.members++
	}
	if depth == 0 {
		u.pending += int64(len(p))
	}
}

// segment describes the n bytes that are appended to plain next.
func (u *unpacker) segment(k Kind, n int64, path string, depth int) {
	at := int64(len(u.plain))
	if last := len(u.segments) - 1; last >= 0 && k == Raw {
		if s := &u.segments[last]; s.Kind == Raw && s.Depth == depth && s.Offset+s.Length == at {
			s.Length += n
			return
		}
	}
	u.segments = append(u.segments, Segment{Offset: at, Length: n, Kind: k, Path: path, Depth: depth})
}

// copyPending lets the recipe copy the raw bytes that have gathered.
func (u *unpacker) copyPending() {
	if u.pending > 0 {
		u.recipe.copy(u.pending)
		u.pending = 0
	}
}

// A stream is a deflate stream that can be made again.
type stream struct {
	found
	used    int    // bytes of it
	content []byte // lies in memory right behind unpacker.plain
}

// stream takes the deflate stream at the start of data apart, if it can.
func (u *unpacker) stream(data []byte, h hint) (stream, bool) {
	before := len(u.plain)
	in, err := inflate(data, u.plain, u.o.MaxPlain-int64(before), probeTokens)
	if err != nil || !in.clean {
		return stream{}, false
	}
	u.plain = in.plain[:before]
	found, ok := u.tries.find(data[:in.used], in, before, h)
	return stream{found, in.used, in.plain[before:]}, ok
}

// addStream appends a stream to the recipe and its content to plain: one
// member of this path, or with path "" whatever it turns out to be.
func (u *unpacker) addStream(trailer byte, s stream, path string) {
	u.copyPending()
	n := int64(len(s.content))
	u.recipe.deflate(trailer, s.model, n, s.fixes)
	u.encoders[s.name()] += n
	u.streams++
	if path != "" {
		u.put(Member, s.content, path, 1)
		return
	}
	u.content(s.content, 1)
}

// compareWriter fails as soon as what is written differs from want; it keeps
// in want what has not been written yet.
type compareWriter struct{ want []byte }

func (c *compareWriter) Write(p []byte) (int, error) {
	if len(p) > len(c.want) || !bytes.Equal(p, c.want[:len(p)]) {
		return 0, io.ErrShortWrite
	}
	c.want = c.want[len(p):]
	return len(p), nil
}
