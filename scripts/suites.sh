# shellcheck shell=bash
# For scripts that source it: reads from a table such as tests/kernels.conf which tests run in which places. The caller
# defines `die`, and sets `conf` to the table's path.

# shellcheck disable=SC2154 # conf is the caller's
rows() { # rows KIND: prints the table's lines of that kind, without the first word
	sed -n "s/^$1[[:space:]]\+//p" "$conf"
}

# Prints the suites to run: all that the table has in lines of a kind, or only those that SUITES names.
suites() { # suites KIND
	local suite
	for suite in $(rows "$1"); do
		if [[ -z ${SUITES-} || " $SUITES " == *" $suite "* ]]; then
			printf '%s\n' "$suite"
		fi
	done
}

# Stops the script if the table gives no reason for a test that it leaves out.
check_reasons() {
	local place suite test reason
	while read -r place suite test reason; do
		[[ -n $reason ]] || die "$conf: no reason is given for not running $suite $test on $place"
	done < <(rows unrun)
}

unrun() { # unrun PLACE SUITE: prints the names of the tests that do not run there, or *
	local place suite test
	while read -r place suite test _; do
		[[ $place == "$1" || ($place == emulated && $1 != host) ]] || continue
		if [[ $suite == "$2" || $suite == '*' ]]; then
			printf '%s\n' "$test"
		fi
	done < <(rows unrun)
}

# Compiles the integration tests, in which each suite is a module. Prints the path of their program.
build_tests() { # build_tests CARGO…: CARGO… is cargo's command line, without --no-run and --test
	local lines program
	lines=$("$@" --no-run --test it 2>&1) || {
		printf '%s\n' "$lines" >&2
		die 'the tests do not build'
	}
	program=$(sed -n 's|.*Executable tests/it/main\.rs (\(.*\))|\1|p' <<<"$lines")
	[[ -n $program ]] || die 'cargo did not print the path of the tests'
	printf '%s\n' "$PWD/$program"
}
