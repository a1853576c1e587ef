package redeflate

import "encoding/binary"

// A Linux kernel for x86 (Documentation/arch/x86/boot.rst): code that
// decompresses, and behind it the kernel proper, the payload, compressed by gzip
// -9, xz or zstd (or by what cannot be made again: lz4, lzo, bzip2).
const (
	kernelHeader  = 0x250
	kernelSectors = 0x1f1
	kernelMagic   = 0x202
	kernelVersion = 0x206
	kernelPayload = 0x248 // offset behind the boot sectors, then length
)

func isKernel(p []byte) bool {
	return len(p) >= kernelHeader && string(p[kernelMagic:kernelMagic+4]) == "HdrS" &&
		binary.LittleEndian.Uint16(p[kernelVersion:]) >= 0x0208
}

// A Linux kernel for UEFI (drivers/firmware/efi/libstub/zboot-header.S; arm64, RISC-V,
// LoongArch): a program that decompresses, and the kernel proper.
const (
	zbootPayload = 8 // offset in the file, then length
)

func isZboot(p []byte) bool {
	return len(p) >= zbootPayload+8 && string(p[:8]) == "MZ\x00\x00zimg"
}

// IsKernel reports whether a file that begins with head is a compressed kernel. 1,024 bytes are enough.
func IsKernel(head []byte) bool { return isKernel(head) || isZboot(head) }

// payload returns where the compressed part of a file begins: of a kernel its
// payload, of all others the whole.
func payload(head []byte, size int64) int64 {
	if isZboot(head) {
		return min(int64(binary.LittleEndian.Uint32(head[zbootPayload:])), size)
	}
	if !isKernel(head) {
		return 0
	}
	sectors := int64(head[kernelSectors])
	if sectors == 0 {
		sectors = 4
	}
	at := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(head[kernelPayload:]))
	return min(at, size)
}
