#!/usr/bin/env bash
# Runs tests of counts a second time, with `--probes=inside`. tests/inside.conf lists them, and those that do not run so.
# Without the interposing counter, probes count beside the library, and both must agree.
#
#     scripts/test-inside.sh [SUITE]…
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/suites.sh
source scripts/suites.sh

conf=tests/inside.conf

die() {
	printf 'test-inside: %s\n' "$*" >&2
	exit 1
}

check_reasons
SUITES="${*:-${SUITES-}}"
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh" MEMLEAK_TEST_PROBES=inside
test=(cargo test --quiet --locked --test it --)
known=$("${test[@]}" --list 2>/dev/null)
failed=()
for suite in $(suites); do
	mapfile -t tests < <(sed -n "s/^\($suite::.*\): test$/\1/p" <<<"$known")
	while read -r name; do
		# A renamed test must not run unseen.
		[[ " ${tests[*]} " == *" $suite::$name "* ]] || die "$conf: there is no test $suite::$name"
		mapfile -t tests < <(printf '%s\n' "${tests[@]}" | grep -vx "$suite::$name")
	done < <(unrun inside "$suite")
	# Some of the tests hold processes, and demand that memleak answers in time.
	"${test[@]}" --exact "${tests[@]}" --test-threads=2 || failed+=("$suite")
done
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
