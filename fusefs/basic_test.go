package fusefs

import (
	"testing"
)

const smallBase = `mkdir -p etc usr/bin var/lib big; echo one >etc/a; echo two >etc/b; ln etc/b etc/b2; ln -s a etc/l
mkdir etc/d; echo x >etc/d/x; mkdir etc/d/deep; echo y >etc/d/deep/y; chmod 4755 usr/bin; echo prog >usr/bin/prog; chmod 4755 usr/bin/prog
mkfifo etc/fifo; mknod etc/null c 1 3; setfattr -n user.k -v v etc/a; for i in $(seq 300); do echo $i >big/f$i; done`

func TestBasics(t *testing.T) {
	p := newPool(t)
	base := p.base("", smallBase)
	s := p.mount(layers{Base: base, Uppers: []upperDir{p.upper("sys", "/")}})
	s.eq("cat etc/a etc/l etc/d/deep/y", "one\none\ny")
	s.eq("ls etc", "a\nb\nb2\nd\nfifo\nl\nnull")
	s.eq("ls big | wc -l; find . | wc -l", "300\n318")
	s.eq("echo new >etc/a; cat etc/a", "new")
	s.eq("echo more >>etc/b; cat etc/b2; stat -c %h etc/b etc/b2", "two\nmore\n2\n2")
	s.eq("mkdir m; echo f >m/f; cat m/f; rm etc/d/x; ls etc/d; echo again >etc/d/x; cat etc/d/x", "f\ndeep\nagain")
	s.eq("mv etc/d moved; find moved | sort; ls etc", "moved\nmoved/deep\nmoved/deep/y\nmoved/x\na\nb\nb2\nfifo\nl\nnull")
	s.eq("rm -r big; ls; mkdir big; ls big", "etc\nm\nmoved\nusr\nvar")
	s.eq("getfattr --only-values -n user.k etc/a", "v")
	s.eq("mkdir big/x; rmdir big/x; ls -a big", ".\n..")
}
