#!/usr/bin/env bash
# Shows what other tools say of benches/compare/loses.c: the runs that docs/other-tools.md rests on.
#
#     scripts/compare.sh
#
# Prints each command, the lines of its output that matter, and its exit code. Needs valgrind, heaptrack, and a gcc with
# LeakSanitizer, and no rights. A tool that is missing is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -g -o "$work/loses" benches/compare/loses.c
gcc -g -fsanitize=leak -o "$work/loses-leak-sanitizer" benches/compare/loses.c
cd "$work"

for tool in valgrind heaptrack heaptrack_print; do
	command -v "$tool" >/dev/null || {
		printf 'compare: %s is missing: install it\n' "$tool" >&2
		exit 1
	}
done

shows() { # shows PATTERN COMMAND…
	local pattern=$1 code=0
	shift
	printf '$ %s\n' "$*"
	"$@" >said 2>&1 || code=$?
	grep -E "$pattern" said || echo '(nothing)'
	printf '(exit code %d)\n\n' "$code"
}

shows 'definitely lost:' valgrind --leak-check=full --error-exitcode=23 ./loses
shows 'definitely lost:' valgrind --leak-check=full --error-exitcode=23 ./loses fork
shows 'leaked in' ./loses-leak-sanitizer
shows 'leaked in' ./loses-leak-sanitizer fork
shows 'leaked allocations' heaptrack --output "$work/one" ./loses
shows 'leaked allocations' heaptrack --output "$work/two" ./loses fork
shows 'total memory leaked' heaptrack_print --file two.zst
