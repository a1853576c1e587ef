#!/bin/bash
# fuzz.sh [PATTERN]: every fuzz target for FUZZTIME (60s each), or those whose
# "package target" matches the pattern. A crasher is kept by go below the package's
# testdata/fuzz; commit it with what mends it. Fails if there was one.
#
# FUZZJOBS targets run at a time (1), each with a share of the processors. The last
# line of each says how much it did: what was bounded, and not just survived.
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
# Each target is a process group of its own, so that nothing of it goes on after this.
set -m
stop() {
	local group
	for group in $(jobs -p); do
		kill -- "-$group"
	done
	wait
	exit 130
}
trap stop INT TERM

jobs=${FUZZJOBS:-1}
workers=$((($(nproc) + jobs - 1) / jobs))

# Of several at a time the output comes in one piece, so that it does not mix.
fuzz() { # PACKAGE TARGET
	local log=$TMPDIR/$2.${1//\//_}.log status=0
	# Go's own limit on workers is -parallel; one of them does not stay on one
	# processor without GOMAXPROCS.
	if [ "$jobs" = 1 ]; then
		echo "== $1 $2"
		run "$1" "$2" || status=$?
	else
		GOMAXPROCS=$workers run "$1" "$2" >"$log" 2>&1 || status=$?
		[ $status != 0 ] || sed -i -n '/^fuzz: .*execs/h; ${ x; p; }' "$log"
		printf '== %s %s\n%s\n' "$1" "$2" "$(cat "$log")"
	fi
	[ $status = 0 ] || echo "$1 $2" >>"$TMPDIR/bad"
}

run() { # PACKAGE TARGET
	"${GO:-go}" test -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-60s}" -fuzzminimizetime 5x \
		-parallel "$workers" "$1" </dev/null
}

grep -r '^func Fuzz' --include='*_test.go' cmd delta fusefs overlay reset subvolumes |
	sed -n 's/^\(.*\)\/[^/]*:func \(Fuzz[A-Za-z0-9_]*\)(.*/.\/\1 \2/p' | sort | grep -e "${1:-.}" >"$TMPDIR/targets"
while read -r pkg name; do
	while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
		wait -n
	done
	fuzz "$pkg" "$name" &
done <"$TMPDIR/targets"
wait
[ ! -s "$TMPDIR/bad" ] || {
	echo "fuzz.sh: these have crashers; see testdata/fuzz:" >&2
	cat "$TMPDIR/bad" >&2
	exit 1
}
