package fusefs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func (s *server) switchTo(l layers) SwitchReport {
	s.t.Helper()
	return s.call(request{Op: "switch", Layers: l}).Switch
}

const switchOld = `mkdir -p same chg gone/sub moved swap mnt tdir; echo same >same/f; echo old >chg/f; echo old >chg/meta; echo bye >gone/f; echo bye >gone/sub/g
echo m >moved/a; echo file >swap/tofile; mkdir swap/todir; echo in >swap/todir/x; echo old >mnt/f; mkdir mnt/d; echo old >low; ln low low2; for i in $(seq 50); do echo $i >same/n$i; done`

const switchNew = `echo new >chg/f; chmod 600 chg/meta; rm -r gone; mv moved elsewhere; rm swap/tofile; mkdir swap/tofile; echo d >swap/tofile/y
rm -r swap/todir; echo f >swap/todir; echo new >mnt/f; echo born >chg/born; echo new >low; mkdir same/newdir`

func TestSwitchOfTheBase(t *testing.T) {
	p := newPool(t)
	old := p.base("", switchOld)
	next := p.base(old, switchNew)
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{up}})
	p.sh(s.mnt, "find . -ls >/dev/null; cat chg/* low low2 same/* >/dev/null; ls chg/born same/newdir elsewhere gone/none 2>/dev/null || true")
	p.sh(s.mnt, "echo mine >same/mine; echo mine >gone/mine; mkdir tdir/t; echo up >chg/up")

	held := mustOpen(t, s.mnt+"/chg/f", unix.O_RDWR)
	gone := mustOpen(t, s.mnt+"/gone/sub/g", unix.O_RDONLY)
	goneDir := mustOpen(t, s.mnt+"/gone/sub", unix.O_RDONLY|unix.O_DIRECTORY)
	kept := mustOpen(t, s.mnt+"/same/f", unix.O_RDWR)
	stream := mustOpen(t, s.mnt+"/chg", unix.O_RDONLY|unix.O_DIRECTORY)
	unix.Getdents(int(stream.Fd()), make([]byte, 64))

	r := s.switchTo(layers{Base: next, Uppers: []upperDir{up}})
	if r.Changed == 0 || r.Nodes == 0 {
		t.Errorf("report: %+v", r)
	}
	s.eq("cat chg/f low low2 mnt/f", "new\nnew\nnew\nnew")
	s.eq("stat -c %a chg/meta; ls chg", "600\nborn\nf\nmeta\nup")
	s.eq("cat gone/mine; ls gone", "mine\nmine")
	s.eq("ls; cat elsewhere/a", "chg\nelsewhere\ngone\nlow\nlow2\nmnt\nsame\nswap\ntdir\nm")
	s.eq("cat swap/tofile/y swap/todir; ls same/newdir; cat same/mine", "d\nf\nmine")

	wantIs(t, "held", readAll(t, held), "old\n")
	wantIs(t, "gone", readAll(t, gone), "bye\n")
	wantIs(t, "kept", readAll(t, kept), "same\n")
	// A write through a descriptor of what was replaced goes to nobody else.
	if _, err := unix.Pwrite(int(held.Fd()), []byte("OLD"), 0); err != nil {
		t.Error("write to a replaced file:", err)
	}
	wantIs(t, "held, written", readAll(t, held), "OLD\n")
	s.eq("cat chg/f", "new")
	if _, err := unix.Pwrite(int(kept.Fd()), []byte("SAME"), 0); err != nil {
		t.Error("write to an unchanged file:", err)
	}
	s.eq("cat same/f", "SAME")
	var st unix.Stat_t
	for _, f := range []*os.File{held, gone, goneDir} {
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 {
			t.Errorf("%s: %v, %d links", f.Name(), err, st.Nlink)
		}
	}
	if _, err := unix.Openat(int(goneDir.Fd()), "g", unix.O_RDONLY, 0); err != unix.ENOENT {
		t.Errorf("a file of a removed directory: %v", err)
	}
	wantIs(t, "old base", p.sh(old, "cat chg/f same/f"), "old\nsame")

	if d := s.stats().Detached; d == 0 {
		t.Error("nothing is detached though old descriptors are open")
	}
	for _, f := range []*os.File{held, gone, goneDir} {
		f.Close()
	}
	p.sh(s.mnt, "echo 2 >/proc/sys/vm/drop_caches; echo 3 >/proc/sys/vm/drop_caches")
	s.switchTo(layers{Base: old, Uppers: []upperDir{up}})
	s.eq("cat chg/f low; ls elsewhere 2>&1 | grep -c 'No such'; cat moved/a gone/f gone/mine; cat same/f", "old\nold\n1\nm\nbye\nmine\nSAME")
}

func TestSwitchKeepsWhatIsMountedBelow(t *testing.T) {
	p := newPool(t)
	old := p.base("", switchOld)
	next := p.base(old, switchNew+"; rm -r tdir")
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{up}})
	testenv.Run(t, "mount", "-t", "tmpfs", "tmpfs", s.mnt+"/mnt/d")
	testenv.Run(t, "mount", "--bind", "/etc/hostname", s.mnt+"/mnt/f")
	testenv.Run(t, "mount", "-t", "tmpfs", "tmpfs", s.mnt+"/gone/sub")
	t.Cleanup(func() {
		for _, m := range []string{"/mnt/d", "/mnt/f", "/gone/sub"} {
			unix.Unmount(s.mnt+m, unix.MNT_DETACH)
		}
	})
	p.sh(s.mnt, "echo t >mnt/d/t; echo t >gone/sub/t")
	host, _ := os.ReadFile("/etc/hostname")
	s.switchTo(layers{Base: next, Uppers: []upperDir{up}})
	s.eq("cat mnt/d/t gone/sub/t", "t\nt")
	s.eq("cat mnt/f", strings.TrimRight(string(host), "\n"))
	unix.Unmount(s.mnt+"/mnt/f", unix.MNT_DETACH)
	s.eq("cat mnt/f", "new")
	s.switchTo(layers{Base: old, Uppers: []upperDir{up}})
	s.eq("cat mnt/d/t gone/sub/t chg/f", "t\nt\nold")
}

// Reset, restore and rollback exchange overlays.
func TestSwitchOfOverlays(t *testing.T) {
	p := newPool(t)
	base := p.base("", switchOld)
	sys, data := p.upper("sys", "/"), p.upper("data", "/var/app")
	s := p.mount(layers{Base: base, Uppers: []upperDir{sys, data}})
	p.sh(s.mnt, `echo mine >chg/f; rm low; mkdir -p new/dir; echo n >new/dir/f; echo d >var/app/d; mkdir gone/up; find . -ls >/dev/null; ls var/app/e 2>/dev/null || true`)
	held := mustOpen(t, s.mnt+"/chg/f", unix.O_RDWR)
	data1 := mustOpen(t, s.mnt+"/var/app/d", unix.O_RDWR)
	fresh := p.upper("sys", "/")
	s.switchTo(layers{Base: base, Uppers: []upperDir{fresh, data}}) // reset --keep data
	s.eq("cat chg/f low; ls; ls gone; cat var/app/d", "old\nold\nchg\ngone\nlow\nlow2\nmnt\nmoved\nsame\nswap\ntdir\nvar\nf\nsub\nd")
	wantIs(t, "held", readAll(t, held), "mine\n")
	if _, err := unix.Pwrite(int(data1.Fd()), []byte("D"), 0); err != nil {
		t.Error(err)
	}
	s.eq("cat var/app/d; echo again >chg/f; cat chg/f", "D\nagain")
	s.switchTo(layers{Base: base, Uppers: []upperDir{sys, data}}) // rollback
	s.eq("cat chg/f new/dir/f; ls low 2>&1 | grep -c 'No such'", "mine\nn\n1")
	// An overlay comes and another goes.
	more := p.upper("more", "/moved", "/opt/x/y")
	s.switchTo(layers{Base: base, Uppers: []upperDir{sys, more}})
	s.eq("ls var/app 2>&1 | grep -c 'No such'; ls opt/x; echo q >opt/x/y/q; cat moved/a; echo b >moved/b", "1\ny\nm")
	wantIs(t, "the new overlay", p.sh(more.Dir, "cat upper/opt/x/y/q upper/moved/b"), "q\nb")
	s.switchTo(layers{Base: base, Uppers: []upperDir{sys, data}})
	s.eq("ls moved; cat var/app/d; ls opt 2>&1 | grep -c 'No such'", "a\nD\n1")
}

// An overlay that follows the base is snapshotted while changes wait; files that
// are open go on in the snapshot.
func TestSwitchToSnapshotOfAnOverlay(t *testing.T) {
	p := newPool(t)
	old := p.base("", switchOld)
	next := p.base(old, switchNew)
	sys := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{sys}})
	p.sh(s.mnt, `echo log >same/log; echo mine >same/f; mkdir dir; echo a >dir/a; ln dir/a dir/b; find . -ls >/dev/null`)
	log := mustOpen(t, s.mnt+"/same/log", unix.O_RDWR|unix.O_APPEND)
	mine := mustOpen(t, s.mnt+"/same/f", unix.O_RDWR)
	dir := mustOpen(t, s.mnt+"/dir", unix.O_RDONLY|unix.O_DIRECTORY)
	s.call(request{Op: "freeze"})
	write := make(chan error, 1)
	go func() {
		_, err := unix.Write(int(log.Fd()), []byte("during\n"))
		write <- err
	}()
	snap := p.snapshot(sys)
	s.switchTo(layers{Base: next, Uppers: []upperDir{snap}})
	if err := <-write; err != nil {
		t.Error(err)
	}
	if _, err := unix.Write(int(log.Fd()), []byte("after\n")); err != nil {
		t.Error(err)
	}
	unix.Pwrite(int(mine.Fd()), []byte("MINE"), 0)
	if fd, err := unix.Openat(int(dir.Fd()), "new", unix.O_CREAT|unix.O_WRONLY, 0o644); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
	s.eq("cat same/log same/f; ls dir; stat -c %h dir/a; cat chg/f", "log\nduring\nafter\nMINE\na\nb\nnew\n2\nnew")
	wantIs(t, "the snapshot", p.sh(snap.Dir, "cat upper/same/log upper/same/f; ls upper/dir"), "log\nduring\nafter\nMINE\na\nb\nnew")
	wantIs(t, "the overlay from before", p.sh(sys.Dir, "cat upper/same/log upper/same/f; ls upper/dir"), "log\nmine\na\nb")
	// A nameless file of the old overlay is nobody's but its user's.
	if r := s.stats().Retired; len(r) != 0 {
		t.Errorf("still in use: %v", r)
	}
}

func TestSwitchThatFailsChangesNothing(t *testing.T) {
	p := newPool(t)
	base := p.base("", switchOld)
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: base, Uppers: []upperDir{up}})
	bad := up
	bad.Name, bad.Paths = "two", []string{"/"}
	if _, err := s.try(request{Op: "switch", Layers: layers{Base: base, Uppers: []upperDir{up, bad}}}); err == nil {
		t.Error("two overlays claim / and nobody minds")
	}
	s.eq("cat chg/f; echo x >chg/f; cat chg/f", "old\nx")
	if _, err := os.Stat(filepath.Join(up.Dir, "work")); err != nil {
		t.Error(err)
	}
	s.eq("echo still >low; cat low", "still")
}

// Bases without common history: nothing is the same object, all is exchanged.
func TestSwitchToUnrelatedBase(t *testing.T) {
	p := newPool(t)
	a, b := p.base("", switchOld), p.base("", switchOld+"\n"+switchNew)
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: a, Uppers: []upperDir{up}})
	p.sh(s.mnt, "find . -ls >/dev/null; cat chg/f same/* >/dev/null; echo up >same/up")
	held := mustOpen(t, s.mnt+"/same/f", unix.O_RDONLY)
	s.switchTo(layers{Base: b, Uppers: []upperDir{up}})
	wantIs(t, "held", readAll(t, held), "same\n")
	s.eq("cat chg/f same/f same/up; ls same | wc -l", "new\nsame\nup\n53")
	s.eq("stat -c %i same >/tmp/x.$$; ls -di same | cut -d' ' -f1 | diff - /tmp/x.$$; rm /tmp/x.$$", "")
}

// Where something is mounted on a name that a switch takes away, or gives to something
// else, the mount stays, whoever lists or looks up what is around it, until it is taken away. Then the name is the new base's.
func TestMountsHoldNames(t *testing.T) {
	p := newPool(t)
	old := p.base("", `mkdir -p d/dir/in d/totype; echo old >d/file; echo old >d/todir; echo old >d/tolink; echo old >d/same; echo stays >d/stays`)
	next := p.base(old, `rm -r d/dir d/file d/todir d/totype d/tolink; mkdir d/todir; echo new >d/todir/x; echo new >d/totype; ln -s stays d/tolink; echo new >d/same`)
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{up}})
	d := s.mnt + "/d/"
	p.sh(p.dir, "echo bound >src")
	mounts := []string{"dir/in", "totype", "file", "todir", "tolink", "same"}
	for i, m := range mounts {
		if i < 2 {
			testenv.Run(t, "mount", "-t", "tmpfs", "tmpfs", d+m)
			p.sh(s.mnt, "echo bound >d/"+m+"/f")
		} else {
			testenv.Run(t, "mount", "--bind", p.dir+"/src", d+m)
		}
		t.Cleanup(func() { unix.Unmount(d+m, unix.MNT_DETACH) })
	}
	for range 2 {
		for _, base := range []string{next, old, next} {
			s.switchTo(layers{Base: base, Uppers: []upperDir{up}})
			p.sh(s.mnt, "ls -l . d >/dev/null; find d >/dev/null; (set -C; ! echo x >d/file) 2>/dev/null; ls d/dir/none 2>/dev/null || true")
			s.eq("cat d/dir/in/f d/totype/f d/file d/todir d/tolink d/same d/stays", strings.Repeat("bound\n", 6)+"stays")
		}
	}
	for _, m := range mounts {
		testenv.Must(t, unix.Unmount(d+m, 0))
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Lstat(d + "dir"); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a name is held though nothing is mounted on it")
		}
	}
	s.eq("cd d; ls; cat todir/x totype tolink same; readlink tolink", "same\nstays\ntodir\ntolink\ntotype\nnew\nnew\nstays\nnew\nstays")
	s.eq("cd d; echo mine >file; mkdir dir; touch dir/f; cat file; ls dir", "mine\nf")
	wantIs(t, "the overlay", p.sh(up.Dir, "cat upper/d/file; ls upper/d/dir"), "mine\nf")
	s.switchTo(layers{Base: old, Uppers: []upperDir{up}})
	s.eq("cd d; cat file todir; ls totype; ls dir", "mine\nold\nf\nin")
}

// A mount in a mount namespace that is nobody's in particular is heard of, too; and who removes a name that only another
// namespace has a mount on, takes the mount with it, as on any file system.
func TestMountsElsewhereHoldNames(t *testing.T) {
	p := newPool(t)
	old := p.base("", `mkdir d; echo old >d/a; echo old >d/b`)
	next := p.base(old, `rm d/a d/b; mkdir d/b`)
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{up}})
	p.sh(p.dir, "echo bound >src")
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", `mount --bind "$0/src" "$1/d/a" && mount --bind "$0/src" "$1/d/b" && echo ready && read line`, p.dir, s.mnt)
	in, err := cmd.StdinPipe()
	testenv.Must(t, err)
	out, err := cmd.StdoutPipe()
	testenv.Must(t, err, cmd.Start())
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	s.switchTo(layers{Base: next, Uppers: []upperDir{up}})
	inside := func(want string) {
		t.Helper()
		got, err := exec.Command("nsenter", "-t", strconv.Itoa(cmd.Process.Pid), "-m", "cat", s.mnt+"/d/a", s.mnt+"/d/b").Output()
		if string(got) != want {
			t.Errorf("inside: %q, %v; expected %q", got, err, want)
		}
	}
	p.sh(s.mnt, "ls -l d >/dev/null")
	inside("bound\nbound\n")
	s.eq("cat d/a", "old")
	p.sh(s.mnt, "mkdir e; echo mine >e/f; mv e/f d/a")
	s.eq("cat d/a", "mine")
	testenv.Must(t, in.Close())
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if fi, err := os.Lstat(s.mnt + "/d/b"); err == nil && fi.IsDir() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a name is held for a namespace that is gone")
		}
	}
	s.eq("cat d/a; ls d", "mine\na\nb")
}

// A directory that has mounts below may be renamed: they go with it.
func TestHeldNamesMove(t *testing.T) {
	p := newPool(t)
	old := p.base("", `mkdir -p d/gone/in; echo old >d/file`)
	next := p.base(old, `rm -r d/file d/gone; echo new >d/other`)
	up := p.upper("sys", "/")
	s := p.mount(layers{Base: old, Uppers: []upperDir{up}})
	p.sh(p.dir, "echo bound >src")
	testenv.Run(t, "mount", "--bind", p.dir+"/src", s.mnt+"/d/file")
	testenv.Run(t, "mount", "-t", "tmpfs", "tmpfs", s.mnt+"/d/gone/in")
	t.Cleanup(func() {
		unix.Unmount(s.mnt+"/e/file", unix.MNT_DETACH)
		unix.Unmount(s.mnt+"/e/gone/in", unix.MNT_DETACH)
	})
	s.switchTo(layers{Base: next, Uppers: []upperDir{up}})
	p.sh(s.mnt, "echo t >d/gone/in/t; mv d e")
	time.Sleep(2 * otherNamespaces) // it has been looked whether something is mounted there
	s.eq("ls -l e >/dev/null; cat e/file e/gone/in/t", "bound\nt")
	testenv.Must(t, unix.Unmount(s.mnt+"/e/file", 0), unix.Unmount(s.mnt+"/e/gone/in", 0))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Lstat(s.mnt + "/e/file")
		_, derr := os.Lstat(s.mnt + "/e/gone")
		if os.IsNotExist(err) && os.IsNotExist(derr) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("names are held though nothing is mounted on them: %v, %v", err, derr)
		}
	}
	s.eq("ls e", "other")
}
