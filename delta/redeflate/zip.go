package redeflate

func isZip(p []byte) bool { return false }

func (u *unpacker) zip(data []byte) error { return ErrUnsupported }
