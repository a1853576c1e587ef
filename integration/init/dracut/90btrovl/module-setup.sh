#!/bin/bash
# dracut module: makes the view the root file system.
# Installed as /usr/lib/dracut/modules.d/90btrovl.

# called by dracut
check() {
	require_binaries btrovl || return 1
	return 0
}

# called by dracut
depends() {
	echo btrfs
}

# called by dracut
installkernel() {
	instmods fuse btrfs
}

# called by dracut
install() {
	inst_multiple btrovl mount umount mkdir
	inst_simple /etc/btrovl/config.toml || :
	# shellcheck disable=SC2154 # moddir is dracut's
	inst_hook pre-pivot 50 "$moddir/btrovl-boot.sh"
}
