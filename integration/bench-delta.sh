#!/bin/bash
# bench-delta.sh [PAIR…]: bundles beside what others make of the same two trees.
#
#   P3  the kernel package alone: Debian 12 as released, and with security updates (default)
#   P1  a Debian 12 system with kernel and initrd: as released, and upgraded in place
#   P4  the same set of packages in Debian 12 and in Debian 13
#   P5  the kernel package of Debian 13 (modules packed by xz, the kernel by zstd), and with security updates
#   P6  as P1, with Debian 13: an initrd packed by zstd, with modules that the system has packed by xz
#   P7  an application as three squashfs images (gzip, xz, zstd): packages of Debian 12 as released, and with security updates
#
# The trees are made from Debian's mirror (apt's own sources) into read-only subvolumes of a loop
# image below WORK (default build/bench), and kept there. PAIRDIR=DIR uses trees DIR/PAIR/{old,new}
# that exist already. Every bundle is applied, and expanded to a send stream that btrfs receives; rsync
# compares that tree. PEERS="send zstd ostree bsdiff" chooses who else runs. ABLATE=1 makes bundles without
# one step each, for the table in docs/delta.md; LOW=1 one for 64 MiB of memory. Root; 30 GB of disk for all pairs.
# The table goes to standard output: pair, what, bytes, and of the runs CPU seconds, wall seconds, peak MiB; of those
# that apply also what reached the disk of the pairs.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- P3
WORK=$(readlink -m "${WORK:-build/bench}")
PEERS=${PEERS-send zstd ostree}
BTROVL=${BTROVL:-$PWD/build/btrovl}
MNT=$WORK/mnt
OWN=
mkdir -p "$WORK"

# --- trees -----------------------------------------------------------------------------------

mirror() { # main|security: from apt's sources, whichever form they have
  local all; all=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | sort -u)
  case $1 in security) grep -m1 security <<<"$all" || head -1 <<<"$all" ;; *) grep -vm1 security <<<"$all" ;; esac; }
mounted() {
  mountpoint -q "$MNT" && return
  mkdir -p "$MNT"; OWN=1
  [ -f "$WORK/pairs.img" ] || { truncate -s 24G "$WORK/pairs.img"; mkfs.btrfs -q "$WORK/pairs.img"; }
  mount -o loop,noatime "$WORK/pairs.img" "$MNT"; }
cleanup() {
  for d in "$MNT"/*/*/{proc,sys,dev}; do mountpoint -q "$d" && umount "$d"; done
  rm -rf "$WORK/run"
  [ -z "${BENCHFS:-}" ] || { unpool "$BENCHFS/btrovl-bench.$$"; unreceive; rm -rf "$BENCHFS/ostree-bench.$$"; }
  [ -z "$OWN" ] || umount "$MNT" || true; }
trap cleanup EXIT
PKGS="systemd-sysv openssh-server python3 curl ca-certificates network-manager bluez busybox openssl sudo vim-tiny"
APT=(apt-get -q -o Acquire::Check-Valid-Until=false -o Dpkg::Options::=--force-unsafe-io -y)
inside() { # DIR COMMAND…: with what packages' scripts need, and without starting services
  local d=$1 rc=0; shift
  printf '#!/bin/sh\nexit 101\n' >"$d/usr/sbin/policy-rc.d"; chmod 755 "$d/usr/sbin/policy-rc.d"
  cp /etc/resolv.conf /etc/hosts "$d/etc/"
  mount -t proc proc "$d/proc"; mount -t sysfs sys "$d/sys"; mount --bind /dev "$d/dev"
  chroot "$d" "$@" >>"$WORK/make.log" 2>&1 || rc=$?
  umount "$d/proc" "$d/sys" "$d/dev"; rm -f "$d/usr/sbin/policy-rc.d"; return $rc; }
system() { # SUITE DIR PACKAGE…
  local suite=$1 d=$2; shift 2
  debootstrap --variant=minbase "$suite" "$d" "$(mirror main)" >>"$WORK/make.log" 2>&1
  echo "deb $(mirror main) $suite main" >"$d/etc/apt/sources.list"
  inside "$d" "${APT[@]}" update; inside "$d" "${APT[@]}" --no-install-recommends install $PKGS "$@"; }
clean() { rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/tmp/*; : >"$1/etc/resolv.conf"; }
seal() { btrfs -q property set "$1" ro true; }
beside() { # PAIR: tree becomes new, as a descendant of old
  local p=$MNT/$1; seal "$p/old"; btrfs -q subvolume snapshot "$p/old" "$p/new" >/dev/null
  rsync -aHAX --checksum --delete "$p/tree/" "$p/new/"; seal "$p/new"; rm -rf "$p/tree"; }
apts() { # CODENAME main|security: options of an apt of its own, in A, and its directory in S
  local main sec; main=$(mirror main) sec=$(mirror security)
  S=$WORK/apt-$1-$2; mkdir -p "$S"/{state/lists/partial,cache/archives/partial}; : >"$S/status"
  { echo "deb $main $1 main"; [ "$2" = main ] || echo "deb $sec $1-security main"; } >"$S/sources.list"
  A=(-o Dir::Etc::sourcelist="$S/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State="$S/state"
    -o Dir::State::status="$S/status" -o Dir::Cache="$S/cache" -o APT::Architecture=amd64 -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root)
  apt-get -q "${A[@]}" update >>"$WORK/make.log" 2>&1; }
unpacked() { # DIR PACKAGE…: of the apt that apts set up
  local d=$1 deb; shift
  ( cd "$S" && rm -f ./*.deb && apt-get -q "${A[@]}" download "$@" >>"$WORK/make.log" 2>&1 && for deb in ./*.deb; do dpkg-deb -x "$deb" "$d"; done ); }
kernel() { # CODENAME main|security DIR: the newest kernel package, unpacked
  apts "$1" "$2"
  unpacked "$3" "$(apt-cache "${A[@]}" show --no-all-versions linux-image-amd64 | sed -n 's/^Depends: \(linux-image-[^ ]*\).*/\1/p')"; }
images() { # CODENAME main|security DIR: an application, packed in three ways
  local c r=$WORK/app; apts "$1" "$2"; rm -rf "$r"; mkdir -p "$r" "$3"
  unpacked "$r" python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libssl3 openssl git nginx perl-base perl-modules-5.36 libperl5.36 libsqlite3-0 libexpat1
  for c in gzip xz zstd; do mksquashfs "$r" "$3/app-$c.squashfs" -comp $c -quiet -no-progress -mkfs-time 1700000000 >>"$WORK/make.log"; done; rm -rf "$r"; }
upgraded() { # SUITE DIR PACKAGE…: a system with kernel, as released and upgraded in place
  local s=$1 p=$2 olds; shift 2
  system "$s" "$p/old" linux-image-amd64 initramfs-tools "$@"; clean "$p/old"; seal "$p/old"
  btrfs -q subvolume snapshot "$p/old" "$p/new" >/dev/null
  { echo "deb $(mirror main) $s main"; echo "deb $(mirror main) $s-updates main"; echo "deb $(mirror security) $s-security main"; } >"$p/new/etc/apt/sources.list"
  inside "$p/new" "${APT[@]}" update; inside "$p/new" "${APT[@]}" --no-install-recommends dist-upgrade
  olds=$(chroot "$p/new" dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' 'linux-image-6*' | awk '$2=="ii"{print $1}' | sort -V | head -n -1)
  [ -z "$olds" ] || inside "$p/new" "${APT[@]}" purge $olds
  clean "$p/new"; seal "$p/new"; }
trees() { # PAIR
  local p=$MNT/$1; [ -e "$p/done" ] && return
  echo "making the trees of $1 (log: $WORK/make.log)" >&2
  for t in new old; do [ ! -e "$p/$t" ] || btrfs -q subvolume delete "$p/$t" >/dev/null; done
  rm -rf "$p"; mkdir -p "$p"; btrfs -q subvolume create "$p/old" >/dev/null
  case $1 in
    P3) kernel bookworm main "$p/old"; kernel bookworm security "$p/tree"; beside P3 ;;
    P5) kernel trixie main "$p/old"; kernel trixie security "$p/tree"; beside P5 ;;
    P4) system bookworm "$p/old"; mkdir "$p/tree"; system trixie "$p/tree"; clean "$p/old"; clean "$p/tree"; beside P4 ;;
    P7) images bookworm main "$p/old"; images bookworm security "$p/tree"; beside P7 ;;
    P1) upgraded bookworm "$p" ;;
    P6) upgraded trixie "$p" zstd ;;
    *) echo "no pair $1 (P1, P3, P4, P5, P6, P7)" >&2; exit 2 ;;
  esac
  : >"$p/done"; sync; }

# --- measuring -------------------------------------------------------------------------------

row() { printf '%-4s %-26s %12s  %s\n' "$@"; }
timed() { # LABEL COMMAND: runs it, leaves "cpu wall rss" in T
  /usr/bin/time -f '%U %S %e %M' -o "$WORK/run/time" timeout "${LIMIT:-3600}" bash -c "$2" >"$WORK/run/log.$1" 2>&1 || { cat "$WORK/run/log.$1" >&2; T="failed"; return 1; }
  T=$(awk '{printf "cpu %.1f s, wall %.1f s, %d MiB", $1+$2, $3, $4/1024}' <(tail -1 "$WORK/run/time")); }
bytes() { stat -c %s "$1"; }
sectors() { awk -v d="$(basename "$(findmnt -nvo SOURCE "$BENCHFS")")" '$3 == d {print $10}' /proc/diskstats; }
applied() { # LABEL COMMAND: timed, with what was written
  local before; sync -f "$BENCHFS"; before=$(sectors)
  timed "$1" "$2" || return 1
  sync -f "$BENCHFS"; T+=", $(( ($(sectors) - before) / 2048 )) MiB written"; }
unpool() { # DIR: removes a pool
  [ -e "$1" ] || return 0
  find "$1" -mindepth 2 -maxdepth 2 -type d | while read -r s; do btrfs subvolume show "$s" >/dev/null 2>&1 && btrfs -q subvolume delete "$s" >/dev/null; done
  rm -rf "$1"; }
tars() { for x in old new; do [ -s "$WORK/run/$x.tar" ] || tar --sort=name --numeric-owner -C "$D/$x" -cf "$WORK/run/$x.tar" .; done; }

ours() {
  local r=$WORK/run
  "$BTROVL" bundle keygen "$r/vendor" --no-password >/dev/null 2>&1
  timed make "$BTROVL bundle create --from old=$D/old --to new=$D/new --key $r/vendor.key --spool $r -o $r/b.btrovl"
  row "$P" "btrovl bundle" "$(bytes "$r/b.btrovl")" "make: $T"
  update "$r/b.btrovl"
  roundtrip "$r/b.btrovl"
  [ -z "${LOW:-}" ] || low
  [ -z "${ABLATE:-}" ] || ablate; }
low() { local r=$WORK/run
  timed makelow "$BTROVL bundle create --memory low --from old=$D/old --to new=$D/new --key $r/vendor.key --spool $r -o $r/low.btrovl"
  row "$P" "btrovl bundle, 64 MiB" "$(bytes "$r/low.btrovl")" "make: $T"
  update "$r/low.btrovl"; rm "$r/low.btrovl"; }
ablate() { local r=$WORK/run step
  for step in numbers similar copies unpack members modules hints programs kernels listing; do
    timed ablate "$BTROVL bundle create --without $step --from old=$D/old --to new=$D/new --key $r/vendor.key --spool $r -o $r/a.btrovl"
    row "$P" "  without $step" "$(bytes "$r/a.btrovl")" "make: $T"; rm "$r/a.btrovl"; done; }
update() { # BUNDLE: applied in a pool of its own on the pairs' file system
  local r=$WORK/run pool=$BENCHFS/btrovl-bench.$$
  unpool "$pool"; mkdir "$pool"
  "$BTROVL" init "$pool" >/dev/null 2>&1; "$BTROVL" --pool "$pool" base import old "$D/old" >/dev/null 2>&1; "$BTROVL" --pool "$pool" key add "$r/vendor.pub" >/dev/null 2>&1
  applied apply "$BTROVL --pool $pool update --next-boot $1"
  row "$P" "  update (to disk, digest)" "" "$T"
  unpool "$pool"; }
roundtrip() { # BUNDLE: as a send stream, received by btrfs-progs, compared by rsync
  local r=$WORK/run at=$BENCHFS/btrovl-received.$$ differ
  unreceive; mkdir "$at"
  timed receive "set -o pipefail; $BTROVL bundle export-stream --key $r/vendor.pub --base $D/old --name new --spool $r $1 | btrfs -q receive $at"
  differ=$(rsync -aHAXnc --delete --itemize-changes "$D/new/" "$at/new/" | tee "$r/differ" | wc -l)
  row "$P" "  export-stream | receive" "" "$T; differences by rsync: $differ"
  unreceive; [ "$differ" = 0 ] || { head "$r/differ" >&2; exit 1; }; }
unreceive() { local at=$BENCHFS/btrovl-received.$$
  [ ! -e "$at/new" ] || btrfs -q subvolume delete "$at/new" >/dev/null
  [ ! -e "$at" ] || rmdir "$at"; }
peer_send() { local r=$WORK/run
  timed send "btrfs send -q -p $D/old $D/new -f $r/send && zstd -q -9 -T2 --long=27 $r/send -o $r/send.zst"
  row "$P" "btrfs send, zstd -9" "$(bytes "$r/send.zst")" "make: $T"; rm -f "$r"/send*; }
peer_zstd() { local r=$WORK/run; tars
  timed zstd "zstd -q -f -${ZLEVEL:-19} --long=31 --patch-from=$r/old.tar $r/new.tar -o $r/zst"
  row "$P" "zstd -${ZLEVEL:-19} --patch-from" "$(bytes "$r/zst")" "make: $T"
  timed unzstd "zstd -q -f -d --long=31 --patch-from=$r/old.tar $r/zst -o $r/out"; row "$P" "  apply" "" "$T"; rm -f "$r/out" "$r/zst"; }
peer_ostree() { local r=$WORK/run x # it holds no device nodes
  for x in old new; do btrfs -q subvolume snapshot "$D/$x" "$BENCHFS/bench-$x" >/dev/null; find "$BENCHFS/bench-$x" -xdev \( -type b -o -type c -o -type p -o -type s \) -delete; done
  ostree --repo="$r/repo" init --mode=bare-user
  for x in old new; do ostree --repo="$r/repo" commit -b $x --canonical-permissions --tree=dir="$BENCHFS/bench-$x" >/dev/null; btrfs -q subvolume delete "$BENCHFS/bench-$x" >/dev/null; done
  timed ostree "ostree --repo=$r/repo static-delta generate --inline --min-fallback-size=0 --from=$(ostree --repo="$r/repo" rev-parse old) --to=$(ostree --repo="$r/repo" rev-parse new) --filename=$r/delta"
  row "$P" "ostree static delta" "$(bytes "$r/delta")" "make: $T"
  local device=$BENCHFS/ostree-bench.$$; rm -rf "$device"
  ostree --repo="$device" init --mode=bare-user; ostree --repo="$device" pull-local "$r/repo" old >/dev/null
  applied ostreeapply "ostree --repo=$device static-delta apply-offline $r/delta && sync -f $BENCHFS"; row "$P" "  apply-offline" "" "$T"
  rm -rf "$r/repo" "$device" "$r/delta"; }
peer_bsdiff() { local r=$WORK/run; tars
  timed bsdiff "bsdiff $r/old.tar $r/new.tar $r/bsdiff"; row "$P" "bsdiff of the tars" "$(bytes "$r/bsdiff")" "make: $T"; rm -f "$r/bsdiff"; }

for P in "$@"; do
  if [ -n "${PAIRDIR:-}" ]; then D=$PAIRDIR/$P BENCHFS=$PAIRDIR; else mounted; trees "$P"; D=$MNT/$P BENCHFS=$MNT; fi
  rm -rf "$WORK/run"; mkdir -p "$WORK/run"
  ours
  for peer in $PEERS; do peer_"$peer" || row "$P" "$peer" "-" failed; done
done
