package exe

// What the machines whose instructions are words have in common: an address is a field of 32 bits, of an
// instruction (arm64.go, arm.go) or of a table (.ARM.exidx).

// word reports whether a site is a field of an instruction.
func (k siteKind) word() bool { return k >= branch26 }

// fields returns the bits of an instruction that a site of this kind is.
func (k siteKind) fields() uint32 {
	switch k {
	case call25:
		return callFields
	case branch24:
		return 1<<24 - 1
	case halfLow, halfHigh:
		return 0x70ff<<16 | 0x40f
	case halfLowWord, halfHighWord:
		return 0xf0fff
	case place31:
		return 1<<31 - 1
	case branch26:
		return 1<<26 - 1
	case branch14:
		return (1<<14 - 1) << 5
	case branch19, literal19:
		return (1<<19 - 1) << 5
	case near21, page21:
		return (1<<19-1)<<5 | 3<<29
	}
	return (1<<12 - 1) << 10
}

func signed(v uint32, bits uint) uint64 { return uint64(int64(int32(v<<(32-bits)) >> (32 - bits))) }

// wordTarget returns the address that a field of the instruction w leads to.
func wordTarget(s site, w uint32) uint64 {
	switch s.kind {
	case call25:
		return callTarget(s.base, w)
	case branch24:
		return s.base + signed(w, 24)*4
	case halfLow, halfLowWord:
		return s.base + signed(uint32(s.low)<<16|imm16(s.kind, w), 32)
	case halfHigh, halfHighWord:
		return s.base + signed(imm16(s.kind, w)<<16|uint32(s.low), 32)
	case place31:
		return s.base + signed(w, 31)
	case branch26:
		return s.base + signed(w, 26)*4
	case branch14:
		return s.base + signed(w>>5, 14)*4
	case branch19, literal19:
		return s.base + signed(w>>5, 19)*4
	case near21:
		return s.base + signed(w>>5<<2|w>>29&3, 21)
	case page21:
		return (s.base&^pageMask + signed(w>>5<<2|w>>29&3, 21)<<12) + uint64(s.low)
	}
	return s.base + uint64(w>>10&pageMask)<<unit(w)
}

// setWord returns w with its field leading to t. base is the new address of what the site
// counts from; an instruction that cannot say it stays as it is.
func setWord(s site, w uint32, t, base uint64) uint32 {
	var v uint32
	switch s.kind {
	case call25:
		return setCall(w, t, base)
	case branch24:
		v = uint32((t-base)>>2) & (1<<24 - 1)
	case place31:
		v = uint32(t-base) & (1<<31 - 1)
	case halfLow, halfLowWord:
		return setImm16(s.kind, w, uint32(t-base))
	case halfHigh, halfHighWord:
		return setImm16(s.kind, w, uint32(t-base)>>16)
	case branch26:
		v = uint32((t-base)>>2) & (1<<26 - 1)
	case branch14:
		v = uint32((t-base)>>2) & (1<<14 - 1) << 5
	case branch19, literal19:
		v = uint32((t-base)>>2) & (1<<19 - 1) << 5
	case near21:
		v = split21(uint32(t - base))
	case page21:
		v = split21(uint32(t>>12 - base>>12))
	default:
		low := uint32(t & pageMask)
		if low&(1<<unit(w)-1) != 0 {
			return w
		}
		v = low >> unit(w) << 10
	}
	return w&^s.kind.fields() | v
}

// mark returns w with a label in the place of its address.
func mark(k siteKind, w, label uint32) uint32 {
	if k == low12 || label == 0 {
		return w &^ k.fields()
	}
	return w&^k.fields() | label&k.fields()
}
