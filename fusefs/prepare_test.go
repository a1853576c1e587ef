package fusefs

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What the programs do between Prepare and Switch is found by the switch, though it
// does not search again.
func TestSwitchPreparedBeforeAFreeze(t *testing.T) {
	p := newPool(t)
	old := p.base("", switchOld+"; mkdir -p tree/a/b; echo deep >tree/a/b/f; mkdir emptied twice; echo e >emptied/f; echo old >twice/a; ln twice/a twice/b")
	next := p.base(old, switchNew+`; echo new >tree/a/b/f; echo base >chg/hidden; echo base >chg/later; mkdir -p made/in; echo base >made/in/base
echo new >emptied/f; rm twice/a; echo new >twice/a; ln -f twice/a twice/b; mkdir gone; echo other >gone/f`)
	sys := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{sys}})
	p.sh(s.mnt, "echo mine >chg/hidden; echo mine >same/log; mkdir -p new/in; echo n >new/in/f; setfattr -n user.x -v y same/log; find . -path ./twice -prune -o -ls >/dev/null; cat chg/* >/dev/null; ls chg/later 2>/dev/null || true")
	log := mustOpen(t, s.mnt+"/same/log", unix.O_RDWR|unix.O_APPEND)
	in := mustOpen(t, s.mnt+"/new/in", unix.O_RDONLY|unix.O_DIRECTORY)
	s.call(request{Op: "prepare", Layers: layers{Base: next, Uppers: []upperDir{sys}}})
	s.eq("cat chg/f", "old")
	// A name of the overlay goes that hid one of the next base; and somebody asks for it in vain.
	p.sh(s.mnt, "rm chg/hidden; ! ls chg/hidden 2>/dev/null")
	// Directories move, with what was decided about below them, one to where the next base has a directory.
	p.sh(s.mnt, "mv tree moved-tree; ls moved-tree/a/b >/dev/null; mv new made; cat made/in/f >/dev/null; ! ls made/in/base 2>/dev/null")
	// Files change that the next base changes, too, and new ones come.
	p.sh(s.mnt, "echo mine >low; echo more >same/more; rm emptied/f; ! ls emptied/f 2>/dev/null; ls gone/sub >/dev/null; cat twice/a twice/b >/dev/null; mkdir later; echo l >later/f")

	s.call(request{Op: "freeze"})
	snap := p.snapshot(sys)
	snap.Snapshot = true
	r := s.switchTo(layers{Base: next, Uppers: []upperDir{snap}})
	if !r.Prepared || r.Frozen == 0 {
		t.Errorf("prepared: %v, frozen for %v", r.Prepared, r.Frozen)
	}
	s.eq("cat twice/a twice/b", "new\nnew") // looked up after the search
	s.eq("cat chg/f chg/hidden chg/later low low2", "new\nbase\nbase\nmine\nmine")
	s.eq("ls tree 2>&1 | grep -c 'No such'", "1")
	s.eq("ls moved-tree/a/b; cat moved-tree/a/b/f", "f\ndeep")
	if _, err := unix.Openat(int(in.Fd()), "base", unix.O_RDONLY, 0); err != nil {
		t.Error("a directory that moved after the search is not merged:", err)
	}
	s.eq("find made | sort; cat made/in/f", "made\nmade/in\nmade/in/base\nmade/in/f\nn")
	s.eq("ls emptied; ls emptied/f 2>&1 | grep -c 'No such'; cat gone/f same/more later/f", "1\nother\nmore\nl")
	if _, err := unix.Write(int(log.Fd()), []byte("after\n")); err != nil {
		t.Error(err)
	}
	wantIs(t, "the snapshot", p.sh(snap.Dir, "cat upper/same/log"), "mine\nafter")
	wantIs(t, "the overlay from before", p.sh(sys.Dir, "cat upper/same/log"), "mine")
	// A view that knows nothing yet shows the same.
	got := p.sh(s.mnt, dump)
	s.stop()
	again := p.mount(layers{Base: next, Uppers: []upperDir{snap}})
	diffText(t, "", got, p.sh(again.mnt, dump), "")
}

// A plan for other layers, or without its mounts, is not used; nor is one that was given up.
func TestSwitchNotAsPrepared(t *testing.T) {
	p := newPool(t)
	old := p.base("", switchOld)
	next := p.base(old, switchNew)
	sys, fresh := p.upper("sys", "/"), p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{sys}})
	p.sh(s.mnt, "echo mine >chg/mine; find . -ls >/dev/null")
	prepare := func() { s.call(request{Op: "prepare", Layers: layers{Base: next, Uppers: []upperDir{sys}}}) }
	for _, c := range []struct {
		what  string
		first func()
		to    layers
		want  string
	}{
		{"an overlay that is no snapshot", func() {}, layers{Base: next, Uppers: []upperDir{fresh}}, "born\nf\nmeta"},
		{"the other base", func() {}, layers{Base: old, Uppers: []upperDir{sys}}, "f\nmeta\nmine"},
		{"given up", func() { s.call(request{Op: "discard"}) }, layers{Base: next, Uppers: []upperDir{sys}}, "born\nf\nmeta\nmine"},
		{"a mount came", func() {
			if err := unix.Mount("none", s.mnt+"/mnt/d", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}, layers{Base: next, Uppers: []upperDir{sys}}, "born\nf\nmeta\nmine"},
	} {
		prepare()
		c.first()
		if r := s.switchTo(c.to); r.Prepared {
			t.Errorf("%s: the plan was used", c.what)
		}
		s.eq("ls chg", c.want)
		s.switchTo(layers{Base: old, Uppers: []upperDir{sys}})
	}
	unix.Unmount(s.mnt+"/mnt/d", unix.MNT_DETACH)
	prepare()
	if r := s.switchTo(layers{Base: next, Uppers: []upperDir{sys}}); !r.Prepared {
		t.Error("what was prepared was not used")
	}
	s.eq("ls chg; cat chg/f", "born\nf\nmeta\nmine\nnew")
}
