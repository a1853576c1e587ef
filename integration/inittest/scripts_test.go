package inittest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/btrovl/btrovl/integration/testenv"
)

// scripts returns every shell script below integration.
func scripts(t *testing.T) []string {
	var out []string
	testenv.Must(t, filepath.WalkDir("..", func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && (strings.HasPrefix(string(b), "#!/bin/sh") || strings.HasPrefix(string(b), "#!/bin/bash")) {
			out = append(out, p)
		}
		return err
	}))
	if len(out) < 6 {
		t.Fatalf("only %d scripts found: %v", len(out), out)
	}
	return out
}

func TestScriptsParse(t *testing.T) {
	for _, s := range scripts(t) {
		sh := "sh"
		if b, _ := os.ReadFile(s); strings.HasPrefix(string(b), "#!/bin/bash") {
			sh = "bash"
		}
		if _, err := command(20*time.Second, nil, sh, "-n", s); err != nil {
			t.Error(err)
		}
	}
}

func TestShellcheck(t *testing.T) {
	tool := testenv.Command(t, "shellcheck")
	// warning and worse: notes are matters of taste
	if _, err := command(time.Minute, nil, tool, append([]string{"-S", "warning"}, scripts(t)...)...); err != nil {
		t.Error(err)
	}
}

// install.sh puts everything where init systems look, and the units refer to it.
func TestInstallAndUnits(t *testing.T) {
	dest := t.TempDir()
	out, err := command(time.Minute, nil, "sh", "../install.sh", testenv.Program(t), dest, "/usr/local")
	testenv.Must(t, err)
	for _, f := range []string{
		"usr/local/bin/btrovl", "sbin/mount.btrovl", "sbin/mount.fuse.btrovl", "usr/lib/btrovl/health",
		"usr/lib/systemd/system/btrovl-mount@.service", "usr/lib/systemd/system/btrovl-mark-good.service",
		"usr/share/initramfs-tools/hooks/btrovl", "usr/share/initramfs-tools/scripts/init-bottom/btrovl",
		"usr/lib/dracut/modules.d/90btrovl/module-setup.sh", "usr/share/doc/btrovl/init.md",
	} {
		if _, err := os.Lstat(filepath.Join(dest, f)); err != nil || !strings.Contains(out, filepath.Join(dest, f)) {
			t.Errorf("%s is not installed or not named: %v", f, err)
		}
	}
	unit, err := os.ReadFile(filepath.Join(dest, "usr/lib/systemd/system/btrovl-mount@.service"))
	testenv.Must(t, err)
	if !strings.Contains(string(unit), "ExecStart=/usr/local/bin/btrovl mount") {
		t.Error("the unit does not start the program where it was installed")
	}

	t.Run("verify", func(t *testing.T) {
		tool := testenv.Command(t, "systemd-analyze")
		// The units as they would be on a machine: programs exist, references resolve.
		root := t.TempDir()
		_, err := command(time.Minute, nil, "sh", "../install.sh", testenv.Program(t), root, "/usr")
		testenv.Must(t, err)
		dir := filepath.Join(root, "usr/lib/systemd/system")
		units, _ := filepath.Glob(dir + "/*.service")
		var args []string
		for _, u := range units {
			b, err := os.ReadFile(u)
			testenv.Must(t, err)
			text := strings.NewReplacer("/usr/bin/btrovl", root+"/usr/bin/btrovl", "/usr/lib/btrovl", root+"/usr/lib/btrovl").Replace(string(b))
			testenv.Must(t, os.WriteFile(u, []byte(text), 0o644))
			name := u
			if strings.Contains(u, "@.") { // an instance
				name = strings.Replace(u, "@.", "@mnt-view.", 1)
				testenv.Must(t, os.WriteFile(name, []byte(text), 0o644))
				testenv.Must(t, os.Remove(u))
			}
			args = append(args, name)
		}
		out, err := command(time.Minute, nil, tool, append([]string{"verify", "--man=no", "--recursive-errors=no"}, args...)...)
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "btrovl") {
				t.Errorf("systemd-analyze: %s", line)
			}
		}
	})
}

// The health script against a stand-in for the program: what it runs, and when.
func TestHealthScript(t *testing.T) {
	tests := []struct {
		verb, trial string
		checks      map[string]string
		want        string // what was called
		fails       bool
	}{
		{verb: "check", checks: map[string]string{"10-ok": "exit 0"}},
		{verb: "check", checks: map[string]string{"10-bad": "exit 3", "20-never": "touch $LOG.never"}, fails: true},
		{verb: "check"},
		{verb: "mark-good", trial: `{"deployment": 2}`, want: "mark-good --wait 4m"},
		{verb: "mark-good", trial: "null"},
		{verb: "failed", trial: `{ "deployment" : 2 }`, want: "rollback --wait 4m\nreboot"},
		{verb: "failed", trial: "null"}, // a good deployment is not thrown away
		{verb: "nonsense", fails: true},
	}
	for _, tt := range tests {
		t.Run(tt.verb+" "+tt.trial, func(t *testing.T) {
			dir := t.TempDir()
			log := filepath.Join(dir, "log")
			script := func(name, body string) string {
				p := filepath.Join(dir, name)
				testenv.Must(t, os.MkdirAll(filepath.Dir(p), 0o755))
				testenv.Must(t, os.WriteFile(p, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
				return p
			}
			prog := script("btrovl", `if [ "$1" = status ]; then echo '{ "deployment": {}, "trial" : `+tt.trial+` }'; else echo "$*" >>$LOG; fi`)
			reboot := script("reboot", "echo reboot >>$LOG")
			for name, body := range tt.checks {
				script("health.d/"+name, body)
			}
			testenv.Must(t, os.MkdirAll(dir+"/health.d/not-a-file", 0o755))
			_, err := command(time.Minute, []string{"LOG=" + log, "BTROVL=" + prog, "BTROVL_REBOOT=" + reboot,
				"BTROVL_HEALTH_D=" + dir + "/health.d"}, "../init/systemd/health", tt.verb)
			if (err != nil) != tt.fails {
				t.Errorf("error %v, want one: %v", err, tt.fails)
			}
			b, _ := os.ReadFile(log)
			if got := strings.TrimSpace(string(b)); got != tt.want {
				t.Errorf("called %q, want %q", got, tt.want)
			}
			if _, err := os.Stat(log + ".never"); err == nil {
				t.Error("went on after a failed check")
			}
		})
	}
}
