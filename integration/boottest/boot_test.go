package boottest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrovl/btrovl/integration/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// command runs a program with a time limit.
func command(limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.WaitDelay = 5 * time.Second
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// machine is a computer with one disk.
type machine struct {
	kernel, initramfs, disk, dir string
	cmdline, memory              string // "": those of integration/init/shell
	boots                        int
}

// newMachine makes one with base 1 and overlays system and data, and the bundle 1-2.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getenv("BTROVL_BOOT") == "" {
		t.Skip("boots a machine: make test-boot")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the machine is an amd64 one")
	}
	testenv.Root(t)
	testenv.Command(t, "qemu-system-x86_64")
	dir := testenv.Dir(t)
	btrovl := testenv.Program(t)
	m := &machine{dir: dir, disk: filepath.Join(dir, "disk.img")}
	var modules string
	m.kernel, modules = kernel(t)
	m.initramfs = initramfs(t, btrovl, modules)

	mnt := filepath.Join(dir, "mnt")
	testenv.Must(t, testenv.MountImage(m.disk, mnt, 2<<30))
	run := func(pool string, args ...string) {
		t.Helper()
		_, err := command(2*time.Minute, btrovl, append([]string{"--pool", pool}, args...)...)
		testenv.Must(t, err)
	}
	maker, device := mnt+"/maker", mnt+"/btrovl"
	run(maker, "init", maker)
	run(device, "init", device)
	for version := 1; version <= 2; version++ {
		tree := fmt.Sprintf("%s/tree%d", dir, version)
		testenv.Must(t, os.Mkdir(tree, 0o755))
		baseTree(t, tree, btrovl, version)
		run(maker, "base", "import", strconv.Itoa(version), tree)
	}
	run(device, "base", "import", "1", dir+"/tree1")
	run(maker, "bundle", "keygen", dir+"/vendor", "--no-password")
	run(maker, "bundle", "create", "--from", "1", "--to", "2", "--key", dir+"/vendor.key", "-o", mnt+"/1-2.btrovl")
	testenv.Must(t, testenv.RemoveTree(maker))
	run(device, "key", "add", dir+"/vendor.pub")
	run(device, "overlay", "add", "system", "--path", "/")
	run(device, "overlay", "add", "data", "--path", "/home")
	unix.Sync()
	testenv.Must(t, unix.Unmount(mnt, 0))
	return m
}

// A run of the machine: what it said on the serial line.
type bootRun struct {
	console string
	cmd     *exec.Cmd
	done    chan struct{}
}

// start boots the machine; do is what its init does.
func (m *machine) start(t *testing.T, do string, extra ...string) *bootRun {
	t.Helper()
	m.boots++
	r := &bootRun{console: filepath.Join(m.dir, fmt.Sprintf("console%d", m.boots)), done: make(chan struct{})}
	cmdline, memory := m.cmdline, m.memory
	if cmdline == "" {
		cmdline, memory = "quiet btrovl.disk=/dev/vda btrovl.pool=/btrovl btrovl.do="+do, "768"
	}
	r.cmd = exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", memory,
		"-kernel", m.kernel, "-initrd", m.initramfs,
		"-append", "console=ttyS0 panic=1 no_timer_check "+cmdline+" "+strings.Join(extra, " "),
		"-drive", "file="+m.disk+",format=raw,if=none,id=d,cache=writeback,discard=unmap", "-device", "virtio-blk-pci,drive=d",
		"-serial", "file:"+r.console)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.Must(t, r.cmd.Start())
	go func() { r.cmd.Wait(); close(r.done) }()
	t.Cleanup(func() { r.cut() })
	return r
}

// cut pulls the plug.
func (r *bootRun) cut() {
	r.cmd.Process.Kill()
	<-r.done
}

func (r *bootRun) said() string {
	b, _ := os.ReadFile(r.console)
	return strings.ReplaceAll(string(b), "\r", "")
}

// await waits until the machine has said a line that matches, and returns its groups.
func (r *bootRun) await(pattern string, limit time.Duration) ([]string, error) {
	re := regexp.MustCompile("(?m)^GUEST " + pattern + "$")
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if m := re.FindStringSubmatch(r.said()); m != nil {
			return m, nil
		}
		select {
		case <-r.done:
			if m := re.FindStringSubmatch(r.said()); m != nil {
				return m, nil
			}
			return nil, fmt.Errorf("the machine went off without saying %q", pattern)
		default:
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the machine did not say %q in %v", pattern, limit)
		}
	}
}

// bootLimit is generous: emulation on a loaded machine is slow.
const bootLimit = 4 * time.Minute

// do boots, waits for the machine to say all lines and to switch itself off.
func (m *machine) do(t *testing.T, do string, lines ...string) *bootRun {
	t.Helper()
	r := m.start(t, do, "btrovl.bundle=1-2.btrovl")
	start := time.Now()
	for _, l := range lines {
		if _, err := r.await(l, bootLimit); err != nil {
			t.Fatalf("%v\n%s", err, r.said())
		}
	}
	select {
	case <-r.done:
	case <-time.After(bootLimit):
		r.cut()
		t.Fatalf("the machine does not switch off:\n%s", r.said())
	}
	t.Logf("boot %d (%s): %v", m.boots, do, time.Since(start).Round(100*time.Millisecond))
	return r
}

// A trial on a whole machine: it falls back when it is not marked good, and stays when
// it is.
func TestBootTrial(t *testing.T) {
	m := newMachine(t)
	m.do(t, "update", `version 1 root fuse\S*`, "update 0")
	// Three tries, each ended by the plug.
	for left := 2; left >= 0; left-- {
		r := m.start(t, "hang")
		for _, l := range []string{"version 2 root .*", fmt.Sprintf("trial %d", left), "hanging"} {
			if _, err := r.await(l, bootLimit); err != nil {
				t.Fatalf("%v\n%s", err, r.said())
			}
		}
		r.cut()
	}
	m.do(t, "check", "version 1 root .*", "trial ", "sound")
	m.do(t, "update", "version 1 root .*", "update 0")
	m.do(t, "good", "version 2 root .*", "trial 2", "good 0")
	m.do(t, "check", "version 2 root .*", "trial ", "sound")
	m.do(t, "rollback", "version 2 root .*", "rollback 0")
	m.do(t, "check", "version 1 root .*", "sound")
}

// The machine works without pause, and its power is cut at random moments.
func TestBootPowerCuts(t *testing.T) {
	m := newMachine(t)
	cuts := 10
	if s := os.Getenv("BTROVL_BOOT_CUTS"); s != "" {
		var err error
		cuts, err = strconv.Atoi(s)
		testenv.Must(t, err)
	}
	rng := rand.New(rand.NewPCG(1, uint64(cuts)))
	acked, did := 0, 0
	count := regexp.MustCompile(`(?m)^GUEST ack (\d+)$`)
	for i := range cuts {
		r := m.start(t, "work")
		if _, err := r.await(`count \d+`, bootLimit); err != nil {
			t.Fatalf("cut %d: %v\n%s", i, err, r.said())
		}
		time.Sleep(time.Duration(rng.IntN(6000)) * time.Millisecond)
		r.cut()
		for _, g := range count.FindAllStringSubmatch(r.said(), -1) {
			n, err := strconv.Atoi(g[1])
			testenv.Must(t, err)
			acked = max(acked, n)
		}
		did += strings.Count(r.said(), "GUEST did ")
		c := m.do(t, "check", `version [12] root fuse\S*`, "sound")
		g, err := c.await(`count (\d+)`, time.Second)
		testenv.Must(t, err)
		if n, _ := strconv.Atoi(g[1]); n < acked {
			t.Errorf("cut %d: %d was acknowledged, %d is there", i, acked, n)
		}
	}
	t.Logf("%d power cuts, %d commands done, %d writes acknowledged, none lost", cuts, did, acked)
	if did == 0 {
		t.Error(errors.New("the machine did not get to work"))
	}
}
