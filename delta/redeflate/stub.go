package redeflate

import "io"

func unpack([]byte, Options) (*Unpacked, error)  { return nil, ErrUnsupported }
func expand(io.Writer, io.ReaderAt, int64) error { return ErrUnsupported }

// Restorer is Restore with buffers that are used again; its zero value is
// ready. It must not be used by two goroutines at once.
type Restorer struct{}

// Restore is the function of the same name.
func (r *Restorer) Restore(io.Writer, io.Reader, []byte) error { return ErrUnsupported }

// Memory returns an upper bound of what Restore allocates for a recipe.
func Memory(recipe []byte) (int64, error) { return 0, ErrUnsupported }
