#!/usr/bin/env bash
# Runs the tests. It runs all of them, even if some fail. With arguments, it runs only the tests that these select. They
# are arguments of `cargo test`.
#
#     scripts/test.sh [ARGUMENT]…      for example: --test it tree::
#
# HARNESS has additional words for the tests' harness. TEST_THREADS is the number of tests that run at a time. Cargo runs
# the tests as root (make test).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The kernel attaches and removes perf-event uprobes one by one, and waits for a grace period each time. Processes that
# memleak holds prolong a grace period, and a held process waits for at most two seconds. So these tests run first and
# by themselves. They need a tenth of a processor. The test of too little memory runs with them, because memleak must not
# be interrupted there: the kernel kills it when it needs a page.
one_by_one=(
	allocators::a_function_whose_first_instruction_takes_no_probe_is_probed_further_on
	allocators::a_tail_call_within_a_wrapped_allocator_counts_once_by_every_method
	allocators::an_allocator_that_throws_is_counted_and_the_program_continues
	allocators::operators_are_counted_by_every_method
	args::with_the_older_programs_every_image_has_its_words_too
	cli::every_attach_method_counts_the_same
	doctor::doctor_reports_the_method_that_run_uses
	faults::blocks_that_the_kernel_has_no_memory_to_record_are_counted_as_lost
	loading::a_program_that_lacks_a_library_has_allocated_nothing_on_kernels_without_holds_either
	loading::without_holds_a_program_with_another_c_library_does_not_pass_either
	labels::with_the_older_programs_every_image_has_its_variables_too
	older::the_bpf_programs_for_older_kernels_count_the_same
	older::with_the_older_programs_only_a_peak_shared_by_threads_is_unknown
	private::every_method_of_attaching_takes_private_copies
	rights::multi_uprobes_need_no_more_rights_than_session_uprobes
)

# The tests of these modules hold processes, and demand that memleak answers in time. Few of them run at a time.
held=(arrivals:: holds::)
held_threads=2

read -ra harness <<<"${HARNESS-}"
test=("${CARGO:-cargo}" test --locked --no-fail-fast)
if (($# > 0)); then
	if [[ -n ${harness[*]} && " $* " != *' -- '* ]]; then
		set -- "$@" -- "${harness[@]}"
	fi
	exec env RUST_TEST_THREADS="${TEST_THREADS:-4}" "${test[@]}" "$@"
fi

# These tests read damaged files, for as long as one processor takes. They run beside the first group, which waits.
damaged=(--test bounds)

rest=(--lib --test exit_codes --test it --)
for name in "${one_by_one[@]}" "${held[@]}"; do
	rest+=(--skip "$name")
done

# A renamed test must not fall out of its group, nor a test out of all of them.
count() { # count ARGUMENT…: the number of tests that `cargo test ARGUMENT…` would run
	"${test[@]}" "$@" --list 2>/dev/null | grep -c ': test$'
}
first=$(count --test it -- --exact "${one_by_one[@]}")
all=$(count --)
parts=$((first + $(count "${damaged[@]}" --) + $(count --test it -- "${held[@]}") + $(count "${rest[@]}")))
if ((first != ${#one_by_one[@]} || parts != all)); then
	echo "scripts/test.sh: its groups have $parts of $all tests, and $first of ${#one_by_one[@]} listed ones" >&2
	exit 1
fi

status=0
said=$(mktemp)
trap 'rm -f "$said"' EXIT
nice "${test[@]}" "${damaged[@]}" -- "${harness[@]}" >"$said" 2>&1 &
RUST_TEST_THREADS=8 "${test[@]}" --test it -- "${harness[@]}" --exact "${one_by_one[@]}" || status=1
wait $! || status=1
cat "$said"
RUST_TEST_THREADS=$held_threads "${test[@]}" --test it -- "${harness[@]}" "${held[@]}" || status=1
RUST_TEST_THREADS=${TEST_THREADS:-4} "${test[@]}" "${rest[@]}" "${harness[@]}" || status=1
exit "$status"
