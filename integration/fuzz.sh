#!/bin/sh
# fuzz.sh [PATTERN]: every fuzz target for FUZZTIME (60s each), or those whose
# "package target" matches the pattern. A crasher is kept by go below the package's
# testdata/fuzz; commit it with what mends it. Fails if there was one.
#
#	-fuzzminimizetime 5x  Go minimises for a minute by default, and each try of a
#	                      target that makes files is slow: it looks hung
#	TMPDIR on a tmpfs     targets that apply what they are fed make many small files
set -u
cd "$(dirname "$0")/.." || exit 2
if [ -w /dev/shm ]; then
	TMPDIR=$(mktemp -d /dev/shm/btrovl-fuzz.XXXXXX)
else
	TMPDIR=$(mktemp -d)
fi
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT TERM

grep -r '^func Fuzz' --include='*_test.go' cmd delta fusefs overlay reset subvolumes |
	sed -n 's/^\(.*\)\/[^/]*:func \(Fuzz[A-Za-z0-9_]*\)(.*/.\/\1 \2/p' | sort | grep -e "${1:-.}" >"$TMPDIR/targets"
bad=0
while read -r pkg name; do
	echo "== $pkg $name"
	"${GO:-go}" test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-60s}" -fuzzminimizetime 5x \
		"$pkg" </dev/null || bad=1
done <"$TMPDIR/targets"
[ $bad = 0 ] || echo "fuzz.sh: there are crashers; see testdata/fuzz" >&2
exit $bad
