package viewtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// names of which all paths of a test are made: few, so that calls meet each other.
// The last one is as long as a name can be.
var names = []string{"a", "b", "c", "d", "e", strings.Repeat("L", 255)}

// special entries that every base has; the generator aims at them now and then.
const (
	program = "x"      // an executable
	sparse  = "sparse" // data, hole, data
	big     = "big"    // larger than one request
)

// MakeBase fills an empty directory with a tree that the seed decides: every type of
// file, hard links across directories, set-id bits, sticky and set-gid directories,
// ACLs, xattrs, capabilities, sparse files, names of 255 bytes. It needs root.
func MakeBase(dir string, seed uint64) error {
	b := &baseMaker{r: rand.New(rand.NewPCG(seed, 1)), dir: dir}
	for _, name := range names {
		b.entry(name, 0)
	}
	b.file(program, 0o755, nil)
	prog, err := os.ReadFile("/bin/true")
	b.note(err)
	b.note(os.WriteFile(b.abs(program), prog, 0o755))
	b.file(sparse, 0o644, func(f *os.File) {
		f.WriteAt(pattern(3, 4096), 8192)
		f.WriteAt(pattern(4, 4096), 1<<20)
		f.Truncate(2 << 20)
	})
	b.file(big, 0o666, func(f *os.File) { f.WriteAt(pattern(5, 3<<20+17), 0) })
	// Last, because every creation above touches its directory.
	for _, p := range b.all {
		b.times(p)
	}
	b.times("")
	return b.err
}

type baseMaker struct {
	r     *rand.Rand
	dir   string
	files []string
	all   []string
	err   error
}

func (b *baseMaker) abs(rel string) string { return filepath.Join(b.dir, rel) }

func (b *baseMaker) note(err error) {
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("cannot make the base tree: %w", err)
	}
}

func (b *baseMaker) entry(rel string, depth int) {
	abs := b.abs(rel)
	kind := b.r.IntN(100)
	if depth >= 3 && kind < 45 {
		kind = 45 + kind
	}
	switch {
	case kind < 12:
		return // nothing there: names are missing too
	case kind < 45:
		mode := []os.FileMode{0o755, 0o755, 0o777, 0o775, 0o700, 0o750, 0o555}[b.r.IntN(7)]
		b.note(os.Mkdir(abs, 0o700))
		b.all = append(b.all, rel)
		b.owner(rel)
		for _, name := range names {
			b.entry(rel+"/"+name, depth+1)
		}
		m := uint32(mode)
		switch b.r.IntN(6) {
		case 0:
			m |= unix.S_ISVTX
		case 1:
			m |= unix.S_ISGID
		}
		b.note(unix.Chmod(abs, m))
		if b.r.IntN(6) == 0 {
			b.xattr(rel, "system.posix_acl_default", randomACL(b.r))
		}
		if b.r.IntN(6) == 0 {
			b.xattr(rel, "system.posix_acl_access", randomACL(b.r))
		}
	case kind < 78:
		if len(b.files) > 0 && b.r.IntN(5) == 0 {
			b.note(os.Link(b.abs(b.files[b.r.IntN(len(b.files))]), abs))
			b.files = append(b.files, rel)
			return
		}
		mode := []uint32{0o644, 0o644, 0o666, 0o664, 0o600, 0o400, 0, 0o755, 0o4755, 0o2755, 0o6711}[b.r.IntN(11)]
		b.file(rel, mode, func(f *os.File) {
			f.Write(pattern(b.r.Uint32()|1, []int64{0, 10, 2000, 4096, 5000, 70000, 200000}[b.r.IntN(7)]))
		})
	case kind < 88:
		target := []string{"a", "b/c", "../a", "nowhere", ".", "..", "e/d/b", names[len(names)-1], "self"}[b.r.IntN(9)]
		if target == "self" {
			target = filepath.Base(rel)
		}
		b.note(os.Symlink(target, abs))
		b.all = append(b.all, rel)
		b.owner(rel)
	case kind < 92:
		b.note(unix.Mkfifo(abs, 0o644))
		b.all = append(b.all, rel)
	case kind < 95:
		b.note(unix.Mknod(abs, unix.S_IFSOCK|0o644, 0))
		b.all = append(b.all, rel)
	default:
		b.note(unix.Mknod(abs, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		b.all = append(b.all, rel)
	}
}

func (b *baseMaker) file(rel string, mode uint32, fill func(*os.File)) {
	f, err := os.OpenFile(b.abs(rel), os.O_CREATE|os.O_WRONLY, 0o600)
	b.note(err)
	if err != nil {
		return
	}
	if fill != nil {
		fill(f)
	}
	b.note(f.Close())
	b.files, b.all = append(b.files, rel), append(b.all, rel)
	b.owner(rel)
	b.note(unix.Chmod(b.abs(rel), mode)) // after chown, which clears set-id bits
	switch b.r.IntN(8) {
	case 0:
		b.xattr(rel, "user.u", []byte("value"))
	case 1:
		b.xattr(rel, "trusted.t", pattern(7, 100))
	case 2:
		b.xattr(rel, "security.capability", capability)
	case 3:
		b.xattr(rel, "system.posix_acl_access", randomACL(b.r))
	}
}

func (b *baseMaker) owner(rel string) {
	u := Users[b.r.IntN(len(Users))]
	b.note(os.Lchown(b.abs(rel), u.UID, u.GID))
}

func (b *baseMaker) xattr(rel, name string, value []byte) {
	b.note(unix.Lsetxattr(b.abs(rel), name, value, 0))
}

func (b *baseMaker) times(rel string) {
	ts := timespec(int64(1e8 + b.r.IntN(1e8)))
	b.note(unix.UtimesNanoAt(unix.AT_FDCWD, b.abs(rel), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// capability is cap_net_raw=ep, as setcap writes it.
var capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// acl encodes entries (tag, permissions, id) as the kernel's posix_acl_xattr.h says.
func acl(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

func randomACL(r *rand.Rand) []byte {
	const none = 0xffffffff
	p := func() uint32 { return uint32(r.IntN(8)) }
	return acl(
		[3]uint32{0x01, p() | 4, none},        // owner
		[3]uint32{0x02, p(), 1001},            // a user
		[3]uint32{0x04, p(), none},            // owning group
		[3]uint32{0x08, p(), 2000},            // a group
		[3]uint32{0x10, 7 &^ (p() & 2), none}, // mask
		[3]uint32{0x20, p(), none})            // others
}
