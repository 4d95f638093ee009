#!/usr/bin/env bash
# Runs tests a second time with other probes, as tests/probes.conf says. It also lists the tests that do not run so. With
# `inside`, probes count beside the library where there is no interposing counter, and both must agree.
#
#     scripts/test-probes.sh [--write] [PROBES [SUITE]…]
#
# --write: how many tests of each suite have passed goes to tests/long.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/suites.sh
source scripts/suites.sh
# shellcheck source=scripts/long-record.sh
source scripts/long-record.sh

conf=tests/probes.conf

die() {
	printf 'test-probes: %s\n' "$*" >&2
	exit 1
}

check_reasons
write=
if [[ ${1-} == --write ]]; then
	write=yes
	shift
fi
all=(private inside)
if (($# > 0)); then
	[[ " ${all[*]} " == *" $1 "* ]] || die "no such probes: $1"
	all=("$1")
	shift
fi
SUITES=$*
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh"
test=(cargo test --quiet --locked --test it --)
known=$("${test[@]}" --list 2>/dev/null)
failed=()
for probes in "${all[@]}"; do
	for suite in $(suites "$probes"); do
		mapfile -t tests < <(sed -n "s/^\($suite::.*\): test$/\1/p" <<<"$known")
		while read -r name; do
			# A renamed test must not run unseen.
			[[ " ${tests[*]} " == *" $suite::$name "* ]] || die "$conf: there is no test $suite::$name"
			mapfile -t tests < <(printf '%s\n' "${tests[@]}" | grep -vx "$suite::$name")
		done < <(unrun "$probes" "$suite")
		# Some of the tests hold processes, and demand that memleak answers in time.
		if MEMLEAK_TEST_PROBES=$probes "${test[@]}" --exact "${tests[@]}" --test-threads=2; then
			passed=$(printf '%s::%s (%s)\n    %s tests passed' "$probes" "$suite" "$(where_and_when)" "${#tests[@]}")
			printf '%s\n' "$passed"
			[[ ! $write ]] || record <<<"$passed"
		else
			failed+=("$probes $suite")
		fi
	done
done
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
