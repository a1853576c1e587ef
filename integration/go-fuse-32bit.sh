#!/bin/sh
# go-fuse-32bit.sh DIR: makes DIR/go.mod for `go build -modfile`.
#
# go-fuse 2.12.1 does not compile for 32-bit ARM: its splice package stores the
# int that syscall.Splice returns there in an int64. DIR gets a copy of the
# module with that one file changed, and a go.mod that replaces the module by the
# copy. (`go build -overlay` would be less, but refuses files of the module
# cache.) Drop this when a release compiles.
set -eu
dir=$1
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
src=$(go list -m -f '{{.Dir}}' github.com/hanwen/go-fuse/v2)
rm -rf "$dir/go-fuse"
cp -r "$src" "$dir/go-fuse"
chmod -R u+w "$dir/go-fuse"
sed -e 's/^\(\t*\)var s\([nm]\) int64$/\1var s\2 int/' "$src/splice/pair_linux.go" >"$dir/go-fuse/splice/pair_linux.go"
if cmp -s "$src/splice/pair_linux.go" "$dir/go-fuse/splice/pair_linux.go"; then
	echo "go-fuse-32bit.sh: $src/splice looks different: is it mended upstream?" >&2
	exit 1
fi
cp go.sum "$dir/go.sum"
{ cat go.mod; echo "replace github.com/hanwen/go-fuse/v2 => $dir/go-fuse"; } >"$dir/go.mod"
