package viewtest

import (
	"math/rand/v2"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Generate makes a program of n calls for the base of a seed. It keeps a model of
// what the calls will do, in which nobody lacks a permission and little else is checked:
// good enough to aim at what exists most of the time.
func Generate(seed uint64, n int) []Op {
	g := &generator{r: rand.New(rand.NewPCG(seed, 2)), model: newModel(planBase(seed)), caps: withCapabilities(seed)}
	var ops []Op
	for len(ops) < n {
		ops = append(ops, g.op())
	}
	return ops
}

type generator struct {
	r      *rand.Rand
	model  *model
	caps   bool               // see withCapabilities
	opened [8][slots + 1]kind // by actor and slot
	tmp    [8]int             // by actor: the slot of the last O_TMPFILE file, 0 if none
	attrs  []Op               // the calls that set xattrs
}

// choice is one kind of call and how often it comes.
type choice struct {
	weight int
	make   func(g *generator, o *Op)
}

var choices = []choice{
	{16, (*generator).open}, {3, (*generator).openDir}, {5, (*generator).create}, {3, (*generator).tmpfile}, {4, (*generator).close},
	{6, (*generator).read}, {6, (*generator).pread}, {7, (*generator).write}, {9, (*generator).pwrite}, {4, (*generator).lseek}, {4, (*generator).mapped},
	{3, (*generator).truncate}, {4, (*generator).ftruncate}, {4, (*generator).fallocate}, {4, (*generator).copyRange}, {2, (*generator).sync},
	{14, (*generator).stat}, {7, (*generator).fstat}, {4, (*generator).access},
	{8, (*generator).mkdir}, {5, (*generator).rmdir}, {8, (*generator).unlink}, {18, (*generator).rename}, {9, (*generator).link}, {3, (*generator).flink},
	{5, (*generator).symlink}, {3, (*generator).readlink}, {4, (*generator).mknod},
	{7, (*generator).chmod}, {2, (*generator).fchmod}, {6, (*generator).chown}, {2, (*generator).fchown}, {5, (*generator).utimes},
	{6, (*generator).setxattr}, {2, (*generator).fsetxattr}, {3, (*generator).getxattr}, {3, (*generator).listxattr}, {3, (*generator).removexattr}, {4, (*generator).setACL},
	{8, (*generator).list}, {4, (*generator).flist}, {2, (*generator).seekdir},
	{2, (*generator).chdir}, {2, (*generator).cwd}, {1, (*generator).umask}, {2, (*generator).flock}, {3, (*generator).setlk},
	{1, (*generator).exec}, {1, (*generator).deep}, {1, (*generator).longPath},
}

func (g *generator) op() Op {
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	o := Op{}
	if g.r.IntN(5) < 2 {
		o.Actor = g.r.IntN(len(Users))
	}
	x := g.r.IntN(total)
	for _, c := range choices {
		if x -= c.weight; x < 0 {
			c.make(g, &o)
			break
		}
	}
	g.model.apply(&o)
	return o
}

func (g *generator) one(n int) bool { return g.r.IntN(n) == 0 }

func pick[T any](g *generator, s ...T) T { return s[g.r.IntN(len(s))] }

func (g *generator) name() string {
	if g.one(12) {
		return names[len(names)-1]
	}
	return names[g.r.IntN(len(names)-1)]
}

// anyPath is one that nobody thought about.
func (g *generator) anyPath() string {
	switch g.r.IntN(8) {
	case 0:
		return "."
	case 1:
		return g.name() + "/" + pick(g, ".", "..", "../"+g.name())
	case 2:
		return strings.Repeat("L", 256)
	case 3:
		return g.name() + "/"
	}
	p := g.name()
	for range g.r.IntN(4) {
		p += "/" + g.name()
	}
	return p
}

// old is a path that exists, of one of the kinds if any are named; fresh is one that does not,
// in a directory that does.
func (g *generator) old(kinds ...kind) string {
	if g.one(12) {
		return g.anyPath()
	}
	if p := g.model.choose(g.r, kinds...); p != "" {
		return p
	}
	return g.anyPath()
}

func (g *generator) fresh() string {
	if g.one(10) {
		return g.anyPath()
	}
	dir := ""
	if !g.one(4) {
		dir = g.model.choose(g.r, directory)
	}
	for range 6 {
		if p := strings.TrimPrefix(dir+"/"+g.name(), "/"); g.model.kinds[p] == none {
			return p
		}
	}
	return g.anyPath()
}

// relative may let a path begin at an open directory instead of the root, where
// it will mean something else.
func (g *generator) relative(o *Op, dir *int) {
	if g.one(10) {
		*dir = g.slot(o, directory)
	}
}

func (g *generator) at(o *Op, kinds ...kind) { o.Path = g.old(kinds...); g.relative(o, &o.Dir) }
func (g *generator) atFresh(o *Op)           { o.Path = g.fresh(); g.relative(o, &o.Dir) }
func (g *generator) at2Fresh(o *Op)          { o.Path2 = g.fresh(); g.relative(o, &o.Dir2) }

// slot chooses one that was opened as such, or any other.
func (g *generator) slot(o *Op, as kind) int {
	var have []int
	for i := 1; i <= slots; i++ {
		if g.opened[o.Actor][i] == as {
			have = append(have, i)
		}
	}
	if len(have) == 0 || g.one(20) {
		return 1 + g.r.IntN(slots)
	}
	return pick(g, have...)
}

// fd chooses an open descriptor for a call that needs one. Where the actor has
// none, the call becomes the open that it lacks.
func (g *generator) fd(o *Op, as kind) {
	for i := 1; i <= slots; i++ {
		if g.opened[o.Actor][i] == as {
			o.FD = g.slot(o, as)
			return
		}
	}
	*o = Op{Actor: o.Actor}
	if as == directory {
		g.openDir(o)
	} else {
		g.open(o)
	}
}

func (g *generator) mode() uint32 {
	m := pick[uint32](g, 0o644, 0o755, 0o777, 0o700, 0o600, 0o666, 0o400, 0, 0o4755, 0o2755, 0o1777, 0o2775, 0o6777, 0o750)
	if g.caps {
		m &^= 0o6000
	}
	return m
}

func (g *generator) offset() int64 {
	switch g.r.IntN(6) {
	case 0:
		return 0
	case 1:
		return int64(g.r.IntN(64)) * 4096
	case 2:
		return int64(g.r.IntN(4 << 20))
	}
	return int64(g.r.IntN(12000))
}

func (g *generator) length() int64 {
	switch g.r.IntN(8) {
	case 0:
		return int64(g.r.IntN(64)) * 4096
	case 1:
		return int64(g.r.IntN(1 << 21))
	case 2:
		return 0
	}
	return int64(g.r.IntN(9000))
}

// openAs notes that a slot holds what the model believes to be at the path.
func (g *generator) openAs(o *Op, as kind) {
	if k := g.model.kinds[strings.TrimPrefix(path.Clean("/"+o.Path), "/")]; o.Dir == 0 && (k == other || o.Flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) == 0 && k != as) {
		g.opened[o.Actor][o.FD] = none // if it opens at all
		return
	}
	g.opened[o.Actor][o.FD] = as
}

func (g *generator) open(o *Op) {
	o.Call, o.FD = "open", 1+g.r.IntN(slots)
	g.at(o, file, file, file, symlink, other)
	o.Flags = pick(g, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR)
	// A FIFO without a peer and a device must not block the actor.
	o.Flags |= unix.O_NONBLOCK
	for _, f := range []int{unix.O_CREAT, unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_NOFOLLOW, unix.O_NOATIME, unix.O_SYNC} {
		if g.one(8) {
			o.Flags |= f
		}
	}
	if o.Flags&unix.O_EXCL != 0 && o.Flags&unix.O_CREAT == 0 {
		o.Flags &^= unix.O_EXCL // undefined
	}
	if o.Flags&unix.O_CREAT != 0 {
		o.Mode = g.mode()
	}
	g.openAs(o, file)
}

func (g *generator) openDir(o *Op) {
	o.Call, o.FD = "open", 1+g.r.IntN(slots)
	g.at(o, directory)
	o.Flags = unix.O_DIRECTORY | pick(g, unix.O_RDONLY, unix.O_RDONLY, unix.O_PATH)
	g.openAs(o, directory)
}

func (g *generator) create(o *Op) {
	o.Call, o.FD, o.Mode = "open", 1+g.r.IntN(slots), g.mode()
	g.atFresh(o)
	o.Flags = unix.O_CREAT | unix.O_RDWR | unix.O_NONBLOCK
	g.openAs(o, file)
}

func (g *generator) tmpfile(o *Op) {
	o.Call, o.FD, o.Mode = "open", 1+g.r.IntN(slots), g.mode()
	g.at(o, directory)
	o.Flags = unix.O_TMPFILE | unix.O_RDWR
	if g.one(6) {
		o.Flags |= unix.O_EXCL
	}
	g.openAs(o, file)
	g.tmp[o.Actor] = o.FD
}

func (g *generator) close(o *Op) {
	o.Call = "close"
	g.fd(o, pick(g, file, file, directory))
	g.opened[o.Actor][o.FD] = none
}

func (g *generator) read(o *Op) { o.Call, o.Len = "read", g.length(); g.fd(o, file) }
func (g *generator) write(o *Op) {
	o.Call, o.Len, o.Mode = "write", g.length(), g.r.Uint32()|1
	g.fd(o, file)
}
func (g *generator) pread(o *Op) {
	o.Call, o.Len, o.Off = "pread", g.length(), g.offset()
	g.fd(o, file)
}
func (g *generator) pwrite(o *Op) {
	o.Call, o.Len, o.Off, o.Mode = "pwrite", g.length(), g.offset(), g.r.Uint32()|1
	g.fd(o, file)
}

func (g *generator) lseek(o *Op) {
	o.Call, o.Off = "lseek", g.offset()
	o.Flags = pick(g, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END, unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_DATA, unix.SEEK_HOLE)
	g.fd(o, file)
}

func (g *generator) mapped(o *Op) {
	o.Call, o.Off, o.Len = "map", int64(g.r.IntN(6))*4096, int64(1+g.r.IntN(9000))
	if g.one(2) {
		o.Mode = g.r.Uint32() | 1
	}
	g.fd(o, file)
}

func (g *generator) truncate(o *Op) {
	o.Call, o.Off = "truncate", max(1, g.offset()) // 0: see NotGenerated
	g.at(o, file)
}
func (g *generator) ftruncate(o *Op) { o.Call, o.Off = "ftruncate", g.offset(); g.fd(o, file) }

func (g *generator) fallocate(o *Op) {
	o.Call, o.Off, o.Len = "fallocate", g.offset(), g.length()
	o.Flags = pick(g, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	if g.caps && o.Flags&unix.FALLOC_FL_PUNCH_HOLE != 0 {
		o.Flags = 0
	}
	g.fd(o, file)
}

func (g *generator) copyRange(o *Op) {
	o.Call, o.Off, o.Off2, o.Len = "copy_file_range", g.offset(), g.offset(), g.length()
	g.fd(o, file)
	if o.Call == "copy_file_range" {
		o.FD2 = g.slot(o, file)
	}
}

func (g *generator) sync(o *Op) {
	o.Call = pick(g, "fsync", "fdatasync")
	g.fd(o, pick(g, file, directory))
}

func (g *generator) stat(o *Op) {
	o.Call, o.Flags = "stat", pick(g, 0, unix.AT_SYMLINK_NOFOLLOW, unix.AT_SYMLINK_NOFOLLOW)
	g.at(o)
}
func (g *generator) fstat(o *Op)  { o.Call = "fstat"; g.fd(o, pick(g, file, file, directory)) }
func (g *generator) access(o *Op) { o.Call, o.Mode = "access", uint32(g.r.IntN(8)); g.at(o) }

func (g *generator) mkdir(o *Op)  { o.Call, o.Mode = "mkdir", g.mode()&^0o4000; g.atFresh(o) }
func (g *generator) rmdir(o *Op)  { o.Call = "rmdir"; g.at(o, directory) }
func (g *generator) unlink(o *Op) { o.Call = "unlink"; g.at(o, file, symlink, other) }
func (g *generator) rename(o *Op) {
	o.Call = "rename"
	o.Flags = pick(g, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE)
	g.at(o, pick(g, file, directory, directory, symlink, other))
	if g.one(2) || o.Flags == unix.RENAME_EXCHANGE {
		o.Path2 = g.old() // over something
		g.relative(o, &o.Dir2)
	} else {
		g.at2Fresh(o)
	}
}
func (g *generator) link(o *Op) {
	o.Call, o.Flags = "link", pick(g, 0, 0, unix.AT_SYMLINK_FOLLOW)
	g.at(o, file, file, symlink, other)
	g.at2Fresh(o)
}
func (g *generator) flink(o *Op) {
	o.Call = "flink"
	g.fd(o, file)
	if o.Call == "flink" {
		if tmp := &g.tmp[o.Actor]; *tmp != 0 && !g.one(8) {
			o.FD, *tmp = *tmp, 0
		}
		g.at2Fresh(o)
	}
}
func (g *generator) symlink(o *Op) {
	o.Call, o.Path = "symlink", pick(g, g.anyPath(), g.name(), "../"+g.name())
	g.at2Fresh(o)
}
func (g *generator) readlink(o *Op) { o.Call = "readlink"; g.at(o, symlink) }
func (g *generator) mknod(o *Op) {
	o.Call = "mknod"
	o.Mode = g.mode() | pick[uint32](g, unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK)
	if t := o.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		o.Off = int64(unix.Mkdev(1, 3)) // never 0:0, see Accepted
	}
	g.atFresh(o)
}

func (g *generator) chmod(o *Op)  { o.Call, o.Mode = "chmod", g.mode(); g.at(o) }
func (g *generator) fchmod(o *Op) { o.Call, o.Mode = "fchmod", g.mode(); g.fd(o, file) }
func (g *generator) owner(o *Op) {
	u := pick(g, Users...)
	o.UID, o.GID = pick(g, u.UID, -1), pick(g, u.GID, -1, 2000)
	if o.UID == -1 && o.GID == -1 {
		o.GID = u.GID // see NotGenerated
	}
}
func (g *generator) chown(o *Op) {
	o.Call, o.Flags = "chown", pick(g, 0, unix.AT_SYMLINK_NOFOLLOW)
	g.owner(o)
	g.at(o)
}
func (g *generator) fchown(o *Op) { o.Call = "fchown"; g.owner(o); g.fd(o, file) }
func (g *generator) utimes(o *Op) {
	t := func() int64 { return pick(g, 0, -1, int64(1e8+g.r.IntN(1e8)), int64(1e8+g.r.IntN(1e8))) }
	o.Call, o.Off, o.Off2, o.Flags = "utimes", t(), t(), pick(g, 0, unix.AT_SYMLINK_NOFOLLOW)
	g.at(o)
}

func (g *generator) attr(o *Op) {
	o.Name = pick(g, "user.u", "user.v", "trusted.t", "security.capability", "user."+strings.Repeat("n", 250), "system.posix_acl_access", "bogus")
	if o.Name == "security.capability" && !g.caps {
		o.Name = "user.w"
	}
	o.Mode = pick[uint32](g, 0, 0, 1)
}
func (g *generator) value(o *Op) {
	o.Value = pattern(g.r.Uint32(), pick[int64](g, 0, 1, 20, 300, 3000))
	if o.Name == "security.capability" {
		o.Value = capability
	}
}
func (g *generator) setxattr(o *Op) {
	o.Call, o.Flags = "setxattr", pick(g, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	g.attr(o)
	g.value(o)
	g.at(o)
	g.attrs = append(g.attrs, *o)
}

// again aims at an xattr that was set, most of the time.
func (g *generator) again(o *Op) {
	g.attr(o)
	g.at(o)
	if len(g.attrs) > 0 && !g.one(3) {
		was := g.attrs[len(g.attrs)-1-g.r.IntN(min(len(g.attrs), 6))]
		o.Dir, o.Path, o.Name, o.Mode = was.Dir, was.Path, was.Name, was.Mode
	}
}
func (g *generator) fsetxattr(o *Op) {
	o.Call, o.Flags = "fsetxattr", pick(g, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	g.attr(o)
	g.value(o)
	o.Mode = 0
	g.fd(o, file)
}
func (g *generator) getxattr(o *Op) {
	o.Call, o.Len = "getxattr", pick[int64](g, 0, 1, 4000, 4000)
	g.again(o)
}
func (g *generator) listxattr(o *Op) {
	o.Call, o.Len = "listxattr", pick[int64](g, 0, 5, 4000, 4000)
	g.again(o)
	o.Name = ""
}
func (g *generator) removexattr(o *Op) {
	o.Call = "removexattr"
	g.again(o)
}
func (g *generator) setACL(o *Op) {
	o.Call, o.Value = "setxattr", randomACL(g.r)
	o.Name = pick(g, "system.posix_acl_access", "system.posix_acl_default")
	g.at(o)
	g.attrs = append(g.attrs, *o)
}

func (g *generator) list(o *Op)  { o.Call = "list"; g.at(o, directory) }
func (g *generator) flist(o *Op) { o.Call = "flist"; g.fd(o, directory) }
func (g *generator) seekdir(o *Op) {
	o.Call, o.Len = "seekdir", int64(g.r.IntN(10))
	g.fd(o, directory)
}
func (g *generator) chdir(o *Op) { o.Call = "chdir"; g.at(o, directory) }
func (g *generator) cwd(o *Op)   { o.Call = pick(g, "getcwd", "cwdstat") }
func (g *generator) umask(o *Op) { o.Call, o.Mode = "umask", pick[uint32](g, 0, 0o022, 0o077, 0o002) }
func (g *generator) flock(o *Op) {
	o.Call, o.Flags = "flock", pick(g, unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN)
	g.fd(o, pick(g, file, directory))
}
func (g *generator) setlk(o *Op) {
	o.Call, o.Mode, o.Flags = "setlk", pick[uint32](g, unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK), g.r.IntN(2)
	o.Off, o.Len = int64(g.r.IntN(3))*100, int64(g.r.IntN(3))*100
	g.fd(o, file)
}
func (g *generator) exec(o *Op) {
	o.Call = "exec"
	g.at(o, file)
	if g.one(2) {
		o.Dir, o.Path = 0, program
	}
}

// deep makes and opens a directory whose path is longer than PATH_MAX.
func (g *generator) deep(o *Op) {
	o.Call, o.FD = "deep", 1+g.r.IntN(slots)
	o.Path, o.Len = names[len(names)-1], int64(1+g.r.IntN(20))
	g.openAs(o, directory)
}

func (g *generator) longPath(o *Op) {
	o.Call = pick(g, "stat", "mkdir", "unlink", "list")
	o.Path = strings.Repeat("a/../", 700+g.r.IntN(240)) + "a"
}
