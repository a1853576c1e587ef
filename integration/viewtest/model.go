package viewtest

import (
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// model is what the generator believes to exist.
type model struct {
	kinds map[string]kind
	paths []string // those that exist, in an order that only the program decides
}

func newModel(plan []entry) *model {
	m := &model{kinds: map[string]kind{"": directory}}
	for _, e := range plan {
		m.set(e.path, e.kind)
	}
	return m
}

func (m *model) set(path string, k kind) {
	if m.kinds[path] == none && k != none {
		m.paths = append(m.paths, path)
	}
	m.kinds[path] = k
}

func (m *model) remove(path string) {
	delete(m.kinds, path)
	m.paths = slices.DeleteFunc(m.paths, func(p string) bool { return p == path })
}

// choose returns a path of one of the kinds, or of any kind; "" if there is none.
// What came last is chosen more often.
func (m *model) choose(r *rand.Rand, kinds ...kind) string {
	var have []string
	for _, p := range m.paths {
		if len(kinds) == 0 || slices.Contains(kinds, m.kinds[p]) {
			have = append(have, p)
		}
	}
	if len(have) == 0 {
		return ""
	}
	if n := len(have); n > 4 && r.IntN(3) == 0 {
		return have[n-1-r.IntN(4)]
	}
	return have[r.IntN(len(have))]
}

func parent(p string) string { return p[:max(strings.LastIndexByte(p, '/'), 0)] }

func (m *model) empty(dir string) bool {
	return !slices.ContainsFunc(m.paths, func(p string) bool { return parent(p) == dir })
}

func (m *model) creatable(p string) bool {
	return m.kinds[p] == none && m.kinds[parent(p)] == directory
}

// apply does to the model what the call will probably do to the targets.
func (m *model) apply(o *Op) {
	if o.Dir != 0 || o.Dir2 != 0 {
		return
	}
	switch o.Call {
	case "mkdir":
		m.create(o.Path, directory)
	case "mknod":
		if o.Mode&unix.S_IFMT == unix.S_IFREG {
			m.create(o.Path, file)
		} else {
			m.create(o.Path, other)
		}
	case "symlink":
		m.create(o.Path2, symlink)
	case "flink":
		m.create(o.Path2, file)
	case "link":
		if k := m.kinds[o.Path]; k != none && k != directory {
			m.create(o.Path2, k)
		}
	case "open":
		if o.Flags&unix.O_CREAT != 0 {
			m.create(o.Path, file)
		}
	case "unlink":
		if m.kinds[o.Path] != directory {
			m.remove(o.Path)
		}
	case "rmdir":
		if m.kinds[o.Path] == directory && m.empty(o.Path) {
			m.remove(o.Path)
		}
	case "rename":
		m.rename(o.Path, o.Path2, o.Flags)
	}
}

func (m *model) create(p string, k kind) {
	if m.creatable(p) {
		m.set(p, k)
	}
}

func (m *model) rename(from, to string, flags int) {
	kf, kt := m.kinds[from], m.kinds[to]
	if kf == none || from == to || strings.HasPrefix(to, from+"/") || strings.HasPrefix(from, to+"/") || m.kinds[parent(to)] != directory {
		return
	}
	if flags == unix.RENAME_EXCHANGE {
		if kt == none {
			return
		}
		const aside = "\x00"
		m.move(from, aside)
		m.move(to, from)
		m.move(aside, to)
		return
	}
	if kt != none {
		if flags == unix.RENAME_NOREPLACE || (kt == directory) != (kf == directory) || kt == directory && !m.empty(to) {
			return
		}
		m.remove(to)
	}
	m.move(from, to)
}

func (m *model) move(from, to string) {
	for _, p := range slices.Clone(m.paths) {
		if p == from || strings.HasPrefix(p, from+"/") {
			k := m.kinds[p]
			m.remove(p)
			m.set(to+p[len(from):], k)
		}
	}
}
