#!/bin/sh
# install.sh BINARY DESTDIR PREFIX: installs btrovl and what init systems need of it.
# Files of an init system go where that init system looks, whatever PREFIX is.
set -eu
[ $# = 3 ] || { echo "usage: install.sh BINARY DESTDIR PREFIX" >&2; exit 2; }
binary=$1 dest=$2 prefix=$3
here=$(cd "$(dirname "$0")" && pwd)

put() { # MODE FILE TARGET: with the program's path as installed
	mkdir -p "$(dirname "$dest$3")"
	sed "s|/usr/bin/btrovl|$prefix/bin/btrovl|g" "$2" >"$dest$3.new"
	chmod "$1" "$dest$3.new"
	mv "$dest$3.new" "$dest$3"
	echo "$dest$3"
}

mkdir -p "$dest$prefix/bin" "$dest/sbin"
cp "$binary" "$dest$prefix/bin/btrovl.new"
chmod 755 "$dest$prefix/bin/btrovl.new"
mv "$dest$prefix/bin/btrovl.new" "$dest$prefix/bin/btrovl"
echo "$dest$prefix/bin/btrovl"
# mount(8) looks for helpers in /sbin: "POOL /mnt btrovl defaults 0 0" in fstab.
# "mount -o remount /mnt" without a line there asks for the type in /proc/self/mounts.
for helper in mount.btrovl mount.fuse.btrovl; do
	ln -sf "$prefix/bin/btrovl" "$dest/sbin/$helper"
	echo "$dest/sbin/$helper"
done

for unit in "$here"/init/systemd/*.service; do
	put 644 "$unit" "/usr/lib/systemd/system/$(basename "$unit")"
done
put 755 "$here/init/systemd/health" /usr/lib/btrovl/health
put 755 "$here/init/initramfs-tools/hook" /usr/share/initramfs-tools/hooks/btrovl
put 755 "$here/init/initramfs-tools/init-bottom" /usr/share/initramfs-tools/scripts/init-bottom/btrovl
for f in module-setup.sh btrovl-boot.sh; do
	put 755 "$here/init/dracut/90btrovl/$f" "/usr/lib/dracut/modules.d/90btrovl/$f"
done
put 644 "$here/../docs/init.md" /usr/share/doc/btrovl/init.md
