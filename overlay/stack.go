package overlay

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// stack is one arrangement of layers. It never changes: a switch makes another.
type stack struct {
	base   *layer
	uppers []*layer
	up     []*layer // by claim id; up[0] is nil: what nobody claims is read-only
	trie   *trie
}

// trie holds the claims by path. Nodes on the way to a claim, and claim roots,
// carry the flag onTrie; all others inherit their parent's claim, so that 64
// overlays cost no more than two.
type trie struct {
	path  string
	claim uint16 // id of the claim that starts here, 0 if none does
	kids  map[string]*trie
	from  *layer // upper whose directory stands in where the view has none
}

func (t *trie) child(name string) *trie {
	if t == nil {
		return nil
	}
	return t.kids[name]
}

// find returns the trie node of a path, nil if no claim is at or below it.
func (s *stack) find(path string) *trie {
	t := s.trie
	for path != "" && t != nil {
		var name string
		name, path, _ = strings.Cut(path, "/")
		t = t.child(name)
	}
	return t
}

// hasBelow says that a claim lies at or below t.
func (t *trie) hasBelow() bool { return t != nil && (t.claim != 0 || len(t.kids) > 0) }

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// claimIDs gives every path that was ever claimed in this union a number, so
// that nodes need not be told when only the layer behind a claim changes.
type claimIDs map[string]uint16

func (m claimIDs) id(path string) (uint16, error) {
	if id, ok := m[path]; ok {
		return id, nil
	}
	if len(m) >= 1<<16-2 {
		return 0, &ConfigError{Reason: "too many different claims in one mount"}
	}
	id := uint16(len(m) + 1)
	m[path] = id
	return id, nil
}

// newStack opens the layers of c. A layer that prev has already is taken from
// there. The caller owns one use of each layer (dropStack gives them back).
func newStack(c Config, ids claimIDs, prev *stack) (_ *stack, err error) {
	if c.Base == nil {
		return nil, &ConfigError{Reason: "there is no base"}
	}
	if len(c.Uppers) > MaxUppers {
		return nil, &ConfigError{Reason: fmt.Sprintf("%d overlays, at most %d are possible", len(c.Uppers), MaxUppers)}
	}
	s := &stack{trie: &trie{}}
	defer func() {
		if err != nil {
			s.drop(nil)
		}
	}()
	if prev != nil && prev.base.same(c.Base) {
		s.base = prev.base
	} else if s.base, err = newLayer(c.Base, ""); err != nil {
		return nil, &ConfigError{Reason: fmt.Sprintf("cannot open the base %s: %v", c.Base.Name(), err)}
	}
	s.base.retain()
	for i := range c.Uppers {
		if err := s.addUpper(&c.Uppers[i], ids, prev); err != nil {
			return nil, err
		}
	}
	s.up = make([]*layer, len(ids)+1)
	s.fill(s.trie)
	return s, nil
}

func (s *stack) addUpper(u *Upper, ids claimIDs, prev *stack) error {
	fail := func(format string, a ...any) error { return &ConfigError{u.Name, fmt.Sprintf(format, a...)} }
	for _, l := range s.uppers {
		if l.over == u.Name {
			return fail("there are two of that name")
		}
	}
	l := prev.upper(u)
	if l == nil {
		var err error
		if l, err = newUpper(u); err != nil {
			return fail("cannot open %s: %v", u.Dir.Name(), err)
		}
		l.num = s.number(u.Name, prev)
	}
	l.retain()
	s.uppers = append(s.uppers, l)
	for _, p := range u.Paths {
		path, err := cleanClaim(p)
		if err != nil {
			return fail("%v", err)
		}
		if err := s.makeClaimDir(l, path); err != nil {
			return fail("cannot make the directory of its claim /%s: %v", path, err)
		}
		id, err := ids.id(path)
		if err != nil {
			return err
		}
		if err := s.claim(path, id, l); err != nil {
			return fail("%v", err)
		}
	}
	return nil
}

// upper returns the layer that serves u already.
func (s *stack) upper(u *Upper) *layer {
	if s == nil {
		return nil
	}
	for _, l := range s.uppers {
		if l.over == u.Name && l.ro == u.ReadOnly && l.sub(u) {
			return l
		}
	}
	return nil
}

// sub says whether l is the upper/ of u's subvolume.
func (l *layer) sub(u *Upper) bool {
	fd, err := openBeneath(int(u.Dir.Fd()), "upper", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var a, b Attr
	if (at{fd, ""}).stat(&a) != nil || (at{l.root, ""}).stat(&b) != nil {
		return false
	}
	return a.Ino == b.Ino && a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor
}

// number keeps the number of an overlay over a switch (its files keep their
// inode numbers), and gives a new one the lowest that is free.
func (s *stack) number(name string, prev *stack) uint8 {
	used := map[uint8]bool{0: true}
	for _, l := range s.uppers {
		used[l.num] = true
	}
	if prev != nil {
		for _, l := range prev.uppers {
			if l.over == name && !used[l.num] {
				return l.num
			}
			used[l.num] = true
		}
	}
	for n := uint8(1); ; n++ {
		if !used[n] || n == 1<<inoLayerBits-1 {
			return n
		}
	}
}

func (s *stack) claim(path string, id uint16, l *layer) error {
	t := s.trie
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		k := t.kids[name]
		if k == nil {
			k = &trie{path: joinPath(t.path, name), from: l}
			if t.kids == nil {
				t.kids = map[string]*trie{}
			}
			t.kids[name] = k
		}
		t = k
	}
	if t.claim != 0 {
		return fmt.Errorf("its claim /%s belongs to another overlay already", path)
	}
	t.claim, t.from = id, l
	return nil
}

// fill sets up[id] for all claims.
func (s *stack) fill(t *trie) {
	if t.claim != 0 {
		s.up[t.claim] = t.from
	}
	for _, k := range t.kids {
		s.fill(k)
	}
}

// layer returns the upper behind a claim, nil if there is none (any more).
func (s *stack) layer(claim uint16) *layer {
	if int(claim) < len(s.up) {
		return s.up[claim]
	}
	return nil
}

// drop gives back the stack's use of its layers; gone is told of each that
// nobody uses any more.
func (s *stack) drop(gone func(*layer)) {
	for _, l := range append([]*layer{s.base}, s.uppers...) {
		if l != nil && l.release() && gone != nil {
			gone(l)
		}
	}
}

// makeClaimDir makes the directories of a claim in its upper, each with the
// attributes that the base's directory has.
func (s *stack) makeClaimDir(l *layer, path string) error {
	if l.ro || path == "" {
		return nil
	}
	done := ""
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		dir, err := l.open(done, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		done = joinPath(done, name)
		var st Attr
		err = at{dir, name}.stat(&st)
		if err == unix.ENOENT {
			err = makeShell(l, at{dir, name}, s.base, done)
		} else if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = fmt.Errorf("/%s in its upper is not a directory", done)
		}
		unix.Close(dir)
		if err != nil {
			return err
		}
	}
	return nil
}

// makeShell makes the directory dst of layer l with the attributes of the
// base's directory path, or plain ones if there is none.
func makeShell(l *layer, dst at, base *layer, path string) error {
	tmp := l.work.temp()
	if err := unix.Mkdirat(tmp.fd, tmp.name, 0o755); err != nil {
		return err
	}
	if fd, err := base.open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0); err == nil {
		var st Attr
		if err = (at{fd, ""}).stat(&st); err == nil {
			err = copyMeta(tmp, at{fd, ""}, &st)
		}
		unix.Close(fd)
		if err != nil {
			removeTree(tmp.fd, tmp.name)
			return err
		}
	}
	return unix.Renameat2(tmp.fd, tmp.name, dst.fd, dst.name, unix.RENAME_NOREPLACE)
}
