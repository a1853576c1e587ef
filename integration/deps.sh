#!/bin/sh
# deps.sh build|test|demo|bench|boot: installs the Debian packages that a make
# target needs and that are missing. Says what is missing where it cannot install
# (not root, or not a Debian system) and fails.
set -eu

need= # packages to install
want() { # COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || [ -x "/sbin/$1" ] || [ -x "/usr/sbin/$1" ] || need="$need $2"
}

newest_go() { # true if the go command can build this module (it fetches a newer toolchain by itself from 1.21 on)
	command -v go >/dev/null 2>&1 || return 1
	v=$(go env GOVERSION 2>/dev/null | sed 's/^go1\.\([0-9]*\).*/\1/')
	[ "${v:-0}" -ge 21 ]
}

want_python() { # with its standard library, which python3-minimal lacks
	python3 -c 'import gzip, json, subprocess' 2>/dev/null || need="$need python3"
}

want_go() {
	newest_go && return
	# Debian 12's own Go is too old to fetch a toolchain: the one in backports can.
	need="$need golang-go ca-certificates"
	. /etc/os-release 2>/dev/null || true
	[ "${VERSION_CODENAME:-}" = bookworm ] && backports=bookworm-backports || backports=
}

common() {
	want git git; want make make; want_go
}
tests() {
	common
	want mkfs.btrfs btrfs-progs; want xz xz-utils; want zstd zstd; want bsdiff bsdiff; want minisign minisign
	want setfattr attr; want setfacl acl; want strace strace; want rsync rsync; want pigz pigz
	want_python; want cpio cpio; want losetup mount; want zip zip; want bzip2 bzip2; want setcap libcap2-bin; want mksquashfs squashfs-tools
	want shellcheck shellcheck; want systemd-analyze systemd
}

backports=
case "${1:-}" in
build) common ;;
test) tests ;;
demo) want mkfs.btrfs btrfs-progs; want xz xz-utils; want rsync rsync; want_python
      [ "${DEMO:-}" != debian ] || want debootstrap debootstrap ;;
bench) tests; want ostree ostree; want fuse-overlayfs fuse-overlayfs; want fusermount3 fuse3; want fio fio; want debootstrap debootstrap
       want xdelta3 xdelta3; want casync casync; want cc gcc; want time time; want systemd-nspawn systemd-container ;;
boot) tests; want qemu-system-x86_64 qemu-system-x86; want busybox busybox-static ;;
*) echo "usage: deps.sh build|test|demo|bench|boot" >&2; exit 2 ;;
esac
[ -n "$need" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps.sh: missing, and this is not a Debian system: install what provides:$need" >&2; exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "deps.sh: missing Debian packages:$need
hint: run as root, or: sudo apt-get install$need" >&2; exit 1
fi
echo "deps.sh: installing$need" >&2
export DEBIAN_FRONTEND=noninteractive
target=
if [ -n "$backports" ] && ! apt-cache policy 2>/dev/null | grep -q "n=$backports"; then
	# The mirror that this machine uses already, with the backports suite added.
	mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' \
		/etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | grep -v security | head -n 1)
	[ -z "$mirror" ] || echo "deb $mirror $backports main" >/etc/apt/sources.list.d/btrovl-backports.list
fi
[ -z "$backports" ] || target="-t $backports"
apt-get -qq update
# shellcheck disable=SC2086 # both are lists
case " $need " in
*" golang-go "*)
	apt-get -qq install -y --no-install-recommends $target golang-go ca-certificates >/dev/null
	need=$(echo " $need " | sed 's/ golang-go / /; s/ ca-certificates / /') ;;
esac
# shellcheck disable=SC2086
[ -z "$(echo "$need" | tr -d ' ')" ] || apt-get -qq install -y --no-install-recommends $need >/dev/null
