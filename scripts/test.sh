#!/usr/bin/env bash
# Runs the tests: all of them, whatever fails. With arguments only what these say: those of `cargo test`.
#
#     scripts/test.sh [ARGUMENT]…      as --test it tree::
#
# HARNESS has more words for the tests' harness. Cargo runs the tests as root (make test).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tests whose probes are attached and taken away one by one. They wait for one grace period of the kernel's after the
# other, which processes that memleak holds draw out; and those wait for answers in the meantime, two seconds at the
# most. So these tests run first and by themselves. They need a tenth of a processor.
one_by_one=(
	allocators::a_function_whose_first_instruction_takes_no_probe_is_probed_further_on
	allocators::a_tail_call_within_a_wrapped_allocator_counts_once_by_every_method
	allocators::an_allocator_that_throws_is_counted_and_the_program_continues
	allocators::operators_are_counted_by_every_method
	cli::every_attach_method_counts_the_same
	doctor::doctor_reports_the_method_that_run_uses
	older::with_the_older_programs_only_a_peak_shared_by_threads_is_unknown
	older::the_bpf_programs_for_older_kernels_count_the_same
	rights::multi_uprobes_need_no_more_rights_than_session_uprobes
)

read -ra harness <<<"${HARNESS-}"
test=("${CARGO:-cargo}" test --locked --no-fail-fast)
if (($# > 0)); then
	if [[ -n ${harness[*]} && " $* " != *' -- '* ]]; then
		set -- "$@" -- "${harness[@]}"
	fi
	exec env RUST_TEST_THREADS="${TEST_THREADS:-6}" "${test[@]}" "$@"
fi

status=0
log=$(RUST_TEST_THREADS=4 "${test[@]}" --test it -- --list --exact "${one_by_one[@]}" 2>/dev/null) || status=1
if (($(grep -c ': test$' <<<"$log") != ${#one_by_one[@]})); then
	echo 'test.sh: names of tests that are not there' >&2
	exit 1
fi
skipped=()
for name in "${one_by_one[@]}"; do
	skipped+=(--skip "$name")
done
RUST_TEST_THREADS=4 "${test[@]}" --test it -- "${harness[@]}" --exact "${one_by_one[@]}" || status=1
RUST_TEST_THREADS=${TEST_THREADS:-6} "${test[@]}" -- "${harness[@]}" --exact "${skipped[@]}" || status=1
exit "$status"
