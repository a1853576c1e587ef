//go:build 386 || arm || mips || mipsle

package overlay

func timeWord(s int64) int32 { return int32(s) }
