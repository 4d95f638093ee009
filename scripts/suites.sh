# shellcheck shell=bash
# To be sourced: which tests run in which places, by a table such as tests/kernels.conf. The caller has `die`, and
# the table's name in `conf`.

# shellcheck disable=SC2154 # conf is the caller's
rows() { # rows KIND: the table's lines of that kind, without the word
	sed -n "s/^$1[[:space:]]\+//p" "$conf"
}

# The suites to run: of the table's, those that SUITES names, if it names any.
suites() {
	local suite
	for suite in $(rows suite); do
		if [[ -z ${SUITES-} || " $SUITES " == *" $suite "* ]]; then
			printf '%s\n' "$suite"
		fi
	done
}

# Ends where a test is left out and nothing says why.
check_reasons() {
	local place suite test reason
	while read -r place suite test reason; do
		[[ -n $reason ]] || die "$conf: no reason is given for not running $suite $test on $place"
	done < <(rows unrun)
}

unrun() { # unrun PLACE SUITE: names of tests, or *
	local place suite test
	while read -r place suite test _; do
		[[ $place == "$1" || ($place == emulated && $1 != host) ]] || continue
		if [[ $suite == "$2" || $suite == '*' ]]; then
			printf '%s\n' "$test"
		fi
	done < <(rows unrun)
}

# Compiles the integration tests, in which each suite is a module. Prints their program.
build_tests() { # build_tests CARGO…: cargo's command line, up to the tests
	local lines program
	lines=$("$@" --no-run --test it 2>&1) || {
		printf '%s\n' "$lines" >&2
		die 'the tests do not build'
	}
	program=$(sed -n 's|.*Executable tests/it/main\.rs (\(.*\))|\1|p' <<<"$lines")
	[[ -n $program ]] || die 'cargo does not say where the tests are'
	printf '%s\n' "$PWD/$program"
}
