package delta

import "github.com/klauspost/compress/zstd"

// cost estimates what actions add to the bundle: their data compressed alone, and
// about two bytes for an operation.
func (m *maker) cost(actions []action) int64 {
	var raw, packed int64
	for i := range actions {
		if a := &actions[i]; a.kind == opRaw {
			raw += a.length
		} else {
			packed += int64(len(a.data))
		}
	}
	z := <-m.estimate
	defer func() { m.estimate <- z }()
	n := raw + int64(2*len(actions))
	if packed >= costInPieces {
		return n + costOfPieces(z, actions)
	}
	b := make([]byte, 0, packed)
	for i := range actions {
		if actions[i].kind != opRaw {
			b = append(b, actions[i].data...)
		}
	}
	return n + int64(len(z.EncodeAll(b, nil)))
}

// costInPieces is how much data is not put together in memory to be estimated.
const costInPieces = 16 << 20

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func costOfPieces(z *zstd.Encoder, actions []action) int64 {
	var c counter
	z.Reset(&c)
	for i := range actions {
		if actions[i].kind != opRaw {
			z.Write(actions[i].data) // a counter never fails
		}
	}
	z.Close()
	z.Reset(nil)
	return c.n
}
