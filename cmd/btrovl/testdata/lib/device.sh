# Makes $BTRFS/make with bases 1 and 2, bundles 1-2, 2-1 and full-2, and $BTRFS/device
# with base 1, the vendor's key, and overlays system (/), conf (/etc, follows the base)
# and data (/home, /var/lib/app).
set -e
mkdir -p tree1/etc tree1/home tree1/var/lib/app tree1/usr/bin tree1/run
echo one >tree1/etc/release; echo same >tree1/etc/same; cp /bin/cat tree1/usr/bin/tool; echo old >tree1/usr/old
seq 20000 >tree1/usr/numbers
cp -a tree1 tree2
echo two >tree2/etc/release; echo new >tree2/usr/new; rm tree2/usr/old; sed -i 's/^777$/changed/' tree2/usr/numbers
btrovl -q init $BTRFS/make
btrovl -q init $BTRFS/device
btrovl -q --pool $BTRFS/make base import 1 tree1 --counter 1
btrovl -q --pool $BTRFS/make base import 2 tree2 --counter 2
btrovl -q bundle keygen vendor --no-password
btrovl -q --pool $BTRFS/make bundle create --from 1 --to 2 --key vendor.key -o 1-2.btrovl
btrovl -q --pool $BTRFS/make bundle create --from 2 --to 1 --key vendor.key -o 2-1.btrovl
btrovl -q --pool $BTRFS/make bundle create --to 2 --key vendor.key -o full-2.btrovl
export BTROVL_POOL=$BTRFS/device
btrovl -q base import 1 tree1 --counter 1
btrovl -q key add vendor.pub
btrovl -q overlay add system --path /
btrovl -q overlay add conf --path /etc --follow-base
btrovl -q overlay add data --path /home --path /var/lib/app
