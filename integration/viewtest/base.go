package viewtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
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

// kind is what an entry is, as far as the generator cares.
type kind int

const (
	none kind = iota
	file
	directory
	symlink
	other // FIFO, socket, device
)

// entry is one entry of a base tree.
type entry struct {
	path   string
	kind   kind
	mode   uint32 // with the type
	user   User
	size   int64
	seed   uint32 // of the content
	holes  bool   // the content is data, hole, data, hole
	target string // of a symlink, or the first name of a hard link
	xattrs map[string][]byte
	time   int64
}

// withCapabilities says whether files of a seed's base and program have capabilities.
// If so nothing is set-id: see NotGenerated.
func withCapabilities(seed uint64) bool { return seed%4 == 0 }

// planBase decides a tree, parents before children: every type of file, hard
// links across directories, set-id bits, sticky and set-gid directories, ACLs, xattrs,
// capabilities, sparse files, names of 255 bytes.
func planBase(seed uint64) []entry {
	p := &planner{r: rand.New(rand.NewPCG(seed, 1)), caps: withCapabilities(seed)}
	for _, name := range names {
		p.entry(name, 0)
	}
	p.add(entry{path: program, kind: file, mode: unix.S_IFREG | 0o755})
	p.add(entry{path: sparse, kind: file, mode: unix.S_IFREG | 0o644, size: 2 << 20, seed: 3, holes: true})
	p.add(entry{path: big, kind: file, mode: unix.S_IFREG | 0o666, size: 3<<20 + 17, seed: 5})
	return p.all
}

type planner struct {
	r    *rand.Rand
	caps bool
	all  []entry
}

func (p *planner) add(e entry) {
	e.time = int64(1e8 + p.r.IntN(1e8))
	p.all = append(p.all, e)
}

func (p *planner) entry(path string, depth int) {
	r := p.r
	e := entry{path: path, user: Users[r.IntN(len(Users))], xattrs: map[string][]byte{}}
	n := r.IntN(100)
	if depth == 0 && path <= "b" {
		n = 44 // some directories there are always
	} else if depth >= 3 && n >= 12 && n < 45 {
		n += 33
	}
	switch {
	case n < 12:
		return // names are missing too
	case n < 45:
		e.kind, e.mode = directory, []uint32{0o755, 0o755, 0o777, 0o775, 0o700, 0o750, 0o555}[r.IntN(7)]|unix.S_IFDIR
		switch r.IntN(6) {
		case 0:
			e.mode |= unix.S_ISVTX
		case 1:
			e.mode |= unix.S_ISGID
		}
		if r.IntN(6) == 0 {
			e.xattrs["system.posix_acl_default"] = randomACL(r)
		}
		if r.IntN(6) == 0 {
			e.xattrs["system.posix_acl_access"] = randomACL(r)
		}
		p.add(e)
		for _, name := range names {
			p.entry(path+"/"+name, depth+1)
		}
		return
	case n < 78:
		e.kind = file
		if first := p.all[r.IntN(max(len(p.all), 1))]; r.IntN(4) == 0 && first.kind == file && first.target == "" {
			e.target = first.path
			break
		}
		e.mode = []uint32{0o644, 0o644, 0o666, 0o664, 0o600, 0o400, 0, 0o755, 0o4755, 0o2755, 0o6711}[r.IntN(11)] | unix.S_IFREG
		if p.caps {
			e.mode &^= unix.S_ISUID | unix.S_ISGID
		}
		e.size, e.seed = []int64{0, 10, 2000, 4096, 5000, 70000, 200000}[r.IntN(7)], r.Uint32()|1
		switch r.IntN(8) {
		case 0:
			e.xattrs["user.u"] = []byte("value")
		case 1:
			e.xattrs["trusted.t"] = pattern(7, 100)
		case 2:
			if p.caps {
				e.xattrs["security.capability"] = capability
			}
		case 3:
			e.xattrs["system.posix_acl_access"] = randomACL(r)
		}
	case n < 88:
		e.kind, e.mode = symlink, unix.S_IFLNK
		e.target = []string{"a", "b/c", "../a", "nowhere", ".", "..", "/c", "e/d/b", names[len(names)-1], filepath.Base(path)}[r.IntN(10)]
	default:
		e.kind, e.mode = other, []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR}[r.IntN(3)]|0o666
	}
	p.add(e)
}

// MakeBase fills an empty directory with the tree of a seed. It needs root.
func MakeBase(dir string, seed uint64) error {
	plan := planBase(seed)
	for _, e := range plan {
		if err := e.create(dir); err != nil {
			return fmt.Errorf("cannot make the base tree: %w", err)
		}
	}
	// Last, because every creation touches its directory.
	for _, e := range append(plan, entry{time: 1e8}) {
		ts := timespec(e.time)
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, e.path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("cannot make the base tree: %w", err)
		}
	}
	return nil
}

func (e *entry) create(dir string) error {
	abs := filepath.Join(dir, e.path)
	var err error
	switch {
	case e.kind == file && e.target != "":
		return os.Link(filepath.Join(dir, e.target), abs)
	case e.kind == file:
		err = e.fill(abs)
	case e.kind == directory:
		err = os.Mkdir(abs, 0o700)
	case e.kind == symlink:
		err = os.Symlink(e.target, abs)
	default:
		err = unix.Mknod(abs, e.mode, int(unix.Mkdev(1, 3)))
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(abs, e.user.UID, e.user.GID); err != nil {
		return err
	}
	if e.kind != symlink { // after chown, which clears set-id bits
		if err := unix.Chmod(abs, e.mode&0o7777); err != nil {
			return err
		}
	}
	for name, value := range e.xattrs {
		if err := unix.Lsetxattr(abs, name, value, 0); err != nil {
			return err
		}
	}
	return nil
}

func (e *entry) fill(abs string) error {
	f, err := os.OpenFile(abs, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	switch {
	case e.path == program:
		_, err = f.Write(exitELF(runtime.GOARCH, 0))
		return err
	case e.holes:
		if _, err := f.WriteAt(pattern(e.seed, 4096), 8192); err != nil {
			return err
		}
		if _, err := f.WriteAt(pattern(e.seed+1, 4096), 1<<20); err != nil {
			return err
		}
		return f.Truncate(e.size)
	}
	_, err = f.Write(pattern(e.seed, e.size))
	return err
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
	const nobody = 0xffffffff
	p := func() uint32 { return uint32(r.IntN(8)) }
	return acl(
		[3]uint32{0x01, p() | 4, nobody},        // owner
		[3]uint32{0x02, p(), 1001},              // a user
		[3]uint32{0x04, p(), nobody},            // owning group
		[3]uint32{0x08, p(), 2000},              // a group
		[3]uint32{0x10, 7 &^ (p() & 2), nobody}, // mask
		[3]uint32{0x20, p(), nobody})            // others
}

// exitELF is the smallest static program that ends with the given code: one needs no
// other file to run, and the actors' chroots have none. Nil where it is not known.
func exitELF(arch string, code byte) []byte {
	var machine uint16
	var text []byte
	switch arch {
	case "amd64":
		machine, text = 62, []byte{0xbf, code, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05} // mov edi,code; mov eax,60; syscall
	case "arm64":
		x0 := 0xd2800000 | uint32(code)<<5 // mov x0,#code
		machine, text = 183, binary.LittleEndian.AppendUint32(nil, x0)
		text = append(text, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4) // mov x8,#93; svc 0
	default:
		return nil
	}
	const base, header = 0x400000, 64 + 56
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 2) // executable
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+header) // entry
	b = le.AppendUint64(b, 64)          // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // r-x
	for _, v := range []uint64{0, base, base, header + uint64(len(text)), header + uint64(len(text)), 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(b, text...)
}
