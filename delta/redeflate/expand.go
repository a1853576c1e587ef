package redeflate

import "io"

func expand(io.Writer, io.ReaderAt, int64) error { return ErrUnsupported }
