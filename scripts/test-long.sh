#!/usr/bin/env bash
# Runs the tests that take minutes (tests/it/long.rs). Prints their output with the date, the kernel and the commit.
#
#     scripts/test-long.sh [--write]     --write: also writes the output to tests/long.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh"
into=/dev/null
[[ ${1-} != --write ]] || into=tests/long.txt
{
	printf '%s, Linux %s, %d CPUs, commit %s\n' "$(date -u +%F)" "$(uname -r)" "$(nproc)" "$(git rev-parse --short HEAD)"
	# The tests run one after the other, because each test alone loads the machine. scripts/test-valgrind.sh runs those
	# that compare with valgrind.
	cargo test --quiet --locked --test it -- --ignored --skip valgrind:: --show-output --test-threads=1 2>&1
} | tee "$into"
