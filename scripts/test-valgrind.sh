#!/usr/bin/env bash
# Compares what memleak calls lost with what valgrind calls lost, on the programs of tests/valgrind/programs.txt. Prints
# a table of the differences, and a line with the sums.
#
#     scripts/test-valgrind.sh [NAME]…          compares these programs, or all
#     scripts/test-valgrind.sh --sample         compares the ten that `make test` compares
#     scripts/test-valgrind.sh --own [NAME]…    compares valgrind's own leak tests, which are fetched (Debian)
#     scripts/test-valgrind.sh --write [--own]  also puts the sums into tests/long.txt
#     scripts/test-valgrind.sh [--own] --check-list [NAME]…
#                                               runs the programs twice under valgrind, and never under memleak
#
# Exits with 0 if bytes and blocks are equal for at least 98 of 100 programs, if memleak never calls more lost than
# valgrind, and if tests/valgrind/differences.txt has each difference, and no other. Of the whole list, at least 60 must
# lose something, and half of these must be real work. Needs root, as the tests do.
#
# valgrind's verdicts are stored in target/tmp/valgrind. FRESH=1 does not use the stored ones. JOBS programs run
# at a time (2). MEMLEAK names another program than the one of this tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/debian.sh
source scripts/debian.sh
# shellcheck source=scripts/long-record.sh
source scripts/long-record.sh

# The Debian whose source package of valgrind has the tests.
suite=trixie
own=$PWD/target/valgrind/own

die() {
	printf 'test-valgrind: %s\n' "$*" >&2
	exit 1
}

# Compiles the tests that tests/valgrind/own.txt names, from Debian's source package, unless they are there.
own_tests() {
	local work=$PWD/target/valgrind name source flags
	local -a includes
	[[ ! $own/complete -nt tests/valgrind/own.txt ]] || return 0
	rm -rf "$own"
	mkdir -p "$work/source" "$own"
	if [[ ! -e $work/source/complete ]]; then
		(cd "$work" && apt_of "$suite" source apt-get source --download-only valgrind >&2)
		tar -xf "$(find "$work" -name 'valgrind_*.orig.tar.*' ! -name '*.asc')" -C "$work/source" \
			--strip-components=1 --wildcards '*/include/*.h*' '*/memcheck/*.h' '*/memcheck/tests/*' '*/tests/*.h'
		touch "$work/source/complete"
	fi
	includes=("-I$work/source" "-I$work/source/include" "-I$work/source/memcheck" -D_GNU_SOURCE -include stdint.h)
	# A few programs include the file that configure makes. They take nothing else from it.
	printf '#define VGA_%s 1\n' "$(dpkg --print-architecture)" >"$work/source/config.h"
	# shellcheck disable=SC2016 # $own is a word of the list
	for name in $(sed -n 's|^run [^ ]* $own/\([^ ]*\).*|\1|p' tests/valgrind/own.txt) dlclose_leak_so; do
		source=$(find "$work/source/memcheck/tests" -name "$name.c" -o -name "$name.cpp" | head -n 1)
		[[ -n $source ]] || die "valgrind's source package has no test $name"
		flags=
		case $name in
		reach_thread_register) flags=-O2 ;;
		dlclose_leak_so) flags='-shared -fPIC' name=$name.so ;;
		esac
		# shellcheck disable=SC2086 # flags are words
		case $source in
		*.cpp) g++ -g -w -pthread "${includes[@]}" $flags -o "$own/$name" "$source" ;;
		*) gcc -g -w -pthread "${includes[@]}" $flags -o "$own/$name" "$source" -ldl ;;
		esac || die "$source does not compile"
	done
	touch "$own/complete"
}

host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=scripts/as-root.sh"
test=lost_blocks_are_those_of_valgrind
programs=all
list=programs.txt
write=
while [[ ${1-} == -* ]]; do
	case $1 in
	--sample) programs= ;;
	--own)
		list=own.txt
		own_tests
		;;
	--write) write=yes ;;
	--check-list) test=valgrind_says_the_same_twice ;;
	*) die "no such option: $1" ;;
	esac
	shift
done
(($# == 0)) || programs=$*
printed=$(mktemp)
trap 'rm -f "$printed"' EXIT
PROGRAM_LIST=$list OWN_TESTS=$own PROGRAMS=$programs cargo test --quiet --locked --test it -- \
	--exact "valgrind::$test" --include-ignored --nocapture 2>&1 | tee "$printed"
[[ $write ]] || exit 0
{
	printf 'valgrind::%s/%s (%s)\n' "$test" "$list" "$(where_and_when)"
	grep -E '^[0-9]+ (programs:|had lost)' "$printed" | sed 's/^/    /'
} | record
