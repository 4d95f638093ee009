#!/usr/bin/env bash
# Runs the tests and prints how long they took: first the sum of each module, then every test, the longest first.
#
#     scripts/test-times.sh [ARGUMENT]…      arguments of scripts/test.sh, such as --test it tree:: for one module
#     scripts/test-times.sh --read LOG       reads the output of an earlier cargo with --report-time
#
# Needs root or sudo, as the tests do. TEST_THREADS is the number of tests that run at a time. If tests of a module ran
# at the same time, the module's sum is more than the time that it took.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export TEST_THREADS=${TEST_THREADS:-4}
log=target/test-times.log
status=0
if [[ ${1-} == --read ]]; then
	log=$2
else
	host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
	# With a stable compiler, the harness accepts the option only with this variable. The build does not get the variable.
	export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh env RUSTC_BOOTSTRAP=1"
	mkdir -p target
	cargo test --locked --no-run
	HARNESS="-Z unstable-options --report-time" scripts/test.sh "$@" >"$log" 2>&1 || status=$?
	printf '%s, Linux %s, %d CPUs, %d tests at a time, commit %s\n' "$(date -u +%F)" "$(uname -r)" "$(nproc)" \
		"$TEST_THREADS" "$(git rev-parse --short HEAD)"
fi

# Lines of "SECONDS RESULT MODULE TEST". For the library and for a crate of one module, MODULE is the program.
times=$(awk '
	/^ +Running / { program = $2 == "unittests" ? $3 : $2; sub(/^tests\//, "", program); sub(/\/main\.rs$/, "", program)
		sub(/\.rs$/, "", program) }
	match($0, /<[0-9.]+s>$/) && /^test / {
		seconds = substr($0, RSTART + 1, RLENGTH - 3)
		module = program
		if (program == "it") { module = $2; sub(/::.*/, "", module) }
		print seconds, $(NF - 1), module, $2
	}' "$log")
printf '\nseconds  tests  failed  module\n'
awk '{ sum[$3] += $1; count[$3]++; failed[$3] += $2 != "ok" }
	END { for (module in sum) printf "%7.1f %6d %7d  %s\n", sum[module], count[module], failed[module], module }' \
	<<<"$times" | sort -rn
printf '\nseconds  test\n'
sort -rn <<<"$times" | awk '{ printf "%7.1f  %s%s\n", $1, $4, $2 == "ok" ? "" : "  FAILED" }'
printf '\n'
grep -E '^test result|^ +Running' "$log" | sed -E 's/ \(target.*//; s/; 0 measured.*finished in/ in/'
exit "$status"
