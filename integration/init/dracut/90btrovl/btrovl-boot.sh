#!/bin/sh
# dracut pre-pivot hook: $NEWROOT holds the file system of the pool; put the view there.
# The kernel command line names the pool: btrovl.pool=/btrovl. Without it nothing happens.

# shellcheck source=/dev/null
type getarg >/dev/null 2>&1 || . /lib/dracut-lib.sh

btrovl_boot() {
	pool=$(getarg btrovl.pool=) || return 0
	disk=/run/btrovl/disk
	mkdir -p "$disk"
	# Not mount --move: below systemd the mounts are shared, and shared mounts do not move.
	mount --bind "$NEWROOT" "$disk" &&
		umount "$NEWROOT" &&
		mount -o remount,rw "$disk" &&
		btrovl --pool "$disk/${pool#/}" boot "$NEWROOT"
}

btrovl_boot || die "btrovl: cannot mount the view of the pool; rebooting leads to the last good deployment"
