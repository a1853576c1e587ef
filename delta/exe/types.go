package exe

import (
	"github.com/btrovl/btrovl/delta/btf"
)

// Types returns how the type information of one kernel becomes that of another; nil if one
// of them has none.
func Types(old, new []byte) *btf.Map {
	o, n := types(old), types(new)
	if o == nil || n == nil {
		return nil
	}
	return btf.FromKernels(o, n)
}

// RewriteTypes brings the type information of an old kernel up to date, in place.
func RewriteTypes(old []byte, m *btf.Map) {
	if s := types(old); s != nil && m != nil {
		m.RewriteKernel(s)
	}
}

// types returns the type information of a kernel.
func types(b []byte) []byte {
	im := parse(b)
	if im == nil {
		return nil
	}
	s := im.section(".BTF")
	if s == nil {
		return nil
	}
	return b[s.off : s.off+s.size : s.off+s.size]
}
