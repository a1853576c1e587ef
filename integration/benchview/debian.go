package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Twenty packages of all kinds, with what they need: programs and libraries, maintainer
// scripts, alternatives, users, many small files (Python's, Perl's, Vim's).
var debianPackages = strings.Fields(`bc bison ca-certificates cpio cron curl dbus file flex gawk git gnupg less lsof
	openssh-server psmisc python3 rsync vim-nox wget`)

const debianRelease = "bookworm"

// What a small device starts: logging, network, remote login, timers.
const debianServices = "systemd-sysv,dbus,udev,rsyslog,cron,openssh-server,systemd-timesyncd,iproute2,python3"

// makeDebian installs a minimal Debian in dir and fetches the packages, so that no
// measurement waits for the network. The mirror is that of this machine's apt.
func makeDebian(ctx context.Context, dir string) error {
	if err := debootstrap(ctx, dir); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/sbin/policy-rc.d"), []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return err
	}
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "etc/resolv.conf"), b, 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"-qq", "update"}, append([]string{"-qq", "-y", "--download-only", "install"}, debianPackages...)} {
		if err := command(ctx, "chroot", append([]string{dir, "apt-get"}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

func debootstrap(ctx context.Context, dir string, options ...string) error {
	mirror, err := debianMirror("/etc/apt")
	if err != nil {
		return err
	}
	note("debootstrap of Debian %s in %s (minutes)", debianRelease, filepath.Base(dir))
	return command(ctx, "debootstrap", append(append([]string{"--variant=minbase"}, options...), debianRelease, dir, mirror)...)
}

// makeBoot installs a Debian that boots with its services, says so, and ends.
func makeBoot(ctx context.Context, dir string) error {
	if err := debootstrap(ctx, dir, "--include="+debianServices); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"booted.service": "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/bin/touch /booted\nExecStart=/bin/systemctl --force --force poweroff\n",
		"booted.target":  "[Unit]\nRequires=multi-user.target booted.service\nAfter=multi-user.target\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "etc/systemd/system", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// boot starts a container on the target, and waits until all services have started.
func boot(j *job) (cost float64, err error) {
	var run unix.Statfs_t
	if err := unix.Statfs("/run", &run); err != nil {
		return 0, err
	}
	const spread = "/run/systemd/nspawn" // must be memory, which it is not where this runs in a container itself
	if run.Type != unix.TMPFS_MAGIC {
		if err := os.MkdirAll(spread, 0o755); err != nil {
			return 0, err
		}
		if err := unix.Mount("tmpfs", spread, "tmpfs", 0, ""); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, unmount(spread)) }()
	}
	booted := j.path("boot", "booted")
	if err := os.Remove(booted); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	cost, err = j.timed("/", "systemd-nspawn", "--quiet", "--directory="+j.path("boot"), "--machine=benchview", "--register=no", "--keep-unit",
		"--console=pipe", "--boot", "systemd.unit=booted.target")
	if err != nil {
		return 0, err
	}
	if _, err := os.Stat(booted); err != nil {
		return 0, fmt.Errorf("the container ended before its services had started: %w", err)
	}
	return cost, nil
}

// debianMirror returns the first mirror in apt's sources that is not one of security
// updates.
func debianMirror(apt string) (string, error) {
	files, err := filepath.Glob(filepath.Join(apt, "sources.list.d", "*"))
	if err != nil {
		return "", err
	}
	for _, name := range append(files, filepath.Join(apt, "sources.list")) {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			fields := strings.Fields(sc.Text())
			if len(fields) < 2 || fields[0] != "URIs:" && fields[0] != "deb" {
				continue
			}
			for _, uri := range fields[1:] {
				if strings.Contains(uri, "://") && !strings.Contains(uri, "security") {
					return uri, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%s names no Debian mirror", apt)
}

// aptInstall installs the packages in a chroot on the target. Removing them again is not
// measured.
func aptInstall(j *job) (cost float64, err error) {
	root := j.path("debian")
	for _, dir := range []string{"proc", "dev"} {
		to := filepath.Join(root, dir)
		if err := unix.Mount("/"+dir, to, "", unix.MS_BIND, ""); err != nil {
			return 0, &os.PathError{Op: "mount", Path: to, Err: err}
		}
		defer func() { err = errors.Join(err, unmount(to)) }()
	}
	apt := func(args ...string) (float64, error) {
		env := []string{"-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
		return j.timed("/", "env", append(append(env, "chroot", root, "apt-get", "-qq", "-y"), args...)...)
	}
	if cost, err = apt(append([]string{"--no-download", "install"}, debianPackages...)...); err != nil {
		return 0, err
	}
	_, err = apt(append([]string{"purge", "--autoremove"}, debianPackages...)...)
	return cost, err
}
