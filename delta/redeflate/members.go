package redeflate

import "bytes"

// Members calls member with each file in the archives that data holds or is, as far as these can be read: those
// that Unpack would call members, and more, because nothing need be made again. What holds more than
// a gigabyte is an error.
func Members(data []byte, member func(path string, content []byte)) error {
	if isZip(data) {
		u, err := Unpack(data, Options{NoVerify: true})
		if err != nil {
			return err
		}
		u.members(member)
		return nil
	}
	plain := limitedBuffer{limit: defaultMaxPlain}
	contents, err := Contents(&plain, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err
	}
	b, at := plain.b, int64(0)
	look := func(p []byte) {
		u := unpacker{o: Options{MaxPlain: defaultMaxPlain}, encoders: map[string]int64{}}
		u.content(p, 1)
		(&Unpacked{Plain: p, Segments: u.segments}).members(member)
	}
	for _, s := range append(contents, Segment{Offset: int64(len(b))}) {
		look(b[at:s.Offset])
		look(b[s.Offset : s.Offset+s.Length])
		at = s.Offset + s.Length
	}
	return nil
}

func (u *Unpacked) members(member func(path string, content []byte)) {
	for _, s := range u.Segments {
		if s.Kind == Member && s.Length > 0 {
			member(s.Path, u.Plain[s.Offset:s.Offset+s.Length])
		}
	}
}
