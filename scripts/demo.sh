#!/usr/bin/env bash
# Shows memleak's main use: on a program that leaks a known amount, on an ordinary shell pipeline, and as a gate.
# `make run` calls it with the path of the binary.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
memleak=$1
fixture=$(dirname "$memleak")/leak_known

cc -O2 -o "$fixture" "$here/../fixtures/leak_known.c"

show() {
	local word code=0
	printf '\n$'
	((EUID == 0)) || printf ' sudo'
	for word in "$@"; do
		if [[ $word == *' '* ]]; then word="'$word'"; fi
		printf ' %s' "$word"
	done
	printf '\n'
	"$here/as-root.sh" "$@" || code=$?
	echo "(exit code $code)"
	return "$code"
}

echo
echo "A program that leaks 1,000,000 of its 2,000,000 bytes, and all 250,000 bytes of its child:"
show "$memleak" run -- "$fixture"

echo
echo "A shell pipeline. Programs that end soon often leave freeing to the kernel:"
show "$memleak" run -- sh -c 'ls -l /usr/bin | sort -k 5 -n | tail -n 3'

echo
echo "The first program again, as a gate in CI. No process may leak more than 500 kB:"
code=0
show "$memleak" run --fail-on-leak 500kB -- "$fixture" || code=$?
if ((code != 23)); then
	echo "demo: the gate should have exited with 23" >&2
	exit 1
fi
