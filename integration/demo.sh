#!/bin/bash
# demo.sh [debian]: the whole idea on a real system tree, in a loop image below
# build/demo. Prints each command that it runs; every claim is checked, and a
# check that fails stops the demo with exit 1. Cleans up after itself.
#
# Without an argument the tree is this machine's own /usr and /etc, and the second
# version carries changes like an update's. With `debian` two states of Debian are
# installed by debootstrap: the release as it came out, and the same with its
# security updates.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")/.." && pwd)
kind=${1:-${DEMO:-host}}
W=$here/build/demo; M=$W/btrfs; V=$W/view
btrovl() { "$here/build/btrovl" "$@"; }
bold=; plain=; [ -t 1 ] && { bold=$(tput bold 2>/dev/null || true); plain=$(tput sgr0 2>/dev/null || true); }
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "${*//$here\//}" "$plain"; "$@"; }
ok() { printf '  ok: %s\n' "$*"; }
fail() { printf '  FAILED: %s\n' "$*" >&2; exit 1; }
check() { # TEXT COMMAND...
	local text=$1; shift
	if "$@"; then ok "$text"; else fail "$text ($*)"; fi
}
field() { # KEY: of the JSON on standard input
	python3 -c 'import json,sys; d=json.load(sys.stdin)
for k in sys.argv[1].split("."): d=d[int(k)] if isinstance(d,list) else d[k]
print(d)' "$1"
}
digest() { # POOL VERSION
	btrovl --pool "$1" base list --json | python3 -c 'import json,sys
l=json.load(sys.stdin); l=l["bases"] if isinstance(l,dict) else l
print([b["digest"] for b in l if b["version"]==sys.argv[1]][0])' "$2"
}
size() { stat -c %s "$1"; }
mib() { awk -v b="$1" 'BEGIN{printf "%.1f MiB", b/1048576}'; }

jobs_started=
cleanup() {
	local rc=$? p
	set +e
	for p in $jobs_started; do kill "$p" 2>/dev/null; done
	mountpoint -q "$V/run" && umount "$V/run"
	mountpoint -q "$V" && { BTROVL_POOL=$M/device btrovl umount "$V" >/dev/null 2>&1 || umount -l "$V"; }
	for p in proc sys dev; do umount -q "$M"/work/*/$p 2>/dev/null; done
	mountpoint -q "$M" && { umount "$M" 2>/dev/null || { sleep 1; umount -l "$M"; }; }
	rm -rf "$W"
	[ $rc = 0 ] && printf '\n%sDone in %d s; everything was taken down again.%s\n' "$bold" $SECONDS "$plain"
	exit $rc
}

[ "$(id -u)" = 0 ] || { echo "demo.sh: needs root (loop device, mounts): run as root, or: sudo make demo" >&2; exit 1; }
rm -rf "$W"; mkdir -p "$M" "$V"
trap cleanup EXIT
trap 'exit 130' INT TERM

say "A btrfs file system in a loop image stands for the disks of two machines: the maker's and the device's"
run truncate -s 24G "$W/disk.img"
run mkfs.btrfs -q "$W/disk.img" >/dev/null
run mount -o loop,noatime "$W/disk.img" "$M"
run btrovl init "$M/make"
run btrovl init "$M/device"

mkdir "$M/work"; T1=$M/work/tree1 T2=$M/work/tree2
if [ "$kind" = debian ]; then
	say "Two states of Debian: the release, and the same with its security updates"
	release=bookworm
	uris() { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' || true; }
	main=$(uris | awk '!/security/ {print; exit}'); security=$(uris | awk '/security/ {print; exit}')
	[ -n "$main" ] && [ -n "$security" ] || fail "no Debian mirrors found in apt's sources"
	run debootstrap --variant=minbase --include=openssh-server,python3,curl,ca-certificates,openssl,vim-tiny,sudo "$release" "$T1" "$main" >"$W/debootstrap.log"
	printf '#!/bin/sh\nexit 101\n' >"$T1/usr/sbin/policy-rc.d"; chmod 755 "$T1/usr/sbin/policy-rc.d"
	run cp -a --reflink=always "$T1" "$T2"
	cp /etc/resolv.conf "$T2/etc/"; mount -t proc proc "$T2/proc"
	printf 'deb %s %s main\ndeb %s %s-security main\n' "$main" "$release" "$security" "$release" >"$T2/etc/apt/sources.list"
	run chroot "$T2" apt-get -qq -o Acquire::Check-Valid-Until=false update
	DEBIAN_FRONTEND=noninteractive run chroot "$T2" apt-get -qq -y dist-upgrade >"$W/upgrade.log" 2>&1
	umount "$T2/proc"
	for t in "$T1" "$T2"; do rm -rf "$t"/var/cache/apt/* "$t"/var/lib/apt/lists/*; done
	cp "$T1/etc/apt/sources.list" "$T2/etc/apt/sources.list"
else
	say "The first version of the system: this machine's own /usr and /etc (up to ${LIMIT:=600} MiB of it, without its largest directories)"
	mkdir -p "$T1"/{home,proc,sys,dev,run,tmp,var/lib/app,var/log,root,boot}; chmod 1777 "$T1/tmp"
	# Whole directories, smallest first, so that the tree is many files rather than a few large ones.
	du -xsk --apparent-size /etc /var/lib/dpkg /usr/bin /usr/sbin /usr/libexec /usr/lib/* /usr/share/* 2>/dev/null | sort -n |
		awk -v limit=$((LIMIT * 1024)) '(n += $1) <= limit {print $2}' >"$W/directories"
	printf "$ tar -c (these directories) | tar -x\n"
	tar -c --one-file-system --xattrs --acls -C / -T <(sed 's|^/||' "$W/directories") | tar -x --xattrs --xattrs-include='*' --acls -p -C "$T1"
	for l in bin sbin lib lib64; do [ ! -L /$l ] || cp -a /$l "$T1/"; done
	[ -e "$T1/usr/lib/os-release" ] || cp -a /usr/lib/os-release "$T1/usr/lib/"
	say "The second: the same with changes like an update's (programs and libraries rebuilt, a directory renamed, files added and removed)"
	run cp -a --reflink=always "$T1" "$T2"
	run python3 "$here/integration/demo_changes.py" "$T2"
fi
echo "  $(find "$T1" | wc -l) entries, $(du -sh --apparent-size "$T1" | cut -f1)"
old_only=/etc/demo-removed-by-update; new_only=/etc/demo-new; changed=/usr/lib/os-release
printf 'release 1\n' >"$T1$old_only"; printf 'release 2\n' >"$T2$new_only"
sed -i '$a DEMO_VERSION=1' "$T1$changed"; sed -i '/DEMO_VERSION/d; $a DEMO_VERSION=2' "$T2$changed"

say "The maker imports both versions and makes a signed bundle from 1 to 2"
run btrovl --pool "$M/make" base import 1 "$T1"
run btrovl --pool "$M/make" base import 2 "$T2"
cd "$W"
run btrovl bundle keygen vendor --no-password
run btrovl --pool "$M/make" bundle create --from 1 --to 2 --key vendor.key -o 1-2.btrovl
run btrovl bundle info 1-2.btrovl
run btrovl bundle verify --key vendor.pub 1-2.btrovl

say "The same update as the scheme in use today ships it: btrfs send -p | xz"
# A parent that btrfs knows: version 1 itself, changed in place into version 2, as a maker without btrovl would do it.
run btrfs -q subvolume snapshot "$M/make/bases/1" "$M/work/next"
run rsync -aHAX --checksum --delete --inplace --no-whole-file "$T2/" "$M/work/next/"
run btrfs -q property set "$M/work/next" ro true
printf '$ btrfs send -p bases/1 next | xz -6 -T0 | wc -c\n'
send=$(btrfs send -q -p "$M/make/bases/1" "$M/work/next" | xz -6 -T0 | wc -c)
ours=$(size 1-2.btrovl)
echo "  bundle: $(mib "$ours"); btrfs send | xz: $(mib "$send")"
check "the bundle is smaller than the compressed send stream" [ "$ours" -lt "$send" ]

say "The device: the first base, whom it trusts, two overlays, and a view of it all"
export BTROVL_POOL=$M/device
run btrovl base import 1 "$T1"
run btrovl key add vendor.pub
run btrovl overlay add system --path /
run btrovl overlay add data --path /var/lib/app --path /home
run btrovl mount "$V"
run mount -t tmpfs demo "$V/run"
touch "$V/run/below"

say "Work on it: data, a changed configuration, a deleted program file"
run cp "$V/etc/passwd" "$V/var/lib/app/records"
mkdir "$V/home/user"; head -c 5000000 /dev/urandom >"$V/home/user/photo"
photo=$(sha256sum <"$V/home/user/photo")
printf '$ echo "# made on the device" >view/etc/hosts.demo\n'; echo "# made on the device" >"$V/etc/hosts.demo"
check "the overlay has it, the base does not" test -e "$M"/device/overlays/system.*/upper/etc/hosts.demo -a ! -e "$M/device/bases/1/etc/hosts.demo"
run btrovl diff system

say "Update beneath the live view, while a program holds an old file open and another keeps reading"
cat >"$W/holder.py" <<'P'
import sys, os, time
f = open(sys.argv[1], 'rb'); first = f.read(10)
print('ready', flush=True); sys.stdin.readline()
f.seek(0); sys.exit(0 if b'DEMO_VERSION=1' in f.read() else 1)
P
cat >"$W/reader.py" <<'P'
import sys, os, time
n = bad = 0; seen = set()
while not os.path.exists(sys.argv[2]):
    with open(sys.argv[1], 'rb') as f: b = f.read()
    v = {b'DEMO_VERSION=1' in b: 1, b'DEMO_VERSION=2' in b: 2}.get(True)
    n += 1; bad += v is None; seen.add(v)
print(n, bad, ' '.join(map(str, sorted(s for s in seen if s))))
P
coproc HOLD { python3 "$W/holder.py" "$V$changed"; }
hold=$HOLD_PID; jobs_started="$jobs_started $hold"; read -r _ <&"${HOLD[0]}"
exec 8>&"${HOLD[1]}"
python3 "$W/reader.py" "$V$changed" "$W/stop" >"$W/reads" & reader=$!; jobs_started="$jobs_started $reader"
check "before: the new file is not there (and the kernel has cached that)" test ! -e "$V$new_only"
check "before: the old one is" test -e "$V$old_only"
run btrovl update --dry-run 1-2.btrovl
run btrovl update 1-2.btrovl
check "the new file is there at once" test -e "$V$new_only"
check "the removed one is gone" test ! -e "$V$old_only"
check "a changed file shows version 2" grep -q DEMO_VERSION=2 "$V$changed"
check "the tmpfs below the view is still there" test -e "$V/run/below"
check "what was made on the device is still there" test -e "$V/etc/hosts.demo"
sleep 0.5; touch "$W/stop"; wait "$reader" || fail "the reader failed"
read -r n bad seen <"$W/reads"
check "a program that reads all the time saw only whole versions ($n reads, versions $seen)" [ "$bad" = 0 ]
echo >&8; exec 8>&-
if wait "$hold"; then ok "the program that held the old file open read the old content to the end"; else fail "the held file changed"; fi
check "the device's base 2 equals the maker's ($(digest "$M/device" 2 | cut -c1-16)…)" [ "$(digest "$M/device" 2)" = "$(digest "$M/make" 2)" ]

say "The new deployment is on trial until somebody says that it is good"
run btrovl status
run btrovl mark-good

say "The same bundle, expanded to a plain send stream, is what stock btrfs receive takes"
mkdir "$M/work/rx"
printf '$ btrfs send bases/1 | btrfs receive rx; btrovl bundle export-stream 1-2.btrovl | btrfs receive rx\n'
btrfs send -q "$M/device/bases/1" | btrfs receive -q "$M/work/rx"
btrovl bundle export-stream --base "$M/work/rx/1" 1-2.btrovl | btrfs receive -q "$M/work/rx"
run btrovl init "$M/work/check"
run btrovl --pool "$M/work/check" base import 2 "$M/work/rx/2"
check "the received subvolume has the digest of version 2" [ "$(digest "$M/work/check" 2)" = "$(digest "$M/make" 2)" ]

say "Back up data, then factory reset that keeps it"
run btrovl backup create data
run btrovl reset --keep data --yes
check "what was made on the device in other overlays is gone" test ! -e "$V/etc/hosts.demo"
check "every byte of data is there" [ "$(sha256sum <"$V/home/user/photo")" = "$photo" ]

say "Lose data, and restore it"
run rm -r "$V/home/user"
run btrovl restore data
check "the photo is back" [ "$(sha256sum <"$V/home/user/photo")" = "$photo" ]

say "Undo the restore, then the reset: each is a deployment, so rollback goes to the one before"
run btrovl history
run btrovl rollback
check "as before the restore: no photo" test ! -e "$V/home/user/photo"
run umount "$V/run"
run btrovl umount "$V"
run btrovl gc
run btrovl doctor
